"""Options that several commands share. Settings of the recipe have their names and meaning there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

Text = Optional[str]  # noqa: UP045  typer reads these annotations at run time
Texts = Optional[list[str]]  # noqa: UP045
Int = Optional[int]  # noqa: UP045
Float = Optional[float]  # noqa: UP045
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
    Text, option("--method", "less (the default), blend, rds+, embed, bm25, ltd, length or random.", CHOOSE)
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
    bool,
    typer.Option(
        "--no-text", help="Leave the text of rows out of report, quarantine and log.", rich_help_panel=MACHINE
    ),
]
RunDir = Annotated[Path, typer.Argument(help="The run directory.", show_default=False)]
