"""What a run ends with: one table a selection, where the files are, how to use them, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from siftune.pipeline.handover import trainer_lines
from siftune.pipeline.run import RunResult
from siftune.proof.measures import Measure, measured
from siftune.proof.show import against_short, table_title, with_interval
from siftune.records.log import stage_seconds
from siftune.records.text import duration, shown
from siftune.selection.selection import Selection

if TYPE_CHECKING:
    from siftune.pipeline.checking import CheckResult
    from siftune.proof.agreement import TargetCheck

SOURCES_SHOWN = 12
STAGE_WORDS = {
    "pool": "reading",
    "plan": "plan",
    "warmup": "warm-up",
    "datastore": "gradients",
    "vectors": "vectors",
    "influence": "influence",
    "append": "appending",
    "selection": "choosing",
}
"""The kinds of stages of a run, in its order, as people call them."""


def as_values(result: RunResult, report: Path | None = None) -> dict[str, Any]:
    """The result as JSON values: what `--json` prints for run, score and select.

    run: the directory; selections: name -> file, scores, settings and the summary of selection.json;
    report: the page that was written beside it, null where none was;
    seconds: wall time of every kind of stage, over all commands that worked in the run; next: commands to type
    """
    return {
        "run": str(result.path),
        "selections": {
            name: {
                "file": str(selection.file),
                "scores": str(selection.path / "scores.parquet"),
                "settings": selection.settings,
                **selection.summary,
            }
            for name, selection in result.selections.items()
        },
        "report": str(report) if report else None,
        "seconds": _seconds(result.path),
        "next": [command for _, command in next_commands(result, report)],
    }


def show(result: RunResult, until: str, console: Console | None = None, report: Path | None = None) -> None:
    """Print the closing tables to standard output. report: the page that was written beside them"""
    console = console or Console(highlight=False)
    if not result.selections:
        console.print(f"Done up to the stage {until}: {escape(shown(str(result.path)))}", soft_wrap=True)
    for name, selection in result.selections.items():
        console.print(selection_table(name, selection))
        console.print(_caption(selection.summary), style="dim")
        console.print()
        line(console, "rows", str(selection.file))
        line(console, "scores", str(selection.path / "scores.parquet"))
    for _, selection in list(result.selections.items())[:1]:
        for trainer, text in trainer_lines(selection).items():
            line(console, trainer, text)
    if seconds := _seconds(result.path):
        parts = [f"{STAGE_WORDS.get(kind, kind)} {duration(s)}" for kind, s in seconds.items()]
        line(console, "time, in all", f"{duration(sum(seconds.values()))}: {', '.join(parts)}")
    if report:
        line(console, "report", str(report))
    for what, command in next_commands(result, report):
        line(console, what, command, style="bold")


def line(console: Console, what: str, text: str, style: str = "") -> None:
    """One fact below a table, whole on one line, so that it can be copied."""
    console.print(f"[dim]{what:<13}[/dim] " + escape(shown(text)), style=style, soft_wrap=True)


def next_commands(result: RunResult, report: Path | None = None) -> list[tuple[str, str]]:
    """What to type next, each with a word that says what for."""
    run = shlex.quote(str(result.path))
    if not result.selections:
        return [("go on", f"siftune run --out {run}")]
    name, selection = next(iter(result.selections.items()))
    target = selection.settings["target"]
    commands = [] if report else [("look at it", f"siftune report {run}")]
    if target:
        commands.append(("worth it?", f"siftune compare {run} --test {target}=TEST.jsonl"))
    asked = f" --target {target}" if target else ""
    asked += f" --method {selection.settings['method']}"
    commands.append(("choose again", f"siftune select {run}{asked} --keep 1% --name {name}-1"))
    return commands


def selection_table(name: str, selection: Selection) -> Table:
    """Where the chosen rows come from: per source its share of the pool and of the choice."""
    s = selection.summary
    table = plain_table(
        f"{name}: {s['n_selected']:,} of {s['n_scorable']:,} rows ({s['n_selected'] / s['n_scorable']:.1%}),"
        f" {s['tokens_selected']:,} of {s['tokens_scorable']:,} tokens"
        f" ({s['tokens_selected'] / s['tokens_scorable']:.1%})"
    )
    table.add_column("source", overflow="fold")
    for title in ("pool", "chosen", "of the pool", "of the choice", "lift"):
        table.add_column(title, justify="right", no_wrap=True)
    rest = s["sources"][SOURCES_SHOWN:]
    for row in s["sources"][:SOURCES_SHOWN]:
        table.add_row(escape(shown(row["source"])), *_source_cells(row["pool"], row["selected"], s))
    if rest:
        n_pool, n_chosen = sum(row["pool"] for row in rest), sum(row["selected"] for row in rest)
        table.add_row(f"{len(rest)} more sources", *_source_cells(n_pool, n_chosen, s))
    return table


def plain_table(title: str) -> Table:
    """The look of every closing table: one rule under the heads, no frame."""
    return Table(
        title=escape(shown(title)),
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        caption_style="dim",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )


def _source_cells(n_pool: int, n_chosen: int, s: Mapping[str, Any]) -> tuple[str, ...]:
    in_pool, in_choice = n_pool / s["n_scorable"], n_chosen / s["n_selected"]
    lift = f"{in_choice / in_pool:.1f}x" if n_chosen else "-"
    return f"{n_pool:,}", f"{n_chosen:,}", f"{in_pool:.1%}", f"{in_choice:.1%}", lift


def _seconds(run: Path) -> dict[str, float]:
    """Wall seconds by kind of stage, in the order of a run; what compare and check did isn't in it."""
    found = stage_seconds(run / "log.jsonl")
    return {kind: found[kind] for kind in STAGE_WORDS if kind in found}


