"""Rows of unlike length into batches of like length, by a budget of padded tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from siftune.records.errors import SiftuneError


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Row numbers in batches, longest rows first.

    A batch's padded area, rows × its longest row, is at most `budget` tokens; a row longer than that goes alone.
    Equal lengths keep their order, so the batches depend on `lengths` and `budget` alone.
    """
    if budget < 1:
        raise SiftuneError(f"{budget} tokens a batch hold no row", todo="Give a budget of at least one token")
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and longest * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
            longest = lengths[row]
    return batches


def pad_batch(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of (token ids [T], trained [T]) as one right-padded batch.

    Returns ids int64 [B, T], trained bool [B, T] (False at padding), lengths int64 [B]. Padding is known by
    position, row < length, never by id: the padding token is often the end-of-turn.
    """
    lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int64)
    shape = (len(rows), int(lengths.max(initial=0)))
    ids_B_T = np.full(shape, pad_id, dtype=np.int64)
    trained_B_T = np.zeros(shape, dtype=bool)
    for b, (ids, trained) in enumerate(rows):
        ids_B_T[b, : len(ids)] = ids
        trained_B_T[b, : len(ids)] = trained
    return ids_B_T, trained_B_T, lengths
