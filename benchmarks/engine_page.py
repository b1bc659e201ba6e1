"""benchmarks/README.md and the plot, made from the engine's result alone.

python benchmarks/engine_page.py        after results/engine.json changed
"""

from __future__ import annotations

import json
from html import escape
from math import log10
from pathlib import Path
from typing import Any

LINE, LEFT, WIDTH, TOP = 24, 210, 460, 64
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1a1a1a}.t{font-weight:600;font-size:14px}.g{stroke:#d5d5d5}"
    ".i{stroke:#0b5394;stroke-width:2}.d{fill:#0b5394}.o{fill:none;stroke:#0b5394;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#eee}.g{stroke:#444}.i,.o{stroke:#6fa8dc}.d{fill:#6fa8dc}}"
)

HEAD = """# Benchmarks

Every file in [results](results) says what measured it: command, date, commit, machine. `make bench` makes the tables below and the
plot anew; [how it is measured](../docs/explanation/benchmark.md) says what the arms are. This page is made from
[results/engine.json](results/engine.json) by `engine_page.py`.
"""


def write_page(result: Path) -> Path:
    """Write README.md in the folder above the result's, and the plot beside the result."""
    found = json.loads(result.read_text(encoding="utf-8"))
    plot = result.with_suffix(".svg")
    plot.write_text(_plot(found), encoding="utf-8")
    page = result.parents[1] / "README.md"
    parts = [HEAD, _about(found), _ratios(found["ratios"]), _costs(found["arms"]), _phases(found["arms"])]
    parts.insert(3, f"![CPU seconds a row by arm](results/{plot.name})\n")
    if failed := [arm for arm in found["arms"] if "error" in arm]:
        parts.append(_failures(failed))
    if idle := [arm["name"] for arm in found["arms"] if not arm["rounds"] and "error" not in arm]:
        parts.append(f"Not measured in this run: {', '.join(idle)}.\n")
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def _about(found: dict[str, Any]) -> str:
    rows, tokens = found["examples"], found["examples"]["tokens"]
    return (
        f"{found['model']}, base in {found['dtype']}. {rows['rows']} examples ({rows['different']} different) of"
        f" {tokens['least']} to {tokens['most']} tokens (median {tokens['median']}), {rows['trained_share']:.0%} of them"
        f" trained; batches of {found['batch_tokens']} padded tokens. {found['machine']['cpu']}, one thread,"
        f" {found['date'][:10]}, commit {found['commit']}. Median of the rounds, least and most in brackets.\n"
    )


def _ratios(ratios: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"{one['name']} ({one['of']} / {one['over']})",
            one["goal"],
            _shown(one, ".2f"),
            "met" if one["met"] else "not met",
        ]
        for one in ratios
    ]
    return _table("Ratios", ["what", "goal", "measured", ""], rows)


def _costs(arms: list[dict[str, Any]]) -> str:
    rows = [
        [
            arm["name"],
            arm["what"],
            arm["dtype"],
            str(arm["rows"]),
            f"{arm['mean_loss']:.3f}",
            _shown(arm["cpu_seconds_a_row"], ".4f"),
            _shown(arm["peak_mib"], ",.0f"),
            _shown(arm["over_load_mib"], ",.0f"),
            str(arm["rounds"]),
        ]
        for arm in arms
        if arm["rounds"]
    ]
    heads = [
        "arm",
        "what",
        "dtype",
        "rows",
        "mean loss",
        "CPU seconds a row",
        "peak MiB",
        "over its load",
        "rounds",
    ]
    return _table("Cost by arm", heads, rows)


def _phases(arms: list[dict[str, Any]]) -> str:
    phases = ["start-up", "load", "first batch", "gradients"]
    rows = [
        [arm["name"], *(f"{arm['cpu_seconds'][phase]:.1f}" for phase in phases)]
        for arm in arms
        if arm["rounds"]
    ]
    about = "CPU seconds. Only the last column counts above; what is made once (projection maps, buffers) falls into the first batch."
    return _table("Phases", ["arm", *phases], rows, about)


def _failures(failed: list[dict[str, Any]]) -> str:
    rows = [[arm["name"], arm["error"].replace("|", "∣")] for arm in failed]
    return _table("Failures", ["arm", "what happened"], rows)


def _table(title: str, heads: list[str], rows: list[list[str]], about: str = "") -> str:
    """A section with a table, and a sentence before it."""
    lines = [f"## {title}", "", *([about, ""] if about else [])]
    lines += [_line(heads), "|---" * len(heads) + "|", *map(_line, rows)]
    return "\n".join([*lines, ""])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def _shown(spread: dict[str, Any], form: str) -> str:
    return f"{spread['median']:{form}} ({spread['low']:{form}} – {spread['high']:{form}})"


def _plot(found: dict[str, Any]) -> str:
    """A dot for each arm on a logarithmic scale, a line from the quickest to the slowest round; siftune's dots are full."""
    arms = [arm for arm in found["arms"] if arm["rounds"] and not arm["name"].startswith("siftune tiny")]
    spreads = [arm["cpu_seconds_a_row"] for arm in arms]
    low = log10(min(spread["low"] for spread in spreads)) - 0.05
    high = log10(max(spread["high"] for spread in spreads)) + 0.05

    def x(seconds: float) -> float:
        return round(LEFT + WIDTH * (log10(seconds) - low) / (high - low), 1)

    bottom = TOP + LINE * len(arms)
    title = "CPU seconds a row, one thread (logarithmic; less is better)"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 70} {bottom + 24}" role="img">',
        f"<title>{title}</title><style>{STYLE}</style>",
        f'<text class="t" x="8" y="20">{title}</text>',
    ]
    for tick in [digit * 10**power for power in range(-5, 4) for digit in (1, 2, 5)]:
        if low <= log10(tick) <= high:
            parts.append(f'<line class="g" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP - 18}" y2="{bottom - 8}"/>')
            parts.append(f'<text x="{x(tick)}" y="{bottom + 8}" text-anchor="middle">{tick:g}</text>')
    for place, (arm, spread) in enumerate(zip(arms, spreads, strict=True)):
        y = TOP + LINE * place
        kind = "d" if arm["name"].startswith("siftune") else "o"
        parts.append(f'<text x="8" y="{y + 4}">{escape(arm["name"])}</text>')
        parts.append(f'<line class="i" x1="{x(spread["low"])}" x2="{x(spread["high"])}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{kind}" cx="{x(spread["median"])}" cy="{y}" r="4"/>')
        parts.append(f'<text x="{x(spread["high"]) + 8}" y="{y + 4}">{spread["median"]:.3g}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    print(write_page(Path(__file__).parent / "results" / "engine.json"))
