"""What pages take from the results of benchmarks when they are built, so that no figure is written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def accuracy() -> str:
    """The tables of benchmarks/results/accuracy.json, as Markdown."""
    file = RESULTS / "accuracy.json"
    if not file.exists():
        return "Not measured on this checkout: `benchmarks/accuracy.py` makes `benchmarks/results/accuracy.json`.\n"
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = found["rows"]
    targets = ", ".join(f"{n} of {name}" for name, n in rows["target_rows"].items())
    made = f"Measured {found['date'][:10]} at commit {found['commit']} on {found['machine']['cpu']}"
    return "\n".join(
        [
            f"{made}: {rows['pool_rows']} pool rows and target rows ({targets}) for what is compared with exact gradients,"
            f" {found['all_rows']['rows']:,} pool rows for checkpoints and lines that begin with *all rows*.\n",
            "## Cost against agreement\n",
            *_choices(found["table"]),
            "\n## Error of a cosine\n",
            *_errors(found),
        ]
    )


def bf16() -> str:
    """What benchmarks/results/bf16.json found, as a paragraph."""
    file = RESULTS / "bf16.json"
    if not file.exists():
        return "Not measured on this checkout: `benchmarks/bf16.py` makes `benchmarks/results/bf16.json`.\n"
    found = json.loads(file.read_text(encoding="utf-8"))
    parts = []
    for arm, name in (("siftune bf16", "siftune's gradients"), ("peft bf16", "PEFT's own")):
        of = [by_arm[arm] for by_arm in found["checkpoints"].values()]
        error = " and ".join(f"{one['error_median']:.3f}" for one in of)
        cosine = min(one["cosine_least"] for one in of)
        low, high = min(one["norm_ratio_least"] for one in of), max(one["norm_ratio_most"] for one in of)
        parts.append(
            f"{name} are off by {error} of their length (medians; checkpoints {' and '.join(found['checkpoints'])}),"
            f" cosine {cosine:.3f} or more, norms {low:.2f} to {high:.2f} of the true ones"
        )
    rows = found["rows"]
    return (
        f"On {rows['n']} rows of {rows['tokens']['least']} to {rows['tokens']['most']} tokens, {found['date'][:10]}, commit"
        f" {found['commit']}: {'; '.join(parts)}.\n"
    )


def _choices(lines: list[dict[str, Any]]) -> list[str]:
    table = [
        "| choice | compared with | KiB a row | CPU | order, `top` | best 5 %, `top` | order, `by-subtask` | best 5 %, `by-subtask` |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        agree = [
            f"{line[f'{what} {rule}']:.3f}"
            for rule in ("top", "by-subtask")
            for what in ("spearman", "overlap")
        ]
        cells = [
            line["choice"],
            line["compared"],
            f"{line['bytes'] / 1024:,.1f}",
            f"{line['cpu']:.2f}",
            *agree,
        ]
        table.append(f"| {' | '.join(cells)} |")
    return table


def _errors(found: dict[str, Any]) -> list[str]:
    """A line for each kind of projection and model; 1 / sqrt(D) as the measure of it."""
    real = found["real"]
    lines = {
        f"SmolLM2-135M, {name}, {real['coordinates']:,} weights": of for name, of in real["error"].items()
    }
    for arch, of in found["tiny"].items():
        for kind in ("sketch", "rademacher"):
            lines[f"tiny {arch}, {kind}, {of['coordinates']:,} weights"] = of[kind]
    numbers = list(next(iter(lines.values())))
    table = [f"| | {' | '.join(f'D = {int(n):,}' for n in numbers)} |", "|---" * (len(numbers) + 1) + "|"]
    table.append(f"| 1 / sqrt(D) | {' | '.join(f'{int(n) ** -0.5:.4f}' for n in numbers)} |")
    for name, of in lines.items():
        table.append(f"| {name} | {' | '.join(f'{of[n]:.4f}' if n in of else '' for n in numbers)} |")
    return table
