"""A plot of arms: for each measure a panel, for each arm a dot and its interval. Plain SVG, readable without colour."""

from __future__ import annotations

from html import escape
from typing import Any

from siftune.proof.measures import Measure, measured
from siftune.records.text import shown

LINE, LEFT, PANEL, GAP, TOP = 24, 190, 260, 40, 64
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1a1a1a}.t{font-weight:600;font-size:14px}.g{stroke:#d5d5d5}"
    ".i{stroke:#0b5394;stroke-width:2}.d{fill:#0b5394}.r{stroke:#b45f06;stroke-dasharray:4 3}"
    "@media(prefers-color-scheme:dark){text{fill:#eee}.g{stroke:#444}.i{stroke:#6fa8dc}.d{fill:#6fa8dc}.r{stroke:#f6b26b}}"
)


def dots(title: str, arms: list[dict[str, Any]]) -> str:
    """The arms of a comparison as SVG text. The dashed line is the mean of random."""
    title = escape(shown(title))
    measures = measured(arms)
    width = LEFT + len(measures) * (PANEL + GAP)
    height = TOP + LINE * len(arms) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        f"<title>{title}</title><style>{STYLE}</style>",
        f'<text class="t" x="8" y="20">{title}</text>',
    ]
    for row, arm in enumerate(arms):
        name = arm["name"] + (f" ({arm['n_rows']:,} rows)" if arm["n_rows"] else "")
        parts.append(f'<text x="8" y="{TOP + LINE * row + 4}">{escape(_short(shown(name)))}</text>')
    for place, measure in enumerate(measures):
        parts += _panel(LEFT + place * (PANEL + GAP), measure, arms)
    return "\n".join([*parts, "</svg>", ""])


def _panel(left: int, measure: Measure, arms: list[dict[str, Any]]) -> list[str]:
    entries = [arm["measures"].get(measure.name) for arm in arms]
    known = [e for e in entries if e is not None]
    low = min(e["mean"] if e["low"] is None else e["low"] for e in known)
    high = max(e["mean"] if e["high"] is None else e["high"] for e in known)
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return round(left + PANEL * (0.04 + 0.92 * (value - low) / span), 1)

    bottom = TOP + LINE * (len(arms) - 1) + 14
    better = "more is better" if measure.more_is_better else "less is better"
    parts = [f'<text x="{left}" y="42">{escape(measure.words)} ({better})</text>']
    for value in (low, (low + high) / 2, high):
        parts.append(f'<line class="g" x1="{x(value)}" x2="{x(value)}" y1="{TOP - 14}" y2="{bottom}"/>')
        parts.append(
            f'<text x="{x(value)}" y="{bottom + 16}" text-anchor="middle">{measure.show(value)}</text>'
        )
    for arm, entry in zip(arms, entries, strict=True):
        if arm["name"] == "random" and entry is not None:
            parts.append(
                f'<line class="r" x1="{x(entry["mean"])}" x2="{x(entry["mean"])}" y1="{TOP - 14}" y2="{bottom}"/>'
            )
    for row, entry in enumerate(entries):
        if entry is None:
            continue
        y = TOP + LINE * row
        if entry["low"] is not None:
            parts.append(
                f'<line class="i" x1="{x(entry["low"])}" x2="{x(entry["high"])}" y1="{y}" y2="{y}"/>'
            )
        parts.append(
            f'<circle class="d" cx="{x(entry["mean"])}" cy="{y}" r="4"><title>{measure.show(entry["mean"])}</title></circle>'
        )
    return parts


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"
