"""Products with stored features, in whatever dtype, against the plain product in fp64."""

from __future__ import annotations

import pytest
import torch

from siftune.datastore import asking
from siftune.datastore.asking import Question
from siftune.datastore.quantise import quantised, restored
from siftune.records.recipe import StoreDtype


@pytest.mark.parametrize("store_dtype", ["fp32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("columns", [7, 1000])
def test_influence_is_the_product_of_what_is_stored(
    store_dtype: StoreDtype, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the rounding of fp32: 8-bit rows go another way, which must not cost digits; in pieces or at once."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(300, 1000, generator=generator), dim=1)[:, :columns]
    features[4], features[9] = torch.nan, 0.0
    asked = torch.nn.functional.normalize(torch.randn(5, columns, generator=generator) ** 3, dim=1)
    asked[2] = 0.0
    tensors = quantised(features, store_dtype)
    expected = restored(tensors).double() @ asked.double().T
    for pieces in (10**6, 64):
        monkeypatch.setattr(asking, "EXACT_COLUMNS", pieces)
        found = Question(asked).influence(tensors)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-7, equal_nan=True)
    assert bool(found[4].isnan().all())
    assert bool((found[9] == 0).all())


def test_whole_numbers_do_not_overflow() -> None:
    """The largest numbers over the most columns that one product takes."""
    columns = asking.EXACT_COLUMNS
    tensors = {"features": torch.full((2, columns), 127, dtype=torch.int8), "scale": torch.ones(2)}
    found = Question(torch.ones(1, columns)).influence(tensors)
    torch.testing.assert_close(found, torch.full((2, 1), 127.0 * columns))
