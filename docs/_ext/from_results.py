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


def long_rows() -> str:
    """The rows of benchmarks/results/long_rows.json, as Markdown."""
    found = json.loads((RESULTS / "long_rows.json").read_text(encoding="utf-8"))
    lines = [
        f"Measured {found['date'][:10]} at commit {found['commit']} on {found['machine']['cpu']}, one thread.\n",
        "| tokens | CPU s | peak, MiB over before | CPU s, recomputed | peak, MiB over before | cosine of the two |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = [f"{row['tokens']:,}"]
        for way in ("plain", "checkpointed"):
            of = row[way]
            cells += [f"{of['cpu_seconds']:.1f}", f"{of['peak_mib'] - of['before_mib']:,}"]
        lines.append(f"| {' | '.join(cells)} | {row['cosine']:.4f} |")
    return "\n".join(lines) + "\n"


def reliability() -> str:
    """The counts of benchmarks/results/reliability.json, as Markdown."""
    file = RESULTS / "reliability.json"
    if not file.exists():
        return "Not measured on this checkout: `make faults` makes `benchmarks/results/reliability.json`.\n"
    found = json.loads(file.read_text(encoding="utf-8"))
    made = f"Measured {found['date'][:10]} at commit {found['commit']} on {found['machine']['cpu']}, seed {found['seed']}."
    kills = [of for fault, of in found["faults"].items() if fault.startswith("kill -9")]
    total = f"kill -9: {sum(of['tries'] for of in kills)} times, {sum(of['lost_rows'] for of in kills)} rows lost."
    table = [
        "| fault | tries | told as documented | identical afterwards | lost rows | it fell into |",
        "|---|---|---|---|---|---|",
    ]
    for fault, of in found["faults"].items():
        where = ", ".join(f"{name} {n}" for name, n in of["where"].items())
        cells = [fault, of["tries"], of["told"], of["identical"], of["lost_rows"], where]
        table.append(f"| {' | '.join(map(str, cells))} |")
    lines = [f"{made} {total}\n", *table]
    if found["not_good"]:
        lines.append("\nTries that were not as they should be:\n")
        lines += [f"- {of['fault']}, {of['case']}: {_lacking(of)}" for of in found["not_good"]]
    if found["skipped"]:
        skipped = ", ".join(f"{fault} ({n})" for fault, n in found["skipped"].items())
        lines.append(f"\nNot tried, since that machine could not: {skipped}.")
    return "\n".join(lines) + "\n"


def _lacking(of: dict[str, Any]) -> str:
    lacks = {
        "not told as documented": not of["told"],
        "not identical": not of["identical"],
        f"{of['lost']} rows lost": of["lost"] != 0,
    }
    return ", ".join(what for what, so in lacks.items() if so)


def scoring() -> str:
    """What benchmarks/results/scoring.json says of asking large stores, as Markdown."""
    found = json.loads((RESULTS / "scoring.json").read_text(encoding="utf-8"))
    full = found["extrapolated"]
    lines = [
        f"Measured {found['date'][:10]} at commit {found['commit']} on {found['machine']['cpu']}: {found['target_rows']} target rows, one checkpoint,"
        f" {found['store_dtype']} × {found['features']:,}. *Cold*: the store's pages were dropped from memory before.\n",
        "| rows | threads | cold, CPU s | cold, s | warm, CPU s | warm, s | memory over before, MiB |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {of['rows']:,} | {of['threads']} | {of['cold']['cpu']:.1f} | {of['cold']['wall']:.1f} | {of['warm']['cpu']:.1f} "
            f"| {of['warm']['wall']:.1f} | {of['peak_mib']:.0f} |"
            for of in found["asked"]
        ),
        f"\nSo {full['rows'] / 1e6:.0f} million rows, {full['gib']:.0f} GiB, take {full['minutes_computing']:.0f} minutes of one thread and"
        f" {full['minutes_reading']:.0f} of this disk ({found['disk_mb_per_second']} MB a second when only read), whichever is slower, for every checkpoint."
        f" Below {full['disk_bound_below_mb_per_second']} MB a second the disk decides, above it the processor does.\n",
    ]
    return "\n".join(lines)


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
