"""`report.html`: one page without anything from outside. Every value goes through Jinja2's escaping; style and script are allowed by their hash
alone, so nothing that a row of data holds could run."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from siftune.records.text import duration, shown
from siftune.reports.charts import binned, histogram, paired_bars

LEVELS = 5
CHARTS = 4
"""Columns of the composition that get a chart; the others have their table."""


def page_of(facts: Mapping[str, Any], plots: Mapping[str, list[str]]) -> str:
    """The page. plots: a comparison's plots as data addresses, by test."""
    style, script = _resource("page.css"), _resource("page.js")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_resource("page.html.j2"))
    facts = inert(facts)
    return template.render(
        r=facts,
        charts=[_charts(selection) for selection in facts["selections"]],
        plots=plots,
        level=_level,
        breakable=_breakable,
        short=_short,
        duration=duration,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def inert(value: Any) -> Any:
    """The same with characters that don't print written as escapes in every text, names of columns and sources too."""
    if isinstance(value, str):
        return shown(value, keep="\n")
    if isinstance(value, Mapping):
        return {inert(key): inert(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [inert(item) for item in value]
    return value


def _charts(selection: Mapping[str, Any]) -> dict[str, Any]:
    bins = selection["length"]["bins"]
    return {
        "histogram": histogram(selection["scores"]),
        "composition": [
            paired_bars(table["rows"], f"Shares by {table['column']}") if place < CHARTS else None
            for place, table in enumerate(selection["composition"])
        ],
        "length": binned(bins) if len(bins) > 1 else None,
    }


def _level(n: int, subtasks: Mapping[str, Any]) -> int:
    """How dark a cell of the heat map is, 0 to 5, by the square root of its share of the fullest."""
    most = max(max([*row["cells"], row["other"]]) for row in subtasks["rows"])
    return round(LEVELS * (n / most) ** 0.5) if most else 0


def _breakable(name: str) -> Markup:
    """A name that may be broken after its underscores and hyphens."""
    return Markup(re.sub(r"([_/.-])", r"\1<wbr>", str(escape(name))))


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def _resource(name: str) -> str:
    return files("siftune.reports").joinpath(name).read_text(encoding="utf-8")
