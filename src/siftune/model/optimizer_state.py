"""Adam's moments out of a Trainer's `optimizer.pt`, which knows its parameters by number only.

The state numbers the parameters group by group. Which parameter a number means depends on how the optimizer was made:

    one group      the trainable parameters in named_parameters order
    two groups     Hugging Face Trainer, TRL, Axolotl: first those with weight decay, then those without
                   (biases and norms), each in named_parameters order
    four groups    LoRA+ (peft `create_loraplus_optimizer`): A and other matrices, embeddings, B, biases and norms

A rule counts only where every group's size and every moment's shape fit it. Tensors of equal shape in a wrong order
pass these checks: that is what `siftune.model.probe` is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.trainer_pt_utils import get_parameter_names

from siftune.model.lora import is_lora_weight, lora_parameters
from siftune.model.torchfile import read_torch_file
from siftune.records.errors import SiftuneError

# transformers 5, Trainer.get_decay_parameter_names
_NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
_KEYS_OF_OTHERS = {
    "max_exp_avg_sq": "AMSGrad",
    "exp_avg_sq_row": "Adafactor",
    "exp_avg_sq_col": "Adafactor",
    "RMS": "Adafactor",
    "absmax1": "8-bit Adam",
    "state1": "8-bit (bitsandbytes) Adam",
    "momentum_buffer": "SGD",
    "exp_avg_diff": "Adan",
}
_RETRAIN = "Train with optim=adamw_torch, or leave out --adopt and let siftune do a warm-up"


@dataclass(frozen=True)
class AdamState:
    """Adam's state for θ: moments by name as in the adapter file (fp32), step taken, betas, eps; `rule` says the order."""

    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    step: int
    betas: tuple[float, float]
    eps: float
    rule: str


def read_optimizer_state(folder: Path, model: PeftModel) -> AdamState:
    """The Adam state of `folder`/optimizer.pt for the LoRA weights of `model`.

    model: the adapter of the same folder, loaded as trainable: what requires a gradient now is what was trained then
    Raises SiftuneError where the file is missing, of another optimizer, or does not fit the model beyond doubt.
    """
    where = str(folder / "optimizer.pt")
    state, groups = _load(folder)
    _check_kind(state, where)
    _check_groups(groups, where)
    if not state:
        raise SiftuneError("holds no moments: the optimizer took no step", where=where, todo=_RETRAIN)
    rule, numbers = _numbers(model, [group["params"] for group in groups], state, where)
    parameters = dict(model.named_parameters())
    of_file = {id(parameter): name for name, parameter in lora_parameters(model).items()}
    exp_avg: dict[str, Tensor] = {}
    exp_avg_sq: dict[str, Tensor] = {}
    steps: set[float] = set()
    for name, number in numbers.items():
        if not is_lora_weight(name):
            continue
        if number not in state:
            raise SiftuneError(
                f"holds no moments for {name}: it was never updated", where=where, todo=_RETRAIN
            )
        entry, key = state[number], of_file[id(parameters[name])]
        exp_avg[key], exp_avg_sq[key] = entry["exp_avg"].float().clone(), entry["exp_avg_sq"].float().clone()
        steps.add(float(entry["step"]))
        if not (torch.isfinite(exp_avg[key]).all() and torch.isfinite(exp_avg_sq[key]).all()):
            raise SiftuneError(
                f"the moments of {name} hold NaN or Inf", where=where, todo="Use an earlier checkpoint"
            )
        if (exp_avg_sq[key] < 0).any():
            raise SiftuneError(f"exp_avg_sq of {name} is negative, so it is none", where=where, todo=_RETRAIN)
    if len(steps) != 1 or min(steps) < 1:
        found = ", ".join(f"{step:g}" for step in sorted(steps))
        raise SiftuneError(
            f"the LoRA weights have taken different numbers of steps: {found}", where=where, todo=_RETRAIN
        )
    order = list(lora_parameters(model))
    return AdamState(
        exp_avg={name: exp_avg[name] for name in order},
        exp_avg_sq={name: exp_avg_sq[name] for name in order},
        step=int(steps.pop()),
        betas=(float(groups[0]["betas"][0]), float(groups[0]["betas"][1])),
        eps=float(groups[0]["eps"]),
        rule=rule,
    )


