"""A comparison for people: Markdown, a plot, and JSON for programs, in one folder."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from siftune.proof.measures import Measure, measured
from siftune.proof.plot import dots
from siftune.records.files import write_json, write_text
from siftune.records.text import shown

_MARKS = re.compile(r"[\\`*<>|~]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|&(?=#?\w+;)")
"""Characters that Markdown would take for its own."""


def write_comparison(folder: Path, result: Mapping[str, Any]) -> None:
    """`comparison.json`, `comparison.md`, and `comparison.svg` (its first table; further ones get a number)."""
    write_json(folder / "comparison.json", result)
    plots = []
    for number, table in enumerate(result["tables"], 1):
        name = "comparison.svg" if number == 1 else f"comparison-{number}.svg"
        write_text(folder / name, dots(f"{result['test']}: {table_title(table)}", table["arms"]))
        plots.append(name)
    for left in set(folder.glob("comparison*.svg")) - {folder / name for name in plots}:
        left.unlink()  # of an earlier comparison with more tables
    write_text(folder / "comparison.md", markdown(result, plots))


def table_title(table: Mapping[str, Any]) -> str:
    """What a table compares."""
    return f"{table['subject']} at {table['keep']} and others, {table['reading']}"


def markdown(result: Mapping[str, Any], plots: list[str]) -> str:
    """All tables of a comparison with their sentences and plots."""
    lines = [f"# {result['test']}: what the choice is worth", ""]
    for table, plot in zip(result["tables"], plots, strict=True):
        lines += [
            f"## {literal(table_title(table))}",
            "",
            literal(table["sentence"]),
            "",
            *table_lines(table),
            "",
            f"![the same as a plot]({plot})",
            "",
        ]
    lines += [
        f"{result['n_rows']:,} test {'row' if result['n_rows'] == 1 else 'rows'} ({literal(result['file'])}), model {literal(result['model'])}. Mean over seeds and rows [95 % interval: rows by"
        " bootstrap, seeds by Student's t]. Differences are paired over test rows; one whose interval holds 0 is marked ≈: no significant difference.",
        "",
    ]
    return "\n".join(lines)


def literal(text: str) -> str:
    """Text that says the same in Markdown as it does outside: names may hold anything."""
    return _MARKS.sub(r"\\\g<0>", shown(text))


def table_lines(table: Mapping[str, Any]) -> list[str]:
    """One table as lines of Markdown: an arm a line, for each measure its mean and interval and the difference to random."""
    measures = measured(table["arms"])
    heads = [head for m in measures for head in (_head(m, table["arms"]), "against random")]
    lines = ["| trained on | rows | steps | seeds | " + " | ".join(heads) + " |"]
    lines.append("|---|---:|---:|---:|" + "---:|" * len(heads))
    for arm in table["arms"]:
        cells = arm_cells(arm, measures, with_interval, against)
        name = literal(arm["name"])
        name = f"**{name}**" if arm["name"] == table["subject"] else name
        lines.append(
            f"| {name} | {arm['n_rows']:,} | {arm['steps']:,} | {len(arm['seeds'])} | "
            + " | ".join(cells)
            + " |"
        )
    return lines


def arm_cells(
    arm: Mapping[str, Any],
    measures: Sequence[Measure],
    value: Callable[[Mapping[str, Any], Measure], str],
    difference: Callable[[Mapping[str, Any] | None, Measure], str],
) -> list[str]:
    """An arm's cells of a table: for each measure its value and its difference to random, empty where it has none."""
    cells = []
    for measure in measures:
        entry = arm["measures"].get(measure.name)
        cells += (
            ["", ""]
            if entry is None
            else [value(entry, measure), difference(entry.get("against_random"), measure)]
        )
    return cells


def _head(measure: Measure, arms: Sequence[dict[str, Any]]) -> str:
    """A measure's words, and on how many rows it rests where others rest on more."""
    n = max(arm["measures"][measure.name]["n"] for arm in arms if measure.name in arm["measures"])
    most = max(entry["n"] for arm in arms for entry in arm["measures"].values())
    return measure.words if n == most else f"{measure.words} ({n:,} rows)"


def with_interval(entry: Mapping[str, Any], measure: Measure) -> str:
    """`1.051 [1.020, 1.083]`."""
    text = measure.show(entry["mean"])
    return (
        text
        if entry["low"] is None
        else f"{text} [{measure.show(entry['low'])}, {measure.show(entry['high'])}]"
    )


def against_short(difference: Mapping[str, Any] | None, measure: Measure) -> str:
    """A signed difference with its mark, for narrow places."""
    return re.sub(r" \[.*\]", "", against(difference, measure))


def against(difference: Mapping[str, Any] | None, measure: Measure) -> str:
    """A signed difference with its interval; ≈ where it is not significant, ✓ where it is for the better, ✗ for the worse."""
    if difference is None:
        return ""
    if difference["low"] is None:
        return f"{_signed(difference['mean'], measure)} (one row)"
    mark = ("✓" if difference["better"] else "✗") if difference["significant"] else "≈"
    low, high = _signed(difference["low"], measure), _signed(difference["high"], measure)
    return f"{_signed(difference['mean'], measure)} [{low}, {high}] {mark}"


def sentence(arms: Sequence[dict[str, Any]], subject: str, test: str) -> str:
    """What came out, in words: the subject against random, the full pool, the other methods and the untrained model.

    It tells the first measure: the loss, or a harness task's first metric.
    """
    own = next(arm for arm in arms if arm["name"] == subject)
    parts = [f"{test}: {subject}{_at(own)} ({own['n_rows']:,} rows)"]
    measure = measured(arms)[0]
    entry = own["measures"][measure.name]
    parts.append(f"{measure.words} {with_interval(entry, measure)}")
    verdicts: dict[str, list[str]] = {
        "better than": [],
        "no significant difference from": [],
        "worse than": [],
        "one test row can't tell it from": [],
    }
    for arm in arms:
        against = arm["measures"][measure.name].get("against_subject")
        if against:
            verdict = "no significant difference from"
            if against["low"] is None:
                verdict = "one test row can't tell it from"
            elif against["significant"]:  # `better` is the other arm's
                verdict = "worse than" if against["better"] else "better than"
            verdicts[verdict].append(f"{arm['name']} ({measure.show(arm['measures'][measure.name]['mean'])})")
    parts += [f"{verdict} {', '.join(names)}" for verdict, names in verdicts.items() if names]
    if len(own["seeds"]) == 1:
        parts.append("one seed, which is taken to vary as random rows do")
    return "; ".join(parts) + "."


def _at(arm: dict[str, Any]) -> str:
    return f" at {arm['keep']}" if arm["keep"] else ""


def _signed(value: float, measure: Measure) -> str:
    """With its sign, and with as many digits as keep it from reading as 0."""
    digits = max(3, math.ceil(-math.log10(abs(value)))) if value else 3
    return f"{'+' if value >= 0 else '-'}{measure.show(abs(value), min(digits, 9))}"
