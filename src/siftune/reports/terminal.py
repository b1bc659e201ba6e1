"""The report in a terminal: the findings, with the tables that fit one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from siftune.records.text import duration
from siftune.reports.page import inert

ROWS = 10


def show(facts: Mapping[str, Any], console: Console | None = None) -> None:
    """Print to standard output."""
    console, facts = console or Console(highlight=False), inert(facts)
    for selection in facts["selections"]:
        _selection(console, selection)
    _head(console, "Leakage")
    for leak in facts["leakage"]:
        console.print(
            f"{leak['kind']} {escape(leak['name'])}: {leak['exact']:,} pool rows are one of its rows, {leak['overlapping']:,} share 13 words with one"
        )
    _outcome(console, facts["outcome"])
    _head(console, "Integrity")
    integrity = facts["integrity"]
    console.print(escape(integrity["finding"]))
    for reason in integrity["reasons"]:
        console.print(f"  {reason['rows']:,}: {escape(reason['reason'])}")
    _table(
        console,
        ["stage", "time", "peak memory"],
        [
            [of["stage"], duration(of["seconds"]), f"{of['peak_memory_mib']:,} MiB"]
            for of in integrity["stages"]
        ],
    )


def _selection(console: Console, selection: Mapping[str, Any]) -> None:
    verdict = selection["verdict"]
    _head(console, selection["name"])
    console.print(escape(verdict["sentence"]))
    for warning in verdict["warnings"]:
        console.print(f"[yellow]look:[/yellow] {escape(warning)}")
    _head(console, "Scores")
    console.print(escape(selection["scores"]["finding"]))
    _head(console, "Composition")
    for table in selection["composition"]:
        _table(
            console,
            [table["column"], "in the pool", "chosen", "share of pool", "share of choice", "lift"],
            [
                [row["value"], f"{row['pool']:,}", f"{row['chosen']:,}", f"{row['pool_share']:.1%}", f"{row['chosen_share']:.1%}", f"{row['lift']:.1f}x"]
                for row in table["rows"][:ROWS]
            ],
        )  # fmt: skip
    _head(console, "Length")
    console.print(escape(selection["length"]["finding"]))
    if selection["subtasks"]:
        _head(console, "Subtasks")
        console.print(escape(selection["subtasks"]["finding"]))
    _head(console, "Examples")
    console.print(escape(selection["examples"]["finding"]))
    for of in selection["examples"]["subtasks"][:ROWS]:
        for row in of["pool"][:1]:
            text = "".join(part["text"] for part in row["parts"] or [])
            console.print(f"  {escape(of['subtask'] or 'best')}: pool row {row['row']:,}, {row['value']:.3g}  {escape(' '.join(text.split())[:160])}")  # fmt: skip
    if selection["overlap"]:
        _head(console, "Overlap with other selections")
        _table(
            console,
            ["selection", "rows", "in common", "Jaccard", "by chance"],
            [
                [of["selection"], f"{of['rows']:,}", f"{of['shared']:,}", f"{of['jaccard']:.3f}", f"{of['by_chance']:.3f}"]
                for of in selection["overlap"]
            ],
        )  # fmt: skip
    _head(console, "Redundancy")
    console.print(escape(selection["redundancy"]["finding"]))


def _outcome(console: Console, outcome: Mapping[str, Any]) -> None:
    _head(console, "Outcome")
    sentences = [table["sentence"] for of in outcome["comparisons"] for table in of["tables"]]
    sentences += [of["sentence"] for of in outcome["check"]]
    sentences += [f"demo, {of['name']}: loss {of['loss']:.3f}" for of in outcome["demo"]]
    for sentence in sentences or ["Nothing was measured: siftune compare RUN --test NAME=FILE"]:
        console.print(escape(sentence))


def _head(console: Console, text: str) -> None:
    console.print(f"\n[bold]{escape(text)}[/bold]")


def _table(console: Console, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table()
    for place, head in enumerate(heads):
        table.add_column(escape(head), justify="right" if place else "left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
