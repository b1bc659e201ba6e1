"""Charts as inline SVG, drawn from the figures of a report. Colours are the page's (light and dark), text is selectable, nothing is told by colour
alone. The table of a chart's figures stands beside it on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unicodedata import east_asian_width

from markupsafe import Markup

WIDTH = 560


def _svg(height: float, label: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, round(height), label, Markup("").join(parts)
    )


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>').format(
        round(x, 1), round(y, 1), anchor, kind, text
    )


def _bar(kind: str, x: float, y: float, width: float, height: float, title: str) -> Markup:
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
        kind, round(x, 1), round(y, 1), round(max(width, 0), 1), round(max(height, 0), 1), title
    )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
        kind, round(x1, 1), round(y1, 1), round(x2, 1), round(y2, 1)
    )


def histogram(scores: dict[str, Any]) -> Markup:
    """Scores of the pool (outlined bars) with the chosen part (full bars). Heights are square roots, so that small bins are seen."""
    left, right, top, bottom = 12.0, WIDTH - 12.0, 26.0, 206.0
    edges, pool, chosen = scores["edges"], scores["pool"], scores["chosen"]
    most = max(pool) ** 0.5 or 1.0
    span = edges[-1] - edges[0]

    def x(value: float) -> float:
        return left + (right - left) * (value - edges[0]) / span

    parts = []
    for low, high, n, k in zip(edges[:-1], edges[1:], pool, chosen, strict=True):
        title = f"{low:.4g} to {high:.4g}: {n:,} rows, {k:,} chosen"
        for kind, count in (("pool", n), ("chosen", k)):
            height = (bottom - top) * count**0.5 / most
            if count:
                parts.append(_bar(kind, x(low) + 0.5, bottom - height, x(high) - x(low) - 1, height, title))
    parts.append(_line("axis", left, bottom, right, bottom))
    for value in (edges[0], (edges[0] + edges[-1]) / 2, edges[-1]):
        anchor = "start" if value == edges[0] else "end" if value == edges[-1] else "middle"
        parts.append(_text(x(value), bottom + 16, f"{value:.3g}", anchor))
    cut = x(scores["cut"])
    parts.append(_line("cut", cut, top - 6, cut, bottom))
    word = "cut" if scores["by_score"] else "lowest chosen"
    parts.append(
        _text(cut, top - 10, f"{word} {scores['cut']:.3g}", "end" if cut > WIDTH / 2 else "start", "strong")
    )
    return _svg(bottom + 24, "Histogram of scores: the pool and the chosen part", parts)


def paired_bars(rows: Sequence[dict[str, Any]], label: str) -> Markup:
    """Share of the pool (outlined) above share of the choice (full), a pair a value."""
    left, line = 200.0, 34.0
    most = max(max(row["pool_share"], row["chosen_share"]) for row in rows) or 1.0
    parts = []
    for place, row in enumerate(rows):
        y = 6.0 + line * place
        parts.append(_text(left - 8, y + 17, _short(row["value"]), "end"))
        for kind, share, shift in (("pool", row["pool_share"], 0), ("chosen", row["chosen_share"], 13)):
            width = (WIDTH - left - 60) * share / most
            parts.append(
                _bar(
                    kind,
                    left,
                    y + shift,
                    max(width, 0.5),
                    11.0,
                    f"{row['value']}: {share:.1%} of the {'pool' if kind == 'pool' else 'choice'}",
                )
            )
            parts.append(_text(left + width + 6, y + shift + 10, f"{share:.1%}", kind="small"))
    return _svg(10 + line * len(rows), label, parts)


def binned(bins: Sequence[dict[str, Any]]) -> Markup:
    """Mean score (dot) and its middle 80 % (line) by trained tokens."""
    left, right, top, bottom = 64.0, WIDTH - 16.0, 14.0, 196.0
    low, high = min(b["low"] for b in bins), max(b["high"] for b in bins)
    span = (high - low) or 1.0

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / span

    parts = []
    for value in (low, (low + high) / 2, high):
        parts.append(_line("grid", left, y(value), right, y(value)))
        parts.append(_text(left - 6, y(value) + 4, f"{value:.3g}", "end"))
    step = (right - left) / len(bins)
    for place, b in enumerate(bins):
        x = left + step * (place + 0.5)
        title = f"{b['from']:,} to {b['to']:,} tokens, {b['rows']:,} rows: mean score {b['mean']:.4g}"
        parts.append(_line("interval", x, y(b["low"]), x, y(b["high"])))
        parts.append(
            Markup('<circle class="dot" cx="{}" cy="{}" r="4.5"><title>{}</title></circle>').format(
                round(x, 1), round(y(b["mean"]), 1), title
            )
        )
        parts.append(_text(x, bottom + 18, f"≤ {b['to']:,}", "middle", "small"))
    parts.append(_text((left + right) / 2, bottom + 36, "trained tokens, up to", "middle"))
    return _svg(bottom + 44, "Score by trained tokens", parts)


def _short(text: str, room: float = 185.0) -> str:
    """As much of a name as fits, by what characters of 13 px take at most."""
    used = 0.0
    for place, character in enumerate(text):
        wide = east_asian_width(character) in "WF" or ord(character) > 0xFFFF
        used += 13.5 if wide else 12.5 if character in "mwMW@%" else 9.6 if character.isupper() else 8.2
        if used > room:
            return text[: max(1, place - 1)] + "…"
    return text