def parameter_orders(model: nn.Module) -> dict[str, list[list[str]]]:
    """The known ways to put the trainable parameters of `model` into groups: rule -> groups of parameter names."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ndim = {name: parameter.ndim for name, parameter in model.named_parameters()}
    decayed = set(get_parameter_names(model, [nn.LayerNorm], _NO_DECAY))

    def group(wanted: Callable[[str], bool]) -> list[str]:
        return [name for name in names if wanted(name)]

    def second(name: str) -> bool:  # LoRA+ gives B and every vector the higher learning rate
        return "lora_B" in name or ndim[name] == 1

    return {
        "one group, named_parameters order": [names],
        "Trainer: decay group, then no-decay group": [
            group(lambda name: name in decayed),
            group(lambda name: name not in decayed),
        ],
        "LoRA+: A, embeddings, B, no decay": [
            group(lambda name: not second(name)),
            [],
            group(lambda name: second(name) and name in decayed),
            group(lambda name: second(name) and name not in decayed),
        ],
    }


def _load(folder: Path) -> tuple[dict[int, dict[str, Any]], list[dict[str, Any]]]:
    path = folder / "optimizer.pt"
    if not path.is_file():
        if list(folder.glob("global_step*")) or (folder / "zero_to_fp32.py").exists():
            what, todo = (
                "holds a DeepSpeed optimizer state, which is sharded",
                "Train one epoch without DeepSpeed",
            )
        elif list(folder.glob("optimizer_*")) or list(folder.glob("pytorch_model_fsdp*")):
            what, todo = "holds an FSDP optimizer state, which is sharded", "Train one epoch without FSDP"
        else:
            what, todo = (
                "holds no optimizer.pt, so Adam's moments are lost",
                "Train with save_only_model=False",
            )
        raise SiftuneError(
            what, where=str(folder), todo=f"{todo}, or leave out --adopt and let siftune do a warm-up"
        )
    whole = read_torch_file(path)
    if not isinstance(whole, dict) or not whole.keys() >= {"state", "param_groups"}:
        raise SiftuneError("is not the state of an optimizer", where=str(path), todo=_RETRAIN)
    if not isinstance(whole["state"], dict):
        raise SiftuneError("is not the state of an optimizer", where=str(path), todo=_RETRAIN)
    if not all(isinstance(number, int) for number in whole["state"]):
        raise SiftuneError(
            "knows its parameters by name, not by number as Trainer does", where=str(path), todo=_RETRAIN
        )
    state, groups = whole["state"], whole["param_groups"]
    if not all(isinstance(entry, dict) for entry in state.values()) or not _are_groups(groups):
        raise SiftuneError("is not the state of an optimizer", where=str(path), todo=_RETRAIN)
    return state, groups


def _are_groups(groups: Any) -> bool:
    """Parameter groups: dicts that number their parameters."""
    return (
        isinstance(groups, list)
        and bool(groups)
        and all(
            isinstance(group, dict)
            and isinstance(numbers := group.get("params"), list)
            and all(type(number) is int for number in numbers)
            for group in groups
        )
    )


def _check_kind(state: dict[int, dict[str, Any]], where: str) -> None:
    for entry in state.values():
        for key, name in _KEYS_OF_OTHERS.items():
            if key in entry:
                raise SiftuneError(
                    f"is the state of {name}, which is not supported", where=where, todo=_RETRAIN
                )
        if not entry.keys() >= {"step", "exp_avg", "exp_avg_sq"}:
            found = ", ".join(sorted(map(str, entry))) or "nothing"
            raise SiftuneError(f"is not the state of Adam (it keeps {found})", where=where, todo=_RETRAIN)
        for key in ("exp_avg", "exp_avg_sq"):
            moment = entry[key]
            if (
                not isinstance(moment, Tensor)
                or moment.layout != torch.strided
                or not moment.is_floating_point()
            ):
                raise SiftuneError(
                    f"is not the state of Adam ({key} is no tensor of numbers)", where=where, todo=_RETRAIN
                )
        step = entry["step"]
        is_number = step.numel() == 1 if isinstance(step, Tensor) else isinstance(step, (int, float))
        if not is_number or not math.isfinite(float(step)) or not float(step).is_integer():
            raise SiftuneError("has a step that is no whole number", where=where, todo=_RETRAIN)


def _check_groups(groups: list[dict[str, Any]], where: str) -> None:
    for flag in ("amsgrad", "maximize"):
        if any(group.get(flag) for group in groups):
            raise SiftuneError(
                f"is the state of Adam with {flag}, which is not supported", where=where, todo=_RETRAIN
            )
    for key in ("betas", "eps"):
        found = {str(group.get(key)) for group in groups}
        if found == {"None"} or (key == "eps" and not isinstance(groups[0][key], float)):
            raise SiftuneError(
                f"has no {key} as Adam has: another optimizer wrote it", where=where, todo=_RETRAIN
            )
        if len(found) > 1:
            raise SiftuneError(f"has several {key}: {', '.join(sorted(found))}", where=where, todo=_RETRAIN)
    betas, eps = groups[0]["betas"], groups[0]["eps"]
    are_numbers = (
        isinstance(betas, (tuple, list)) and len(betas) == 2 and all(isinstance(b, float) for b in betas)
    )
    if not are_numbers or not all(0 <= beta < 1 for beta in betas) or not 0 <= eps < math.inf:
        raise SiftuneError(
            f"has betas {str(betas)[:60]} and eps {eps}, which Adam can't have", where=where, todo=_RETRAIN
        )


def _numbers(
    model: PeftModel, groups: list[list[int]], state: dict[int, dict[str, Any]], where: str
) -> tuple[str, dict[str, int]]:
    """The one rule that fits the groups' sizes and the moments' shapes, and parameter name -> number under it."""
    orders = parameter_orders(model)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for rule, named in orders.items():
        if [len(names) for names in named] != [len(numbers) for numbers in groups]:
            continue
        pairs = [
            pair
            for names, numbers in zip(named, groups, strict=True)
            for pair in zip(names, numbers, strict=True)
        ]
        wrong = [
            (name, number)
            for name, number in pairs
            if number in state and state[number]["exp_avg"].shape != shapes[name]
        ]
        wrong += [(n, i) for n, i in pairs if i in state and state[i]["exp_avg_sq"].shape != shapes[n]]
        if wrong:
            name, number = wrong[0]
            raise SiftuneError(
                f"the moments of parameter {number} are {tuple(state[number]['exp_avg'].shape)}, but by the rule "
                f"'{rule}' it is {name} of shape {tuple(shapes[name])}",
                where=where,
                todo="Give the model and adapter that this optimizer trained",
            )
        return rule, dict(pairs)
    expected = "; ".join(f"{rule}: {[len(names) for names in named]}" for rule, named in orders.items())
    raise SiftuneError(
        f"has parameter groups of sizes {[len(numbers) for numbers in groups]}, which no known rule gives ({expected})",
        where=where,
        todo=_RETRAIN,
    )
