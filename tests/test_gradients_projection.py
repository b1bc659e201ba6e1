"""The projection: what it preserves, and that it depends on seed, name and coordinate alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gradient_oracle import projected
from siftune.datastore.manifest import claim
from siftune.gradients.projection import make_projector, rademacher_draw, sketch_draw
from siftune.records.errors import SiftuneError

FIXED = ([840, 7940, 5762], [-1, -1, 1, -1, 1, 1])
FIXED_DENSE = [[1, -1, 1, -1, -1, 1, 1, 1, -1, -1], [1, -1, -1, 1, -1, 1, -1, 1, -1, 1]]


def project(kind: str, parts: dict[str, torch.Tensor], n_features: int, seed: int = 0) -> torch.Tensor:
    projector = make_projector(kind, {n: p.shape[1] for n, p in parts.items()}, n_features, seed)
    sums = projector.sums(len(next(iter(parts.values()))), torch.device("cpu"))
    for name, part in parts.items():
        projector.add(name, part, sums)
    return projector.projected(sums)


@pytest.mark.parametrize("kind", ["sketch", "rademacher"])
def test_cosines_are_kept_within_the_johnson_lindenstrauss_error(kind: str) -> None:
    torch.manual_seed(0)
    n_features, n = 1024, 24
    common = torch.randn(1, 20_000)
    parts = {"a": torch.randn(n, 20_000) + common, "b": torch.randn(n, 3_000) * 3}
    exact = torch.nn.functional.normalize(torch.cat(list(parts.values()), 1))
    got = torch.nn.functional.normalize(project(kind, parts, n_features))
    pairs = np.triu_indices(n, 1)
    error = ((got @ got.T) - (exact @ exact.T))[pairs]
    assert error.square().mean().sqrt() < 1.15 / n_features**0.5


@pytest.mark.parametrize("kind", ["sketch", "rademacher"])
def test_squared_lengths_are_kept(kind: str) -> None:
    torch.manual_seed(1)
    parts = {"a": torch.randn(16, 5_000)}
    ratio = project(kind, parts, 2048).square().sum(1) / parts["a"].square().sum(1)
    assert ratio.mean() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kind", ["sketch", "rademacher"])
def test_order_of_parameters_and_batch_do_not_matter(kind: str) -> None:
    torch.manual_seed(2)
    parts = {"a": torch.randn(5, 700), "b": torch.randn(5, 300)}
    whole = project(kind, parts, 64)
    turned = project(kind, {"b": parts["b"], "a": parts["a"]}, 64)
    one = project(kind, {n: p[3:4] for n, p in parts.items()}, 64)
    torch.testing.assert_close(turned, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one[0], whole[3], rtol=1e-5, atol=1e-5)


def test_seed_and_name_change_the_map_and_size_does_not() -> None:
    start, sign = sketch_draw(3, "x", 100_000, 256)
    again, sign_again = sketch_draw(3, "x", 500, 256)
    assert len(again) == 2  # windows of 256 coordinates
    assert (start[:2] == again).all()
    assert (sign[:500] == sign_again).all()
    for other in (sketch_draw(4, "x", 100_000, 256), sketch_draw(3, "y", 100_000, 256)):
        assert (other[0] != start).mean() > 0.9
        assert 0.45 < (other[1] != sign).mean() < 0.55
    assert set(np.unique(sign)) == {-1, 1}
    assert abs(sign.mean()) < 0.02
    assert (start.min(), start.max()) == pytest.approx((0, 255), abs=5)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 128, 300])
def test_each_coordinate_goes_where_the_formula_says(size: int) -> None:
    torch.manual_seed(3)
    part = torch.randn(2, size, dtype=torch.float64)
    got = project("sketch", {"w": part.float()}, 64, seed=5)
    for row, x in zip(got, part, strict=True):
        np.testing.assert_allclose(row.numpy(), projected("sketch", {"w": x}, 64, 5), atol=1e-5)


def test_channels_that_are_large_in_every_row_are_kept_as_well() -> None:
    """A model's few outlier channels: coordinates a fixed way apart, in many parameters, carry half of the length."""
    generator = torch.Generator().manual_seed(0)
    n_features, n, rank, wide = 1024, 24, 16, 576
    parts = {}
    for k in range(40):
        part = torch.randn(n, rank, wide, generator=generator)
        part[:, :, 7] *= wide**0.5
        parts[f"layer.{k}"] = part.flatten(1)
    exact = torch.nn.functional.normalize(torch.cat(list(parts.values()), 1))
    pairs = np.triu_indices(n, 1)
    squares = []
    for seed in range(4):
        got = torch.nn.functional.normalize(project("sketch", parts, n_features, seed))
        squares.append(((got @ got.T) - (exact @ exact.T))[pairs].square().mean())
    assert torch.stack(squares).mean().sqrt() < 1.15 / n_features**0.5


def test_the_map_is_the_same_on_any_machine() -> None:
    """Fixed figures: a store made today is readable for ever."""
    start, sign = sketch_draw(0, "w", 20_000, 8192)
    assert (start.tolist(), sign[:6].tolist()) == FIXED
    assert rademacher_draw(0, "w", 5, 2, 10).astype(int).tolist() == FIXED_DENSE


def test_a_store_of_the_former_map_is_refused(tmp_path: Path) -> None:
    now = make_projector("sketch", {"w": 9}, 64, 0).describe()
    former = {key: value for key, value in now.items() if key != "projection_map"}
    claim(tmp_path / "manifest.json", former, "the datastore", {})
    with pytest.raises(SiftuneError, match="projection_map none, can't go on with windows"):
        claim(tmp_path / "manifest.json", now, "the datastore", {})


def test_dense_signs_do_not_depend_on_chunks() -> None:
    whole = rademacher_draw(1, "x", 0, 40, 300)
    parts = np.concatenate([rademacher_draw(1, "x", s, 8, 300) for s in range(0, 40, 8)])
    assert (whole == parts).all()
    assert abs(whole.mean()) < 0.05
