"""What work costs, from a few measured batches: arithmetic alone, no model and no files.

    seconds ≈ c · batches + a · rows + b · padded tokens          c, a, b ≥ 0

c is what a pass through the model costs whatever is in it, a what is done once a row (the projection), b what is done for
every token, padding included. They are fitted to the measured batches (least squares of the relative errors) and applied to
the batches that the run will make, which follow from the lengths of the pool's own rows. That attention grows faster than
length is left aside; rows as long as the pool's long ones are among the measured, where time allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

LEAST_ERROR = 0.2
WORTH = 45.0
"""Seconds of work left to one process from which others are started."""
"""A range is never narrower than this part either way: machines have other work too."""


class Load(NamedTuple):
    """Work for a model: batches, rows in them, padded tokens (rows × longest of each batch), those of the largest batch."""

    batches: int
    rows: int
    tokens: int
    largest: int

    @classmethod
    def of(cls, batches: Iterable[Sequence[int]]) -> Load:
        """Of batches given as the lengths of their rows."""
        found = [(len(lengths), len(lengths) * max(lengths)) for lengths in batches if len(lengths)]
        areas = [area for _, area in found]
        return cls(len(found), sum(rows for rows, _ in found), sum(areas), max(areas, default=0))

    def times(self, n: int) -> Load:
        """This n times."""
        return Load(self.batches * n, self.rows * n, self.tokens * n, self.largest if n else 0)


NOTHING = Load(0, 0, 0, 0)


def together(loads: Iterable[Load]) -> Load:
    """The sum of loads."""
    batches, rows, tokens, largest = zip(NOTHING, *loads, strict=True)
    return Load(sum(batches), sum(rows), sum(tokens), max(largest))


class Measured(NamedTuple):
    """One batch that was run: its wall seconds, and the peak of memory so far, in bytes above what was held before."""

    load: Load
    seconds: float
    peak_bytes: int


class Rate(NamedTuple):
    """What a batch, a row and a padded token cost, in seconds.

    error: how far the measured batches are from that, as a part: root mean square of the logarithms of the ratios
    """

    per_batch: float
    per_row: float
    per_token: float
    error: float

    def seconds(self, load: Load) -> float:
        """The estimate for a load."""
        return load.batches * self.per_batch + load.rows * self.per_row + load.tokens * self.per_token


def fit_rate(measured: Sequence[Measured]) -> Rate:
    """Fit as many of the three costs as the measured batches can tell apart; tokens always."""
    loads = np.array([m.load[:3] for m in measured], np.float64)
    seconds = np.array([m.seconds for m in measured])
    several = (loads[:, 1] > 1).any()  # else a row can't be told from a batch
    columns = [2] if len(measured) == 1 else [1, 2] if len(measured) == 2 or not several else [0, 1, 2]
    costs = np.zeros(3)
    costs[columns] = _nonnegative(loads[:, columns] / seconds[:, None], np.ones(len(seconds)))
    ratio = np.maximum(loads @ costs / seconds, 1e-6)
    error = float(np.exp(np.sqrt(np.mean(np.log(ratio) ** 2))) - 1)
    per_batch, per_row, per_token = costs.tolist()
    return Rate(per_batch, per_row, per_token, max(error, LEAST_ERROR))


def peak_bytes(measured: Sequence[Measured], largest: int) -> int:
    """Memory that a batch of `largest` padded tokens takes: a part that is always there and one per token."""
    tokens = np.array([[1.0, m.load.largest] for m in measured])
    columns = [1] if len(measured) == 1 else [0, 1]
    costs = _nonnegative(tokens[:, columns], np.array([float(m.peak_bytes) for m in measured]))
    estimate = float(np.array([1.0, largest])[columns] @ costs)
    return int(max(estimate, *(m.peak_bytes for m in measured if m.load.largest <= largest), 0))


def _nonnegative(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    scale = np.maximum(matrix.max(axis=0), 1e-30)
    return nnls(matrix / scale, values)[0] / scale


@dataclass(frozen=True)
class StagePlan:
    """What is left of one stage.

    stage:  as log.jsonl names it: pool, warmup, datastore, vectors, influence
    what:   the same for people
    rows:   row passes, each checkpoint and epoch counted; `tokens`: with their padding
    low, high:   seconds, the range that the probe's errors leave
    disk_bytes:  what the stage adds to the run directory
    """

    stage: str
    what: str
    rows: int
    tokens: int
    seconds: float
    low: float
    high: float
    disk_bytes: int

    @classmethod
    def at_rate(
        cls, stage: str, what: str, load: Load, rate: Rate, disk: int, setup: float = 0.0
    ) -> StagePlan:
        """A stage that is a load at a rate; `setup`: seconds that come once."""
        seconds, part = rate.seconds(load) + setup, 1 + rate.error
        return cls(stage, what, load.rows, load.tokens, seconds, seconds / part, seconds * part, disk)

    def shared(self, workers: int) -> StagePlan:
        """The same by several processes, as far as it is long enough for others to be started (`pipeline.crew`)."""
        apart = max(0.0, self.seconds - WORTH) * (1 - 1 / workers) / self.seconds if self.seconds else 0.0
        seconds, low, high = (value * (1 - apart) for value in (self.seconds, self.low, self.high))
        return replace(self, seconds=seconds, low=low, high=high)


@dataclass(frozen=True)
class Plan:
    """What is left of a run, and what it will cost. Selections (seconds, and the chosen rows once more) aren't in it.

    pool:         rows, usable rows, tokens and trained tokens of the usable ones
    targets:      target rows by target
    memory_bytes: peak, of the device where that is a GPU, else of the process; None where no model is needed
    disk_free_bytes: where the run is or will be
    price_per_hour:  what an hour of the machine costs, in whatever money
    rests_on:     probe batches and seconds, device, threads, workers, dtype
    """

    method: str
    checkpoints: int
    pool: dict[str, int]
    targets: dict[str, int]
    stages: list[StagePlan]
    memory_bytes: int | None
    disk_free_bytes: int
    price_per_hour: float | None
    rests_on: dict[str, Any]

    @property
    def seconds(self) -> tuple[float, float, float]:
        """All stages together: the estimate, and its range. Errors of stages are taken to point the same way."""
        totals = (sum(getattr(stage, name) for stage in self.stages) for name in ("seconds", "low", "high"))
        estimate, low, high = totals
        return float(estimate), float(low), float(high)

    @property
    def disk_bytes(self) -> int:
        return sum(stage.disk_bytes for stage in self.stages)

    @property
    def price(self) -> tuple[float, float, float] | None:
        """Estimate, low, high: hours × price; None where no price was given."""
        if self.price_per_hour is None:
            return None
        estimate, low, high = (seconds / 3600 * self.price_per_hour for seconds in self.seconds)
        return estimate, low, high

    def as_values(self) -> dict[str, Any]:
        """The plan as JSON values."""
        names = ("estimate", "low", "high")
        return {
            **{key: value for key, value in asdict(self).items() if key != "price_per_hour"},
            "seconds": dict(zip(names, self.seconds, strict=True)),
            "disk_bytes": self.disk_bytes,
            "price_per_hour": self.price_per_hour,
            "price": dict(zip(names, self.price, strict=True)) if self.price else None,
        }
