"""How well predicted and measured drops of the target's loss agree over random batches: Spearman's rank correlation.

Summed over checkpoints, the drops of a batch are what LESS means by its influence (a step on the batch at every checkpoint,
arXiv 2402.04333, equation 3); and as the batches are the same at every checkpoint, the sums are one independent point a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from siftune.proof.statistics import spearman_of


@dataclass(frozen=True)
class Agreement:
    """Spearman correlation over batches with its 95 % bootstrap interval; all None where one side never varies, the interval where
    the order is perfect: draws from it can't say how well it is known."""

    rho: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, x_K: np.ndarray, y_K: np.ndarray) -> Agreement:
        found = spearman_of(x_K, y_K, 0)
        return cls(None, None, None) if found is None else cls(*found)

    @property
    def sign(self) -> int:
        """1 where the interval lies above 0, -1 where below, else 0; that of a perfect order where there is no interval."""
        if self.rho is None:
            return 0
        if self.low is None or self.high is None:
            return 1 if self.rho > 0 else -1
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        if self.rho is None:
            return "-"
        return f"{self.rho:.2f} " + (
            "(no interval)" if self.low is None else f"[{self.low:.2f}, {self.high:.2f}]"
        )


@dataclass(frozen=True)
class Points:
    """What K batches gave at one checkpoint, or summed over all of them (`checkpoint` None).

    learning_rate: of the steps (their mean over checkpoints)
    predicted_K: drop of the target's mean loss to first order (nats a token)
    influence_K: mean influence of the batch's rows on the target's rows as selection uses it, without norms
    measured_K:  the drop after the real step
    by_predicted, by_influence: how each agrees with the measured drops
    """

    checkpoint: int | None
    learning_rate: float
    predicted_K: list[float]
    influence_K: list[float]
    measured_K: list[float]
    by_predicted: Agreement
    by_influence: Agreement
    mean_predicted: float
    mean_measured: float

    @classmethod
    def of(
        cls,
        checkpoint: int | None,
        learning_rate: float,
        predicted_K: np.ndarray,
        influence_K: np.ndarray,
        measured_K: np.ndarray,
    ) -> Points:
        return cls(
            checkpoint,
            learning_rate,
            predicted_K.tolist(),
            influence_K.tolist(),
            measured_K.tolist(),
            Agreement.of(predicted_K, measured_K),
            Agreement.of(influence_K, measured_K),
            float(predicted_K.mean()),
            float(measured_K.mean()),
        )

    @classmethod
    def summed(cls, parts: Sequence[Points], weight_C: Sequence[float]) -> Points:
        """Over all checkpoints: sums of drops, and of influence by the checkpoints' weights."""
        predicted_C_K = np.array([part.predicted_K for part in parts])
        influence_C_K = np.array([part.influence_K for part in parts])
        measured_C_K = np.array([part.measured_K for part in parts])
        return cls.of(
            None,
            float(np.mean([part.learning_rate for part in parts])),
            predicted_C_K.sum(axis=0),
            np.array(weight_C) @ influence_C_K,
            measured_C_K.sum(axis=0),
        )


@dataclass(frozen=True)
class TargetCheck:
    """One target: its points at each checkpoint and over all. The loss was measured on `rows` of its `of_rows` rows."""

    name: str
    rows: int
    of_rows: int
    checkpoints: list[Points]
    overall: Points

    @property
    def sentence(self) -> str:
        """The finding in words."""
        found, n_batches = self.overall.by_predicted, len(self.overall.measured_K)
        numbers = [points.checkpoint for points in self.checkpoints]
        many = len(numbers) > 1
        over = f"{n_batches} batches" + (
            f", summed over {len(numbers)} checkpoints" if many else f" at checkpoint {numbers[0]}"
        )
        if found.rho is None:
            return f"{self.name}: nothing can be said, the drops of all {over} are equal"
        verdict = {
            1: "batches rank alike by predicted and by measured drop",
            0: "no significant agreement of the orders by predicted and by measured drop",
            -1: "batches rank the other way round by predicted and by measured drop",
        }[found.sign]
        weak = [str(points.checkpoint) for points in self.checkpoints if points.by_predicted.sign < 1]
        but = f"; no significant agreement at checkpoint {', '.join(weak)} alone" if many and weak else ""
        return f"{self.name}: {verdict}, Spearman {found} over {over}{but}"
