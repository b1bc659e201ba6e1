"""Token-budget batches: every row once, longest first, within the budget; right padding by position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siftune.chat.batches import pad_batch, token_batches
from siftune.records.errors import SiftuneError


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_batches(lengths, budget):
    batches = token_batches(lengths, budget)
    order = [row for batch in batches for row in batch]
    assert order == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    for batch, following in zip(batches, [*batches[1:], None], strict=False):
        area = len(batch) * lengths[batch[0]]
        assert area <= budget or len(batch) == 1
        if following:  # no batch could have held one row more
            assert (len(batch) + 1) * lengths[batch[0]] > budget


def test_budget_of_nothing():
    with pytest.raises(SiftuneError, match="0 tokens"):
        token_batches([1], 0)


def test_padding():
    rows = [
        (np.array([5, 6, 7], dtype=np.int32), np.array([False, True, True])),
        (np.array([2], dtype=np.int32), np.array([False])),
    ]
    ids, trained, lengths = pad_batch(rows, pad_id=2)
    assert ids.tolist() == [[5, 6, 7], [2, 2, 2]]
    assert trained.tolist() == [[False, True, True], [False, False, False]]
    assert lengths.tolist() == [3, 1]
    assert (ids.dtype, trained.dtype, lengths.dtype) == (np.int64, np.bool_, np.int64)
    assert pad_batch([], pad_id=0)[0].shape == (0, 0)
