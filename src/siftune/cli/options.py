"""Options that several commands share. Settings of the recipe have their names and meaning there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

Text = Optional[str]  # noqa: UP045  typer reads these annotations at run time
Texts = Optional[list[str]]  # noqa: UP045
Int = Optional[int]  # noqa: UP045
Float = Optional[float]  # noqa: UP045
Floats = Optional[list[float]]  # noqa: UP045
Bool = Optional[bool]  # noqa: UP045


def option(flag: str, text: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=panel, metavar=metavar, show_default=False)


DATA, TRAIN, GRADS, CHOOSE, PROOF, MACHINE = (
    "What you bring",
    "Warm-up",
    "Gradients and datastore",
    "Selection",
    "Training and measuring",
    "Machine",
)

Out = Annotated[
    Path,
    typer.Option("--out", help="The run directory: new, or one to go on with.", rich_help_panel=DATA),
]
Until = Annotated[
    str,
    typer.Option(
        help="Stop after a stage: pool, warmup, datastore, influence, selection.", rich_help_panel=DATA
    ),
]
RecipeFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--recipe",
        help="A YAML file of settings; a run's recipe.yaml replays it.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
Preset = Annotated[Text, option("--preset", "less: the recipe and rule of the LESS paper.", DATA)]
SetLines = Annotated[Texts, option("--set", "Any setting of the recipe.", DATA, "NAME=VALUE")]
Model = Annotated[Text, option("--model", "A Transformers folder or hub id.", DATA)]
Revision = Annotated[Text, option("--revision", "Revision of a hub model.", DATA)]
Adapter = Annotated[Text, option("--adapter", "A LoRA adapter folder that the warm-up starts from.", DATA)]
Adopt = Annotated[
    Text, option("--adopt", "A Trainer, TRL or Axolotl output folder, in place of a warm-up.", DATA)
]
Weights = Annotated[Floats, option("--weights", "A weight per adopted checkpoint, in order.", DATA)]
Quantize = Annotated[Text, option("--quantize", "Load the base in 8bit or 4bit.", DATA)]
MaxLength = Annotated[Int, option("--max-length", "Tokens a row may have (2048).", DATA)]
TooLong = Annotated[Text, option("--too-long", "truncate (the default) or quarantine longer rows.", DATA)]
MaskOption = Annotated[
    Text, option("--mask", "How trained tokens are found: auto, generation, known, prefix.", DATA)
]

WarmupFraction = Annotated[
    Float, option("--warmup-fraction", "Part of the pool (max of 5 % and 128 rows).", TRAIN)
]
Epochs = Annotated[Int, option("--epochs", "Epochs, one checkpoint each (4).", TRAIN)]
Rank = Annotated[Int, option("--rank", "LoRA rank (16).", TRAIN)]
Alpha = Annotated[Float, option("--alpha", "LoRA alpha (64).", TRAIN)]
Dropout = Annotated[Float, option("--dropout", "LoRA dropout in training (0).", TRAIN)]
LoraTargets = Annotated[
    Texts, option("--lora-targets", "Module names, all-linear, or auto: attention.", TRAIN)
]
LearningRate = Annotated[Float, option("--learning-rate", "Peak (2e-4).", TRAIN)]
Batch = Annotated[Int, option("--batch", "Rows a step (rows/16 between 4 and 128).", TRAIN)]

DirectionOption = Annotated[
    Text, option("--direction", "sgd (the default), adam, adam-less, adam-precond or sign.", GRADS)
]
ProjectionOption = Annotated[Text, option("--projection", "sketch (the default), rademacher or none.", GRADS)]
Features = Annotated[Int, option("--features", "Numbers a feature has (8192).", GRADS)]
StoreDtypeOption = Annotated[Text, option("--store-dtype", "int8 (the default), fp16, bf16 or fp32.", GRADS)]
GradientCheckpointing = Annotated[
    Bool,
    typer.Option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        help="Less memory, a third more time.",
        rich_help_panel=GRADS,
        show_default=False,
    ),
]

Pool = Annotated[
    Texts,
    option(
        "--pool",
        "Files, a datasets folder or a hub id; give it several times or several after it.",
        DATA,
        "FILE",
    ),
]
TargetOption = Annotated[Texts, option("--target", "The target's rows.", DATA, "NAME=FILE")]
Keep = Annotated[Text, option("--keep", "Budget: 5%, 1000 or '2M tokens'; no default.", CHOOSE)]
RuleOption = Annotated[Text, option("--rule", "by-subtask (the default), round-robin, top or mean.", CHOOSE)]
Centre = Annotated[
    Bool,
    typer.Option(
        "--centre/--no-centre",
        help="Subtract the pool's mean feature first (default: not).",
        rich_help_panel=CHOOSE,
        show_default=False,
    ),
]
Method = Annotated[
    Text, option("--method", "blend (the default), less, rds+, embed, bm25, ltd, length or random.", CHOOSE)
]
DropWorst = Annotated[
    Text,
    option(
        "--drop-worst", "Instead of --keep: leave out this part, most against the target.", CHOOSE, "PER CENT"
    ),
]
Encoder = Annotated[
    Text, option("--encoder", "A sentence encoder's folder, for embed and ltd; default the model.", CHOOSE)
]
NearDuplicates = Annotated[
    Float, option("--near-duplicates", "Pass over rows as like as this (0-1) to one chosen before.", CHOOSE)
]
PerSource = Annotated[
    Text, option("--per-source", "Most that a source may give: 20% of the budget, or 50 rows.", CHOOSE)
]
Family = Annotated[Text, option("--family", "ltd: the target's task family.", CHOOSE, "COLUMN=VALUE")]
Clusters = Annotated[Int, option("--clusters", "ltd: K-means clusters (sqrt(rows/2)).", CHOOSE)]
Templates = Annotated[Int, option("--templates", "ltd: instruction templates to choose from.", CHOOSE)]
TemplateColumn = Annotated[
    Text, option("--template-column", "ltd: column that names them (template).", CHOOSE)
]
Repeats = Annotated[
    Bool,
    typer.Option(
        "--repeats/--no-repeats",
        help="Let exact duplicates be chosen more than once (default: not).",
        rich_help_panel=CHOOSE,
        show_default=False,
    ),
]
Name = Annotated[Text, option("--name", "The selection's name; default its target's.", CHOOSE)]
DtypeOption = Annotated[
    Text, option("--dtype", "Numbers of the frozen base: auto, fp32, bf16, fp16.", MACHINE)
]
Attn = Annotated[Text, option("--attn", "Attention implementation: sdpa, eager …", MACHINE)]
Device = Annotated[Text, option("--device", "cpu, cuda, cuda:1 …", MACHINE)]
Threads = Annotated[Int, option("--threads", "CPU threads.", MACHINE)]
Workers = Annotated[
    Int,
    option("--workers", "Processes that make features; default one per visible GPU or CPU thread.", MACHINE),
]
RayAddress = Annotated[
    Text,
    option(
        "--ray",
        "Make features on a Ray cluster that sees the run directory; alone or auto: one of this machine, found or started.",
        MACHINE,
        "[ADDRESS]",
    ),
]
BatchTokens = Annotated[
    Int,
    option(
        "--batch-tokens",
        "Padded tokens in a batch of gradients (2048 on a CPU, 8192 on a GPU); in 16 bits it moves features by rounding, the warm-up too.",
        MACHINE,
    ),
]
ShardRows = Annotated[Int, option("--shard-rows", "Pool rows in a shard (256).", MACHINE)]
Seed = Annotated[Int, option("--seed", "Of everything random.", MACHINE)]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress, only warnings and the result.", rich_help_panel=MACHINE),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=MACHINE)]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=MACHINE)
]
NoText = Annotated[
    Bool,
    typer.Option(
        "--no-text", help="Leave the text of rows out of report, quarantine and log.", rich_help_panel=MACHINE
    ),
]
RunDir = Annotated[Path, typer.Argument(help="The run directory.", show_default=False)]