def show_comparison(run: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a comparison's tables, a sentence each, and where its files are."""
    console = Console(highlight=False)
    for name, result in results.items():
        for table in result["tables"]:
            for measure in measured(table["arms"]):
                console.print(_comparison_table(name, table, measure))
                console.print()
            console.print(escape(shown(table["sentence"])), soft_wrap=True)
        folder = run / "proof" / name
        line(console, "figures", str(folder / "comparison.json"))
        line(console, "table, plot", str(folder / "comparison.md"))


def show_check(result: CheckResult) -> None:
    """Print a first-order check: a table and a sentence a target, and where the points are."""
    console = Console(highlight=False)
    for target in result.targets:
        console.print(_check_table(target))
        console.print(shown(target.sentence), markup=False, soft_wrap=True)
        console.print()
    line(console, "all points", str(result.path))


def _check_table(target: TargetCheck) -> Table:
    """A line a checkpoint, and one for all of them together."""
    n = len(target.overall.measured_K)
    table = plain_table(f"{target.name}: drop of the mean loss after a step on each of {n} batches")
    table.caption = "Spearman's rank correlation of predicted drop, and of influence as selection uses it, with the measured drop"
    table.add_column("checkpoint")
    for title in ("by predicted", "by influence", "predicted", "measured"):
        table.add_column(title, justify="right", no_wrap=True)
    for points in [*target.checkpoints, *([target.overall] if len(target.checkpoints) > 1 else [])]:
        table.add_row(
            str(points.checkpoint or "all"),
            escape(str(points.by_predicted)),
            escape(str(points.by_influence)),
            f"{points.mean_predicted:.2e}",
            f"{points.mean_measured:.2e}",
        )
    return table


def _comparison_table(name: str, values: Mapping[str, Any], measure: Measure) -> Table:
    """One measure of a comparison: a screen is too narrow for all beside each other."""
    better = "more" if measure.more_is_better else "less"
    table = plain_table(f"{name}: {measure.words} ({better} is better), {table_title(values)}")
    table.caption = "✓ better, ✗ worse, ≈ no significant difference to random"
    table.add_column("trained on", overflow="fold")
    for title in ("rows", "seeds", "mean", "95 % interval", "to random"):
        table.add_column(title, justify="right", no_wrap=True)
    for arm in values["arms"]:
        if (entry := arm["measures"].get(measure.name)) is None:
            continue
        text, _, interval = with_interval(entry, measure).partition(" [")
        table.add_row(
            escape(shown(arm["name"])),
            f"{arm['n_rows']:,}",
            str(len(arm["seeds"])),
            text,
            interval.rstrip("]"),
            against_short(entry.get("against_random"), measure),
        )
    return table


def _caption(s: dict[str, Any]) -> str:
    parts = [f"{s['n_quarantined']:,} of {s['n_pool']:,} pool rows in quarantine"]
    if s["n_duplicates_left_out"]:
        parts.append(f"{s['n_duplicates_left_out']:,} exact duplicates left out")
    if s["pool_in_warmup"]:
        parts.append(f"{s['selected_in_warmup']:,} of the chosen were in the warm-up")
    return "; ".join(parts)
