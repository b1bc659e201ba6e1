"""What a run ends with: one table a selection, where the files are, how to use them, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from siftune.pipeline.handover import trainer_lines
from siftune.pipeline.run import RunResult
from siftune.proof.measures import measured
from siftune.proof.show import against_short, arm_cells, table_title
from siftune.records.text import shown
from siftune.selection.selection import Selection

if TYPE_CHECKING:
    from siftune.pipeline.checking import CheckResult

SOURCES_SHOWN = 12


def as_values(result: RunResult) -> dict[str, Any]:
    """The result as JSON values."""
    return {
        "run": str(result.path),
        "selections": {
            name: {"file": str(selection.file), "settings": selection.settings, **selection.summary}
            for name, selection in result.selections.items()
        },
    }


def show(result: RunResult, until: str, console: Console | None = None) -> None:
    """Print the closing tables to standard output."""
    console = console or Console(highlight=False)
    if not result.selections:
        console.print(f"Done up to the stage {until}: {escape(str(result.path))}")
        console.print(f"Go on with: siftune run --out {escape(str(result.path))}")
    for name, selection in result.selections.items():
        console.print(selection_table(name, selection))
        console.print(f"selected rows  {escape(str(selection.file))}", soft_wrap=True)
        console.print(f"all scores     {escape(str(selection.path / 'scores.parquet'))}", soft_wrap=True)
    for name, selection in list(result.selections.items())[:1]:
        for trainer, line in trainer_lines(selection).items():
            console.print(f"{trainer:<14} {escape(line)}", soft_wrap=True)
        asked = f" --target {selection.settings['target']}" if selection.settings["target"] else ""
        command = f"siftune select {escape(shlex.quote(str(result.path)))}{asked} --keep 1% --name {name}-1"
        console.print(f"choose again   {command}", soft_wrap=True)


def selection_table(name: str, selection: Selection) -> Table:
    """Where the chosen rows come from: per source its share of the pool and of the choice."""
    s = selection.summary
    share = s["n_selected"] / s["n_scorable"]
    table = Table(
        title=f"{name}: {s['n_selected']:,} of {s['n_scorable']:,} rows ({share:.1%}), {s['tokens_selected']:,} tokens",
        title_justify="left",
        caption=_caption(s),
        caption_justify="left",
    )
    table.add_column("source")
    for title in ("in the pool", "chosen", "share of pool", "share of choice", "lift"):
        table.add_column(title, justify="right")
    for row in s["sources"][:SOURCES_SHOWN]:
        in_pool, in_choice = row["pool"] / s["n_scorable"], row["selected"] / s["n_selected"]
        lift = f"{in_choice / in_pool:.1f}x" if row["selected"] else "-"
        table.add_row(
            escape(shown(row["source"])),
            f"{row['pool']:,}",
            f"{row['selected']:,}",
            f"{in_pool:.1%}",
            f"{in_choice:.1%}",
            lift,
        )
    if rest := s["sources"][SOURCES_SHOWN:]:
        n_pool, n_chosen = sum(r["pool"] for r in rest), sum(r["selected"] for r in rest)
        table.add_row(
            f"{len(rest)} more",
            f"{n_pool:,}",
            f"{n_chosen:,}",
            f"{n_pool / s['n_scorable']:.1%}",
            f"{n_chosen / s['n_selected']:.1%}",
            "",
        )
    return table


def show_comparison(run: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a comparison's tables, a sentence each, and where its files are."""
    console = Console(highlight=False)
    for name, result in results.items():
        for table in result["tables"]:
            console.print(_comparison_table(name, table))
            console.print(escape(shown(table["sentence"])), soft_wrap=True)
        folder = run / "proof" / name
        console.print(f"figures        {escape(str(folder / 'comparison.json'))}", soft_wrap=True)
        console.print(f"table, plot    {escape(str(folder / 'comparison.md'))}", soft_wrap=True)


def show_check(result: CheckResult) -> None:
    """Print a first-order check: its table, a sentence a target, and where the points are."""
    console = Console(highlight=False)
    console.print(result.table())
    for target in result.targets:
        console.print(target.sentence, markup=False, soft_wrap=True)
    console.print(f"all points     {result.path}", markup=False, soft_wrap=True)


def _comparison_table(name: str, values: Mapping[str, Any]) -> Table:
    measures = measured(values["arms"])
    table = Table(
        title=escape(shown(f"{name}: {table_title(values)}")),
        title_justify="left",
        caption="✓ better, ✗ worse, ≈ no significant difference to random; intervals stand in the Markdown",
        caption_justify="left",
    )
    table.add_column("trained on")
    for title in ("rows", "seeds", *(head for m in measures for head in (m.words, "against random"))):
        table.add_column(title, justify="right")
    for arm in values["arms"]:
        cells = arm_cells(arm, measures, lambda entry, m: m.show(entry["mean"]), against_short)
        table.add_row(escape(shown(arm["name"])), f"{arm['n_rows']:,}", str(len(arm["seeds"])), *cells)
    return table


def _caption(s: dict[str, Any]) -> str:
    parts = [f"{s['n_quarantined']:,} of {s['n_pool']:,} pool rows in quarantine"]
    if s["n_duplicates_left_out"]:
        parts.append(f"{s['n_duplicates_left_out']:,} exact duplicates left out")
    if s["pool_in_warmup"]:
        parts.append(f"{s['selected_in_warmup']:,} of the chosen were in the warm-up")
    return "; ".join(parts)
