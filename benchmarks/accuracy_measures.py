"""How well one set of features or scores stands for another: error of cosines, agreement of choices, numbers as stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr

from siftune.selection.rules import order_of, scores_of

RULES = ("top", "by-subtask")
"""The rule of LESS, and the default."""
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
SCALE_BYTES = 4
"""int8 keeps one fp32 scale a row."""


class Question(NamedTuple):
    """A target among the target rows: which rows are its, and their subtasks."""

    name: str
    columns: list[int]
    subtask_V: list[str]


def cosine_error(features_N_D: np.ndarray, exact_N_N: np.ndarray) -> float:
    """Root mean square of the difference to exact cosines, over all pairs of two unlike rows. Rows are of unit length."""
    apart = np.triu_indices(len(features_N_D), 1)
    return float(np.sqrt(np.mean(np.square((features_N_D @ features_N_D.T - exact_N_N)[apart]))))


def agreement(
    influence_N_V: np.ndarray, true_N_V: np.ndarray, questions: Sequence[Question]
) -> dict[str, dict[str, float]]:
    """For each rule: Spearman of the whole order and the part of the best 5 % that is the same, means over targets."""
    found: dict[str, dict[str, float]] = {}
    for rule in RULES:
        pairs = [
            (_order(influence_N_V, question, rule), _order(true_N_V, question, rule))
            for question in questions
        ]
        found[rule] = {
            "spearman": round(fmean(_spearman(one, other) for one, other in pairs), 4),
            "overlap": round(fmean(_overlap(one, other) for one, other in pairs), 4),
        }
    return found


def mean_agreement(several: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """The mean of several agreements, number by number."""
    return {
        rule: {what: round(fmean(one[rule][what] for one in several), 4) for what in several[0][rule]}
        for rule in several[0]
    }


def stored(features_N_D: np.ndarray, dtype: str) -> np.ndarray:
    """Features (fp32) as they come back from a store of that dtype, fp32 again. int8: whole numbers of a 127th of the row's largest."""
    if dtype == "int8":
        scale_N = np.abs(features_N_D).max(axis=1, keepdims=True) / 127
        return np.round(features_N_D / scale_N).astype(np.int8).astype(np.float32) * scale_N
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    return torch.from_numpy(features_N_D).to(kind).float().numpy()


def bytes_per_row(n_features: int, dtype: str) -> int:
    """What a pool row's feature takes on disk under one checkpoint."""
    return n_features * BYTES[dtype] + (SCALE_BYTES if dtype == "int8" else 0)


def _order(influence_N_V: np.ndarray, question: Question, rule: Any) -> np.ndarray:
    mine_N_V = influence_N_V[:, question.columns]
    return order_of(
        scores_of(mine_N_V, question.subtask_V, rule), mine_N_V, rule, np.ones(len(mine_N_V), bool)
    )


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    return float(spearmanr(np.argsort(one), np.argsort(other)).statistic)


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    n = max(1, len(one) * 5 // 100)
    return len(set(one[:n].tolist()) & set(other[:n].tolist())) / n
