"""The probe for a wrong order: the assignment is optimal, the true order passes, shifted and permuted ones are refused."""

from __future__ import annotations

import copy
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import model_training
from model_helpers import tiny_config, tiny_model
from model_training import random_rows, trained_by_trainer
from siftune.model import probe
from siftune.model.lora import adapter_on, add_lora, lora_parameters
from siftune.model.optimizer_state import read_optimizer_state
from siftune.model.probe import best_assignment, check_order, mean_gradients, order_figures
from siftune.model.warmup import LoraSettings, warm_up
from siftune.records.errors import SiftuneError


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_assignment_is_the_best_of_all_permutations(n: int, seed: int) -> None:
    gain = np.random.default_rng(seed).normal(size=(n, n))
    found = best_assignment(gain)
    assert sorted(found) == list(range(n))
    best = max(sum(gain[i, p[i]] for i in range(n)) for p in permutations(range(n)))
    assert gain[np.arange(n), found].sum() == pytest.approx(best)


def test_assignment_undoes_a_permutation_of_many() -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(160)
    gain = rng.random((160, 160)) * 0.5
    gain[np.arange(160), order] = 0.6
    assert np.array_equal(best_assignment(gain), order)


def test_mean_gradients_against_one_row_at_a_time() -> None:
    model = add_lora(tiny_model("llama"), rank=4, alpha=8.0, dropout=0.5, targets=("auto",), seed=0)
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter.normal_(0, 0.1)
    rows = random_rows(5)
    found = mean_gradients(model, [_padded(rows[:3]), _padded(rows[3:])])
    total, tokens = 0, 0
    for ids, trained in rows:
        logits = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].log_softmax(-1)
        picked = [logits[t - 1, ids[t]] for t in range(1, len(ids)) if trained[t]]
        total, tokens = total - sum(picked), tokens + len(picked)
    (total / tokens).backward()
    for name, parameter in lora_parameters(model).items():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)


def _padded(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    longest = max(len(ids) for ids, _ in rows)
    ids, trained = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), bool)
    for i, (row, mask) in enumerate(rows):
        ids[i, : len(row)], trained[i, : len(row)] = row, mask
    return ids, trained


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(exp_avg, mean gradients of half the rows, which are noise, so no other rows would do) after a real warm-up."""
    base, out = tiny_model("llama"), tmp_path_factory.mktemp("probe") / "checkpoints"
    lora = LoraSettings(rank=4, alpha=8.0)
    found = warm_up(base, random_rows(64), out, seed=0, epochs=2, batch=8, learning_rate=1e-2, lora=lora)[-1]
    with adapter_on(base, found.path, trainable=True) as model:
        gradients = mean_gradients(model, [_padded(random_rows(32))])
    return found.exp_avg, gradients


def _reordered(exp_avg: dict[str, torch.Tensor], seed: int | None) -> dict[str, torch.Tensor]:
    """Moments under another tensor's name, within each shape: shifted by one, or permuted (seed) without a fixed point."""
    result = {}
    for shape in {tensor.shape for tensor in exp_avg.values()}:
        names = [name for name in exp_avg if exp_avg[name].shape == shape]
        order = np.arange(len(names))
        while seed is not None and (order == np.arange(len(names))).any():
            order = np.random.default_rng(seed).permutation(len(names))
            seed += 1
        order = np.roll(order, 1) if seed is None else order
        result |= {name: exp_avg[names[i]] for name, i in zip(names, order, strict=True)}
    return result


def test_true_order_passes_and_its_figures_are_told(trained: Any) -> None:
    exp_avg, gradients = trained
    figures = check_order(exp_avg, gradients, "here")
    assert {tuple(figure["shape"]): figure["tensors"] for figure in figures} == {
        (4, 32): 8,
        (32, 4): 4,
        (16, 4): 4,
    }
    for figure in figures:
        assert figure["identity"] > 0.5
        assert figure["best"] - figure["chance"] > figure["noise"]


@pytest.mark.parametrize("seed", [None, 0, 100, 200])
def test_other_orders_are_refused(trained: Any, seed: int | None) -> None:
    exp_avg, gradients = trained
    with pytest.raises(SiftuneError, match="here: Adam's moments are in another order"):
        check_order(_reordered(exp_avg, seed), gradients, "here")


