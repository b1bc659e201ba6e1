"""`siftune plan`: what a run will cost, before it is spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from siftune.cli.app import app, reporter, settings_of, told, until_stage
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
    Float,
    GradientCheckpointing,
    Keep,
    LearningRate,
    LoraTargets,
    MaskOption,
    MaxLength,
    Method,
    Model,
    Name,
    NearDuplicates,
    PerSource,
    Pool,
    Preset,
    ProjectionOption,
    Quantize,
    Quiet,
    Rank,
    RecipeFile,
    Repeats,
    Revision,
    RuleOption,
    Seed,
    SetLines,
    ShardRows,
    StoreDtypeOption,
    TargetOption,
    TemplateColumn,
    Templates,
    Threads,
    TooLong,
    Until,
    WarmupFraction,
    Weights,
    Workers,
    option,
)


@app.command()
def plan(
    run_dir: Annotated[
        Optional[Path],  # noqa: UP045  typer reads this at run time
        typer.Argument(help="A run, to plan what is left of it.", show_default=False),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Where the run will be: its disk is looked at.", rich_help_panel=DATA),
    ] = None,
    price_per_hour: Annotated[
        Float, option("--price-per-hour", "What an hour of this machine costs.", MACHINE)
    ] = None,
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
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """What will a run cost? Time, memory, disk and money, from a few probe batches; takes what 'run' takes, writes nothing."""
    given = settings_of(dict(locals()))
    with told(debug):
        from siftune.pipeline.plan_text import show_plan
        from siftune.pipeline.planning import plan as planned
        from siftune.pipeline.settings import gathered
        from siftune.records.errors import SiftuneError

        if run_dir is not None and not (run_dir / "recipe.yaml").exists():
            raise SiftuneError(
                "is not a run directory (it holds no recipe.yaml)",
                where=str(run_dir),
                todo="Leave it out to plan a new run: siftune plan --model M --pool FILE …",
            )
        asked = gathered(recipe_file=recipe, preset=preset, set_lines=settings or [], given=given)
        found = planned(
            asked,
            run_dir or out,
            until=until_stage(until),
            price_per_hour=price_per_hour,
            reporter=reporter(quiet),
        )
        if as_json:
            typer.echo(json.dumps(found.as_values(), indent=2))
        else:
            show_plan(found)
