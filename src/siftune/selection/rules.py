"""Rules: how influence becomes an order of the pool. Best first, ties by pool row, rows without a score nowhere.

top          by score: the max over subtasks of the mean over the subtask's target rows (LESS)
mean         by the mean over all target rows
round-robin  target rows take turns, each taking its best row not yet taken (arXiv 2602.14696); `score` stays that of `top`
by-subtask   the same, but turns go through the subtasks: the first target row of each, then the second of each, and so on

With more target rows than rows to choose, `round-robin` serves the first target rows of the file only, `by-subtask` a part
of every subtask. Without subtasks they are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from siftune.records.recipe import Rule


class Scores(NamedTuple):
    """What a method says of every pool row: `score_N` (NaN: none), and where it has targets, the means per subtask.

    subtasks:  names, in order of first appearance
    mean_N_S:  mean influence on each subtask's target rows
    turn_V:    target rows in the order in which they take turns
    """

    score_N: np.ndarray
    subtasks: list[str]
    mean_N_S: np.ndarray
    turn_V: np.ndarray

    def best_subtask(self) -> list[str | None]:
        """The subtask each row serves most; None where it has no score or there are no subtasks."""
        if not self.subtasks:
            return [None] * len(self.score_N)
        best_N = np.argmax(np.nan_to_num(self.mean_N_S, nan=-np.inf), axis=1)
        return [None if np.isnan(s) else self.subtasks[b] for s, b in zip(self.score_N, best_N, strict=True)]


def scores_of(influence_N_V: np.ndarray, subtask_V: Sequence[str], rule: Rule) -> Scores:
    """Scores of a rule. Subtasks may have any names, sizes and order."""
    subtasks = list(dict.fromkeys(subtask_V))
    names_V = np.array(subtask_V)
    mean_N_S = np.stack([influence_N_V[:, names_V == name].mean(axis=1) for name in subtasks], axis=1)
    score_N = influence_N_V.mean(axis=1) if rule == "mean" else mean_N_S.max(axis=1)
    turn_V = _through_subtasks(names_V, subtasks) if rule == "by-subtask" else np.arange(len(names_V))
    return Scores(score_N, subtasks, mean_N_S, turn_V)


def scores_alone(score_N: np.ndarray) -> Scores:
    """Scores of a method that has no target rows, or none that a rule looks at."""
    return Scores(score_N, [], np.empty((len(score_N), 0)), np.empty(0, dtype=np.int64))


def _through_subtasks(names_V: np.ndarray, subtasks: Sequence[str]) -> np.ndarray:
    """Target rows by their place inside their subtask, then by subtask."""
    place_V = np.empty(len(names_V), dtype=np.int64)
    subtask_V = np.empty(len(names_V), dtype=np.int64)
    for s, name in enumerate(subtasks):
        rows = np.flatnonzero(names_V == name)
        place_V[rows], subtask_V[rows] = np.arange(len(rows)), s
    return np.lexsort((subtask_V, place_V))


def order_of(scores: Scores, influence_N_V: np.ndarray | None, rule: Rule, may_N: np.ndarray) -> np.ndarray:
    """Pool rows with a score, best first: those that may be chosen (`may_N`) by the rule, then the others by score.

    influence_N_V: needed where target rows take turns; a method without target rows (None) is ordered by score
    """
    scored_N = ~np.isnan(scores.score_N)
    rows, others = np.flatnonzero(scored_N & may_N), np.flatnonzero(scored_N & ~may_N)
    if rule in ("round-robin", "by-subtask") and influence_N_V is not None:
        first = rows[round_robin(influence_N_V[rows][:, scores.turn_V])]
    else:
        first = rows[np.argsort(-scores.score_N[rows], kind="stable")]
    return np.concatenate([first, others[np.argsort(-scores.score_N[others], kind="stable")]])


def round_robin(influence_N_V: np.ndarray) -> np.ndarray:
    """All rows in the order taken: turn k belongs to column k mod V, which takes its best row that is left."""
    n_rows, n_targets = influence_N_V.shape
    taken_N = np.zeros(n_rows, dtype=bool)
    order_N = np.empty(n_rows, dtype=np.int64)
    queues = [_Queue(influence_N_V[:, v], taken_N) for v in range(n_targets)]
    for turn in range(n_rows):
        row = queues[turn % n_targets].best_left()
        taken_N[row] = True
        order_N[turn] = row
    return order_N


class _Queue:
    """A target row's preferences, best first; rows that are taken are passed over, many at a time."""

    CHUNK = 4096

    def __init__(self, influence_N: np.ndarray, taken_N: np.ndarray):
        self.order_N = np.argsort(-influence_N, kind="stable").astype(np.int32)
        self.taken_N, self.next_chunk = taken_N, 0
        self.waiting: list[int] = []

    def best_left(self) -> int:
        while True:
            while self.waiting:
                row = self.waiting.pop()
                if not self.taken_N[row]:
                    return row
            chunk = self.order_N[self.next_chunk : self.next_chunk + self.CHUNK]
            self.next_chunk += self.CHUNK
            self.waiting = chunk[~self.taken_N[chunk]][::-1].tolist()
