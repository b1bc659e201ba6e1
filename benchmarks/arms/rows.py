"""The examples that all arms share, as `engine_inputs.py` wrote them: token ids, trained tokens, and the common batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """Rows of the pool, padded on the right. trained[b, t]: token t carries loss."""

    ids_B_T: Tensor
    trained_B_T: Tensor

    def labels(self) -> Tensor:
        return torch.where(self.trained_B_T, self.ids_B_T, -100)


def adapter_folder(job: dict[str, Any]) -> Path:
    """The adapter of the rank that is asked for, with its Adam moments, as Trainer writes them."""
    return Path(job["inputs"]).absolute() / f"trained-{job['rank']}"


def read_rows(job: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(token ids [T], trained [T]) of the first `job["rows"]` examples, begun again where the pool is shorter."""
    pool = json.loads((Path(job["inputs"]) / "rows.json").read_text(encoding="utf-8"))
    rows = [(np.array(row["ids"], np.int32), np.array(row["trained"], bool)) for row in pool]
    return [rows[i % len(rows)] for i in range(job["rows"])]


def batches(job: dict[str, Any]) -> list[Batch]:
    """The rows in batches of like length of at most `job["batch_tokens"]` padded tokens, or of `job["batch"]` rows."""
    rows = sorted(read_rows(job), key=lambda row: -len(row[0]))
    made: list[Batch] = []
    while rows:
        size = job.get("batch") or max(1, job["batch_tokens"] // len(rows[0][0]))
        made.append(_padded(rows[:size]))
        rows = rows[size:]
    return made


def _padded(rows: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    shape = (len(rows), len(rows[0][0]))
    ids, trained = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    for b, (ids_T, trained_T) in enumerate(rows):
        ids[b, : len(ids_T)] = torch.from_numpy(ids_T)
        trained[b, : len(ids_T)] = torch.from_numpy(trained_T)
    return Batch(ids, trained)