def test_one_swap_is_refused(trained: Any) -> None:
    exp_avg, gradients = trained
    first, second = (name for name in exp_avg if "q_proj.lora_B" in name)
    with pytest.raises(SiftuneError, match=r"of 4 tensors of shape .32, 4., 2 fit another"):
        check_order(exp_avg | {first: exp_avg[second], second: exp_avg[first]}, gradients, "here")


@pytest.fixture(scope="module")
def weak(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(exp_avg as read from a Trainer checkpoint of batches of one with dropout, mean gradients), eight layers."""
    folder = tmp_path_factory.mktemp("probe") / "trained"
    config = tiny_config("llama")
    config.num_hidden_layers = 8
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_training, "tiny_model", lambda _: copy.deepcopy(base))
        arguments = {"per_device_train_batch_size": 1, "learning_rate": 1e-3}
        trained_by_trainer(folder, "llama", lora={"lora_dropout": 0.2}, **arguments)
    with adapter_on(base, folder / "checkpoint-32", trainable=True) as model:
        rows = [(ids[:5], np.ones(5, bool)) for ids, _ in random_rows(16, seed=3)]
        return read_optimizer_state(folder / "checkpoint-32", model).exp_avg, mean_gradients(
            model, [_padded(rows)]
        )


def test_batches_of_one_with_dropout_pass(weak: Any) -> None:
    exp_avg, gradients = weak
    for figure in check_order(exp_avg, gradients, "here"):
        assert figure["fit"] > figure["structure"]
        assert figure["fit"] > 4


@pytest.mark.parametrize("kind", ["shifted", "reversed", "sorted"])
def test_another_order_of_batches_of_one_with_dropout_is_refused(
    weak: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp_avg, gradients = weak
    moved = {}
    for shape in {tensor.shape for tensor in exp_avg.values()}:
        names = [name for name in exp_avg if exp_avg[name].shape == shape]
        other = {"shifted": names[1:] + names[:1], "reversed": names[::-1]}.get(
            kind, sorted(names, key=_by_module)
        )
        moved |= {name: exp_avg[taken] for name, taken in zip(names, other, strict=True)}
    with pytest.raises(SiftuneError, match="here: Adam's moments are in another order"):
        check_order(moved, gradients, "here")
    monkeypatch.setattr(probe, "SIGNAL", np.inf)  # without the first ground: the second one finds it too
    check_order(exp_avg, gradients, "here")
    with pytest.raises(SiftuneError, match="here: Adam's moments are in another order"):
        check_order(moved, gradients, "here")


def _by_module(name: str) -> list[str]:
    return name.split(".")[::-1]


def test_moments_that_resemble_nothing_say_nothing(trained: Any) -> None:
    """Where there is no signal the probe cannot judge, and does not refuse."""
    _, gradients = trained
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        noise = {name: torch.randn(value.shape, generator=generator) for name, value in gradients.items()}
        for figure in check_order(noise, gradients, "here"):
            assert figure["best"] - figure["chance"] < figure["noise"]


def test_random_numbers_have_neither_structure_nor_fit() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        moments, gradients = (
            {str(i): torch.from_numpy(rng.normal(size=(4, 32))) for i in range(24)} for _ in range(2)
        )
        (figure,) = check_order(moments, gradients, "here")
        assert abs(figure["structure"]) < 3
        assert abs(figure["fit"]) < 3


def test_signs_do_not_matter(trained: Any) -> None:
    exp_avg, gradients = trained
    flipped = {name: -value if i % 3 else value for i, (name, value) in enumerate(exp_avg.items())}
    assert order_figures(flipped, gradients) == order_figures(exp_avg, gradients)


def test_no_trained_token_is_an_error(tmp_path: Path) -> None:
    model = add_lora(tiny_model("llama"), rank=4, alpha=8.0, dropout=0.0, targets=("auto",), seed=0)
    with pytest.raises(SiftuneError, match="no trained token"):
        mean_gradients(model, [])
