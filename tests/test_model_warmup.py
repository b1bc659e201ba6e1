"""The warm-up: goes on after a cut with the same bytes, its seed counts, its batches don't depend on the micro-batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_helpers import tiny_model
from model_training import random_rows
from siftune.model.checkpoint import Checkpoint
from siftune.model.lora import adapter_tensors
from siftune.model.warmup import LoraSettings, default_batch, warm_up, warmup_rows
from siftune.records.errors import SiftuneError
from siftune.records.files import sha256_of

ROWS = random_rows(18)
LORA = LoraSettings(rank=4, alpha=8.0, dropout=0.1)


def _train(out: Path, **changes: Any) -> list[Checkpoint]:
    settings: dict[str, Any] = {"seed": 0, "epochs": 3, "batch": 6, "learning_rate": 1e-2, "lora": LORA}
    return warm_up(changes.pop("base", tiny_model("llama")), ROWS, out, **(settings | changes))


def _bytes(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): sha256_of(path) for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uncut") / "checkpoints"
    _train(out)
    return out


def test_one_checkpoint_an_epoch_and_weights_by_mean_rate(uncut: Path) -> None:
    found = _train(uncut)  # a second call finds the first one's
    assert [(c.number, c.of, c.step) for c in found] == [(1, 3, 3), (2, 3, 6), (3, 3, 9)]
    # one warm-up step of nine, so the rates are 0, 8/8, 7/8, …, 1/8 of the peak
    means = np.array([(0 + 8 + 7) / 24, (6 + 5 + 4) / 24, (3 + 2 + 1) / 24]) * 1e-2
    np.testing.assert_allclose([c.mean_learning_rate for c in found], means)
    np.testing.assert_allclose([c.weight for c in found], means / means.sum())
    assert {path.name for path in uncut.iterdir()} == {"1", "2", "3"}


def test_goes_on_from_the_last_whole_epoch_with_the_same_bytes(uncut: Path, tmp_path: Path) -> None:
    class CutError(RuntimeError):
        pass

    for last in (4, 8):  # in the second and in the third epoch

        def cut(step: int, total: int, loss: float, rate: float, last: int = last) -> None:
            if step == last:
                raise CutError

        with pytest.raises(CutError):
            _train(tmp_path / "checkpoints", on_progress=cut)
    torn = tmp_path / "checkpoints" / ".trainer" / "checkpoint-9"
    torn.mkdir()  # as a kill in mid-save leaves it
    (torn / "trainer_state.json").write_text("{")
    steps: list[int] = []
    _train(tmp_path / "checkpoints", on_progress=lambda step, *_: steps.append(step))
    assert steps == [7, 8, 9]
    assert _bytes(tmp_path / "checkpoints") == _bytes(uncut)


def test_killed_process_goes_on_with_the_same_bytes(uncut: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from test_model_warmup import _train\n"
        "kill = lambda step, *_: os.kill(os.getpid(), signal.SIGKILL) if step == 7 else None\n"
        "_train(Path(sys.argv[1]), on_progress=kill)\n"
    )
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(tests.parent / "src")}
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "checkpoints"), str(tests)],
        env=environment,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    _train(tmp_path / "checkpoints")
    assert _bytes(tmp_path / "checkpoints") == _bytes(uncut)


def test_seed_changes_the_first_weights_and_the_order(tmp_path: Path) -> None:
    first_losses: dict[int, list[float]] = {}
    for seed in (0, 1, 2**62):
        losses = first_losses.setdefault(seed, [])
        _train(
            tmp_path / str(seed) / "checkpoints",
            seed=seed,
            epochs=1,
            learning_rate=1e-30,  # B stays 0, so a loss depends on the rows of the batch alone
            lora=LoraSettings(rank=4, alpha=8.0),
            on_progress=lambda step, total, loss, rate, losses=losses: losses.append(loss),
        )
    adapters = [adapter_tensors(tmp_path / str(seed) / "checkpoints" / "1") for seed in first_losses]
    name = next(name for name in adapters[0] if "lora_A" in name)
    assert len({tuple(adapter[name].flatten().tolist()) for adapter in adapters}) == 3
    assert len({tuple(losses) for losses in first_losses.values()}) == 3


def _without_dropout(arch: str) -> Any:
    base = tiny_model(arch)
    for module in base.modules():  # GPT-2 has its own, on while it is trained
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return base


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_batch_counts_tokens_whatever_the_micro_batch_and_checkpointing(arch: str, tmp_path: Path) -> None:
    whole, small, checkpointed = (
        _train(
            tmp_path / name / "checkpoints",
            base=_without_dropout(arch),
            epochs=1,
            lora=LoraSettings(rank=4, alpha=8.0),
            **more,
        )
        for name, more in {
            "whole": {},
            "small": {"micro_batch": 2},
            "checkpointed": {"gradient_checkpointing": True},
        }.items()
    )
    for other in (small, checkpointed):
        for name, moment in whole[0].exp_avg.items():
            torch.testing.assert_close(other[0].exp_avg[name], moment, rtol=1e-3, atol=1e-6)


def test_checkpointing_of_a_16_bit_model_changes_nothing(tmp_path: Path) -> None:
    found = [
        _train(
            tmp_path / str(on) / "checkpoints",
            base=tiny_model("llama").to(torch.bfloat16),
            epochs=1,
            lora=LoraSettings(rank=4, alpha=8.0),
            gradient_checkpointing=on,
        )
        for on in (False, True)
    ]
    for name, moment in found[0][0].exp_avg.items():
        torch.testing.assert_close(found[1][0].exp_avg[name], moment)


def test_loss_is_the_mean_over_trained_tokens(tmp_path: Path) -> None:
    seen: list[float] = []
    _train(
        tmp_path / "checkpoints",
        epochs=1,
        batch=18,
        on_progress=lambda step, total, loss, rate: seen.append(loss),
    )
    model, losses = tiny_model("llama"), []
    for ids, trained in ROWS:  # the plain slow way, one row at a time, B = 0
        logits = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].log_softmax(-1)
        losses += [-logits[t - 1, ids[t]].item() for t in range(1, len(ids)) if trained[t]]
    assert seen[0] == pytest.approx(np.mean(losses), rel=1e-5)


def test_base_is_as_it_was(tmp_path: Path) -> None:
    base = tiny_model("llama")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    _train(tmp_path / "checkpoints", base=base, epochs=1, gradient_checkpointing=True)
    assert list(base.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not base.training
    assert not base.is_gradient_checkpointing
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert not base.get_input_embeddings()(torch.tensor([[3]])).requires_grad


def test_starts_from_an_adapter(uncut: Path, tmp_path: Path) -> None:
    start = uncut / "3"
    found = _train(tmp_path / "checkpoints", epochs=1, learning_rate=1e-30, lora=start)
    expected = adapter_tensors(start)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in adapter_tensors(found[0].path).items())


def test_loss_that_is_no_number_stops_it(tmp_path: Path) -> None:
    base = tiny_model("llama")
    base.lm_head.weight.data.fill_(float("inf"))
    with pytest.raises(SiftuneError, match=r"loss is nan .* at step 1 of 9.*smaller --learning-rate"):
        _train(tmp_path / "checkpoints", base=base)


def test_other_settings_are_refused_by_name(uncut: Path, tmp_path: Path) -> None:
    with pytest.raises(SiftuneError, match="made with other settings"):
        _train(uncut, seed=5)

    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "checkpoints", on_progress=cut)
    with pytest.raises(SiftuneError, match="begun with another learning_rate"):
        _train(tmp_path / "checkpoints", learning_rate=1e-3)


def test_rows_of_the_warm_up() -> None:
    scorable = np.arange(0, 20_000, 2)
    chosen = warmup_rows(scorable, fraction=None, seed=0)
    assert len(chosen) == 500
    assert np.all(np.diff(chosen) > 0)
    assert np.isin(chosen, scorable).all()
    assert not np.array_equal(chosen, warmup_rows(scorable, fraction=None, seed=1))
    assert np.array_equal(chosen, warmup_rows(scorable, fraction=None, seed=0))
    assert len(warmup_rows(scorable[:200], fraction=None, seed=0)) == 128
    assert np.array_equal(warmup_rows(scorable[:50], fraction=None, seed=0), scorable[:50])
    assert len(warmup_rows(scorable, fraction=0.01, seed=0)) == 100
    assert len(warmup_rows(scorable[:3], fraction=0.01, seed=0)) == 1
    with pytest.raises(SiftuneError, match="no row is left"):
        warmup_rows(scorable[:0], fraction=None, seed=0)
    assert [default_batch(n) for n in (1, 64, 160, 2048, 10**6)] == [4, 4, 10, 128, 128]
