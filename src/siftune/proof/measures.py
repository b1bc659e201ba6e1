"""What is measured on each test row: the words for it, which way is better, and how a value is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from siftune.proof.evaluate import RowScore


@dataclass(frozen=True)
class DocumentScore:
    """One document of a task of the lm-eval harness: the values of its metrics by name (harness.py)."""

    id: str
    values: dict[str, float]


Score = RowScore | DocumentScore


@dataclass(frozen=True)
class Measure:
    """Something measured on each test row: its name in files, its words, whether more is better, and the unit."""

    name: str
    words: str
    more_is_better: bool
    unit: Literal["nats", "share", "number"]

    def value(self, score: Score) -> float | None:
        """Its value on a row; None: not measured there."""
        if isinstance(score, DocumentScore):
            return score.values.get(self.name)
        value = getattr(score, "correct" if self.name == "accuracy" else self.name)
        return None if value is None else float(value)

    def show(self, value: float, digits: int = 3) -> str:
        """A value as people read it: shares in per cent. digits: after the point, of the value itself"""
        text = f"{100 * value:.{digits - 2}f}" if self.unit == "share" else f"{value:.{digits}f}"
        text = text.lstrip("-") if not float(text) else text  # no minus zero
        return f"{text} %" if self.unit == "share" else text


MEASURES = (
    Measure("loss", "loss on the gold answer", False, "nats"),
    Measure("choice_loss", "loss among the options", False, "nats"),
    Measure("accuracy", "accuracy among the options", True, "share"),
    Measure("exact", "exact match", True, "share"),
    Measure("f1", "token F1", True, "share"),
)
"""What siftune's own test rows have. The first is what the sentence of a comparison tells."""


def measured(arms: Sequence[dict[str, Any]]) -> list[Measure]:
    """The measures of a table's arms (comparison.py), in their order."""
    found: dict[str, Measure] = {}
    for arm in arms:
        for name, entry in arm["measures"].items():
            found.setdefault(name, Measure(name, entry["words"], entry["more_is_better"], entry["unit"]))
    return list(found.values())
