"""Adoption of what the real Trainer writes: every moment under its own parameter, weights from the log, refusals by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from model_helpers import tiny_model
from model_training import random_rows, trained_by_trainer
from siftune.model.adopt import adopt
from siftune.model.checkpoint import list_checkpoints, read_checkpoint
from siftune.model.lora import adapter_on, adapter_tensors, is_lora_weight
from siftune.model.optimizer_state import parameter_orders, read_optimizer_state
from siftune.model.probe import mean_gradients
from siftune.records.errors import SiftuneError

KINDS: dict[str, dict[str, Any]] = {
    "lora alone": {},
    "biases of the lora layers": {"lora": {"bias": "lora_only"}},
    "all biases": {"lora": {"bias": "all"}},
    "modules_to_save": {"lora": {"modules_to_save": ["lm_head"]}},
    "all biases and modules_to_save": {"lora": {"bias": "all", "modules_to_save": ["lm_head", "norm"]}},
    "rslora": {"lora": {"use_rslora": True}},
    "gpt2": {"arch": "gpt2"},
    "one group": {
        "optimizer": lambda model: torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=1e-2
        ),
        "lora": {"bias": "all"},
    },
    "LoRA+": {
        "optimizer": lambda model: create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=4.0
        ),
        "lora": {"bias": "all"},
    },
}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """kind -> (output folder, live moments by step), each trained once."""
    made: dict[str, Any] = {}

    def get(kind: str) -> tuple[Path, dict[int, Any]]:
        if kind not in made:
            settings = dict(KINDS[kind])
            if settings.get("arch") == "gpt2":
                settings["lora"] = {"fan_in_fan_out": True}
            folder = tmp_path_factory.mktemp("training")
            made[kind] = folder, trained_by_trainer(folder, **settings)
        return made[kind]

    return get


def _file_name(name: str) -> str:
    return name.replace(".default.", ".")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gpt2"])
def test_every_moment_lands_under_the_parameter_it_belongs_to(
    kind: str, trainings: Any, tmp_path: Path
) -> None:
    folder, live = trainings(kind)
    adopted = adopt(folder, tmp_path / "checkpoints", base=tiny_model("qwen2"))
    assert [checkpoint.step for checkpoint in adopted.checkpoints] == [2, 4] == sorted(live)
    for checkpoint in adopted.checkpoints:
        expected = {_file_name(n): m for n, m in live[checkpoint.step].items() if is_lora_weight(n)}
        assert checkpoint.exp_avg.keys() == checkpoint.exp_avg_sq.keys() == expected.keys()
        assert len(expected) == 12
        for name, (exp_avg, exp_avg_sq) in expected.items():
            assert torch.equal(checkpoint.exp_avg[name], exp_avg), name
            assert torch.equal(checkpoint.exp_avg_sq[name], exp_avg_sq), name
            assert exp_avg_sq.max() > 0
        assert checkpoint.betas == (0.9, 0.999)
        assert checkpoint.eps == 1e-8


def test_naive_order_gives_wrong_tensors_of_the_right_shape(trainings: Any) -> None:
    """Why the rule matters: plain named_parameters order, where there are biases, puts moments under wrong names."""
    folder, live = trainings("all biases")
    checkpoint = folder / "checkpoint-4"
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    with adapter_on(tiny_model("qwen2"), checkpoint, trainable=True) as model:
        naive = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        orders = parameter_orders(model)
    assert sum(map(len, orders["Trainer: decay group, then no-decay group"])) == len(naive) == len(state)
    right_shape_wrong_tensor = [
        name
        for number, name in enumerate(naive)
        if is_lora_weight(name)
        and state[number]["exp_avg"].shape == live[4][name][0].shape
        and not torch.equal(state[number]["exp_avg"], live[4][name][0])
    ]
    assert right_shape_wrong_tensor


def test_what_the_adapter_sets_besides_lora_is_applied_and_said(trainings: Any, tmp_path: Path) -> None:
    folder, _ = trainings("all biases and modules_to_save")
    base = tiny_model("qwen2")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    adopted = adopt(folder, tmp_path / "checkpoints", base=base)
    assert any("6 biases and 6 other weights" in note and "applied" in note for note in adopted.notes)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert list(base.state_dict()) == list(before)
    written, source = adapter_tensors(adopted.checkpoints[1].path), adapter_tensors(folder / "checkpoint-4")
    assert written.keys() == source.keys()
    assert all(torch.equal(written[name], source[name]) for name in source)
    ids = torch.arange(3, 20)[None]
    plain = base(ids).logits
    with adapter_on(base, adopted.checkpoints[1].path, trainable=False) as model:
        assert not torch.allclose(model(ids).logits, plain)


def test_weights_are_mean_logged_rates_and_sum_to_one(trainings: Any, tmp_path: Path) -> None:
    folder, _ = trainings("lora alone")
    adopted = adopt(folder, tmp_path / "run" / "checkpoints", base=tiny_model("qwen2"))
    # linear decay over 4 steps from 1e-2, the rate of each step logged before the step: 1, .75 | .5, .25
    assert [c.mean_learning_rate for c in adopted.checkpoints] == pytest.approx([8.75e-3, 3.75e-3])
    assert [c.weight for c in adopted.checkpoints] == pytest.approx([0.7, 0.3])
    assert list_checkpoints(tmp_path / "run") == adopted.checkpoints
    assert adopted.template_dir is None
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    assert list_checkpoints(tmp_path / "run") == []  # cut off: not all are there, so none is used


def test_given_weights_and_a_single_checkpoint_folder(trainings: Any, tmp_path: Path) -> None:
    folder, _ = trainings("lora alone")
    adopted = adopt(folder, tmp_path / "a", base=tiny_model("qwen2"), weights=[3.0, 1.0])
    assert [(c.weight, c.mean_learning_rate) for c in adopted.checkpoints] == [(0.75, None), (0.25, None)]
    assert adopted.checkpoints[0].origin["weight_from"] == "--weights"
    single = adopt(folder / "checkpoint-4", tmp_path / "b", base=tiny_model("qwen2"))
    assert [(c.step, c.weight) for c in single.checkpoints] == [(4, 1.0)]


def test_gradients_probe_the_order_and_are_recorded(trainings: Any, tmp_path: Path) -> None:
    folder, _ = trainings("lora alone")
    batches = [(ids[None], trained[None]) for ids, trained in random_rows(8)]
    adopted = adopt(
        folder,
        tmp_path / "c",
        base=tiny_model("qwen2"),
        gradients=lambda model: mean_gradients(model, batches),
    )
    figures = read_checkpoint(adopted.checkpoints[1].path).origin["order_probe"]
    assert {tuple(figure["shape"]) for figure in figures} >= {(4, 32), (32, 4)}


def _edit_state(change: Any) -> Any:
    def edit(folder: Path) -> None:
        whole = torch.load(folder / "optimizer.pt", weights_only=True)
        change(whole)
        torch.save(whole, folder / "optimizer.pt")

    return edit


def _every(change: Any) -> Any:
    return _edit_state(lambda whole: [change(entry) for entry in whole["state"].values()])


def _rename(old: str, new: str) -> Any:
    return _every(lambda entry: entry.update({new: entry.pop(old)}))


def _edit_log(change: Any) -> Any:
    def edit(folder: Path) -> None:
        path = folder / "trainer_state.json"
        state = json.loads(path.read_text())
        state["log_history"] = change(state["log_history"])
        path.write_text(json.dumps(state))

    return edit


def _sharded(name: str) -> Any:
    def edit(folder: Path) -> None:
        (folder / "optimizer.pt").unlink()
        (folder / name).mkdir()

    return edit


BROKEN: dict[str, tuple[Any, str]] = {
    "no optimizer": (
        lambda folder: (folder / "optimizer.pt").unlink(),
        "holds no optimizer.pt.*save_only_model=False",
    ),
    "deepspeed": (_sharded("global_step4"), "DeepSpeed"),
    "fsdp": (_sharded("optimizer_0"), "FSDP"),
    "no adapter": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        "no LoRA adapter.*full-parameter",
    ),
    "garbage": (lambda folder: (folder / "optimizer.pt").write_bytes(b"garbage"), "cannot be read"),
    "cut off": (
        lambda folder: (folder / "optimizer.pt").write_bytes((folder / "optimizer.pt").read_bytes()[:999]),
        "cannot be read",
    ),
    "adafactor": (_rename("exp_avg_sq", "exp_avg_sq_row"), "Adafactor"),
    "8-bit": (_rename("exp_avg", "state1"), "8-bit"),
    "amsgrad": (_every(lambda e: e.update(max_exp_avg_sq=e["exp_avg_sq"])), "AMSGrad"),
    "sgd": (_every(lambda e: (e.clear(), e.update(momentum_buffer=torch.zeros(1)))), "state of SGD"),
    "lion": (_every(lambda e: e.pop("exp_avg_sq")), r"not the state of Adam \(it keeps exp_avg, step\)"),
    "nothing trained": (_edit_state(lambda w: w["state"].clear()), "took no step"),
    "nan": (_every(lambda e: e["exp_avg"].view(-1)[:1].fill_(torch.nan)), "NaN"),
    "negative v": (_every(lambda e: e["exp_avg_sq"].neg_()), "negative"),
    "uneven steps": (
        _edit_state(lambda w: w["state"][0]["step"].add_(1)),
        "different numbers of steps: 4, 5",
    ),
    "several betas": (_edit_state(lambda w: w["param_groups"][0].update(betas=(0.8, 0.9))), "several betas"),
    "maximize": (_edit_state(lambda w: w["param_groups"][0].update(maximize=True)), "maximize"),
    "one missing": (_edit_state(lambda w: w["state"].pop(3)), "never updated"),
    "shape": (
        _edit_state(lambda w: w["state"][0].update(exp_avg=torch.zeros(3, 3))),
        r"are \(3, 3\), but by the rule",
    ),
    "sizes": (
        _edit_state(lambda w: w["param_groups"][1]["params"].append(w["param_groups"][0]["params"].pop())),
        r"sizes \[11, 1\], which no known rule gives",
    ),
    "sparse log": (
        _edit_log(lambda log: [row for row in log if "learning_rate" not in row]),
        "logs no learning rate.*--weights",
    ),
    "log of zeros": (
        _edit_log(lambda log: [{"step": 4, "learning_rate": 0.0}]),
        "only learning rates of 0.*--weights",
    ),
    "no trainer_state": (
        lambda folder: (folder / "trainer_state.json").unlink(),
        "logs no learning rate.*--weights",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refused_by_name(name: str, trainings: Any, tmp_path: Path) -> None:
    damage, message = BROKEN[name]
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(trainings("lora alone")[0] / "checkpoint-4", folder)
    damage(folder)
    with pytest.raises(SiftuneError, match=message):
        adopt(folder, tmp_path / "checkpoints", base=tiny_model("qwen2"))
    assert not (tmp_path / "checkpoints" / "1").exists()


def test_a_real_adafactor_and_a_real_sgd_run_are_refused_by_name(tmp_path: Path) -> None:
    for optim, name in (("adafactor", "Adafactor"), ("sgd", "no betas as Adam has")):
        trained_by_trainer(tmp_path / optim, optim=optim, num_train_epochs=1)
        with pytest.raises(SiftuneError, match=name):
            adopt(tmp_path / optim, tmp_path / "checkpoints", base=tiny_model("qwen2"))


def test_wrong_places_and_wrong_weights(trainings: Any, tmp_path: Path) -> None:
    folder, _ = trainings("lora alone")
    with pytest.raises(SiftuneError, match="no such folder"):
        adopt(tmp_path / "nowhere", tmp_path / "c", base=tiny_model("qwen2"))
    with pytest.raises(SiftuneError, match="3 weights were given for 2 checkpoints"):
        adopt(folder, tmp_path / "c", base=tiny_model("qwen2"), weights=[1.0, 2.0, 3.0])
    with pytest.raises(SiftuneError, match="cannot be used: 1, -1"):
        adopt(folder, tmp_path / "c", base=tiny_model("qwen2"), weights=[1.0, -1.0])
    with pytest.raises(SiftuneError, match="does not fit this model"):
        adopt(folder, tmp_path / "c", base=tiny_model("gpt2"))


def test_moments_do_not_depend_on_how_they_were_stored(trainings: Any, tmp_path: Path) -> None:
    """A bf16 state (bf16 LoRA weights) is read as fp32."""
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(trainings("lora alone")[0] / "checkpoint-4", folder)
    _every(lambda e: e.update(exp_avg=e["exp_avg"].bfloat16()))(folder)
    with adapter_on(tiny_model("qwen2"), folder, trainable=True) as model:
        state = read_optimizer_state(folder, model)
    assert {tensor.dtype for tensor in state.exp_avg.values()} == {torch.float32}
    assert np.isclose(state.step, 4)
