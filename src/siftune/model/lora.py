"""LoRA on the frozen base: add it, load it exactly, list its weights θ.

θ are the A and B weights of the one active adapter, named as in the adapter file
(`base_model.model.….q_proj.lora_A.weight`), always fp32. Biases and `modules_to_save` of an adapter are applied but
are not in θ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from siftune.model.load import quiet_transformers
from siftune.model.supported import check_config, check_supported
from siftune.model.torchfile import read_torch_file
from siftune.records.deadline import within
from siftune.records.errors import SiftuneError
from siftune.records.files import read_object

__all__ = [
    "adapted_layers",
    "adapter_on",
    "adapter_tensors",
    "add_lora",
    "check_supported",
    "is_lora_weight",
    "load_adapter",
    "lora_parameters",
    "seed_32",
    "target_names",
]

ADAPTER = "default"
PATTERN_SECONDS = 120.0
"""For putting an adapter on: its config may hold patterns of layer names, and a bad one would be tried for ever."""


def add_lora(
    model: PreTrainedModel, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], seed: int
) -> PeftModel:
    """`model` with a fresh trainable LoRA adapter: A random from `seed`, B zero, both fp32.

    targets: names of linear layers (`q_proj`, or `attn.c_proj` where the last part alone is ambiguous), or
             `("all-linear",)`, or `("auto",)`: the attention projections
    Raises SiftuneError where a target names no layer of the model.
    """
    if isinstance(targets, str):
        targets = (targets,)
    chosen: str | list[str]
    if tuple(targets) == ("all-linear",):
        chosen = "all-linear"
    elif tuple(targets) == ("auto",):
        chosen = _attention_projections(model)
    else:
        chosen = sorted(targets)
        _check_targets(model, chosen)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha if alpha != int(alpha) else int(alpha),  # pyright: ignore[reportArgumentType]  peft divides it only
        lora_dropout=dropout,
        target_modules=chosen,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(seed_32(seed))
        try:
            peft_model = get_peft_model(model, config, adapter_name=ADAPTER)
        except ValueError as error:  # peft: layers of a kind that it can't adapt
            raise SiftuneError(
                f"PEFT can't put LoRA there ({' '.join(str(error).split())[:300]})",
                where="lora_targets",
                todo="Name linear layers that it can adapt as --lora-targets",
            ) from error
    check_supported(peft_model)
    assert isinstance(peft_model, PeftModel)
    return peft_model


def target_names(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """The layers' names that `targets` of `add_lora` stand for on this model, sorted. The model is as it was afterwards."""
    peft_model = add_lora(model, rank=1, alpha=1.0, dropout=0.0, targets=targets, seed=0)
    try:
        config: Any = peft_model.peft_config[ADAPTER]
        return sorted(config.target_modules)  # a set by now
    finally:
        peft_model.unload()


def seed_32(seed: int) -> int:
    """32 bits out of any seed: NumPy's global generator takes no more, and torch's CPU generator reads no more."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def load_adapter(model: PreTrainedModel, folder: Path, trainable: bool) -> PeftModel:
    """`model` with the adapter of `folder` on it, in eval mode (dropout off), its weights fp32.

    Every tensor of the file lands in the model and every adapter tensor of the model comes from the file; otherwise
    SiftuneError (the adapter belongs to another model). The hub is not asked and nothing is unpickled unsafely.
    """
    tensors = adapter_tensors(folder)
    config = _read_config(folder)
    check_config(config, str(folder))
    assert isinstance(config, LoraConfig)
    _check_rank(config, tensors, folder)
    config.inference_mode = not trainable
    config.init_lora_weights = False  # every weight comes from the file
    with quiet_transformers(), torch.random.fork_rng():
        try:
            with within(PATTERN_SECONDS):
                peft_model = get_peft_model(model, config, adapter_name=ADAPTER)
        # Any Exception: target modules not found, or of a kind that PEFT can't adapt; or a config of wrong types
        except Exception as error:
            told = " ".join(str(error).split())[:300] or type(error).__name__
            raise _other_model(f"its target modules do not fit ({told})", folder) from error
    assert isinstance(peft_model, PeftModel)
    try:
        check_supported(peft_model)
        _fill(peft_model, tensors, folder)
    except SiftuneError:
        peft_model.unload()
        raise
    return peft_model.eval()


@contextmanager
def adapter_on(model: PreTrainedModel, folder: Path, trainable: bool) -> Iterator[PeftModel]:
    """`load_adapter` for the length of a block; afterwards `model` is as it was.

    What the adapter set in the base itself (biases, `modules_to_save`, embeddings) is set back too.
    """
    names = {f"base_model.model.{name}": name for name in model.state_dict()}
    in_base = [
        names[plain]
        for name in adapter_tensors(folder)
        if (plain := name.replace(".base_layer.", ".")) in names
    ]
    before = {name: value.clone() for name, value in model.state_dict().items() if name in in_base}
    peft_model = load_adapter(model, folder, trainable)
    try:
        yield peft_model
    finally:
        # PEFT's unload leaves the trained copies of `modules_to_save` in the model
        originals = {
            n: m.original_module for n, m in model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)
        }
        peft_model.unload()
        for name, module in originals.items():
            model.set_submodule(name, module)
        model.load_state_dict(before, strict=False)
        model.requires_grad_(False).eval()


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """θ: name as in the adapter file -> A [R, in] and B [out, R] weights, in named_parameters order, trainable or not."""
    return {_file_name(name): p for name, p in model.named_parameters() if is_lora_weight(name)}


def is_lora_weight(name: str) -> bool:
    """Whether a parameter or file name is that of a LoRA A or B weight (not of a bias on B)."""
    return (".lora_A." in name or ".lora_B." in name) and name.endswith(".weight")


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder by their names in the file, on the CPU, dtype as stored.

    A pickled file (`adapter_model.bin`, of an older PEFT) is read where there is no other, and only if it holds tensors alone.
    """
    safe, pickled = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    try:
        if safe.is_file():
            return load_file(safe)
        if pickled.is_file():
            tensors = read_torch_file(pickled)
            if isinstance(tensors, dict) and all(isinstance(tensor, Tensor) for tensor in tensors.values()):
                return dict(tensors)
            raise ValueError("it holds more than tensors by name")
    except (SafetensorError, OSError, ValueError) as error:
        raise SiftuneError(
            f"the adapter file is broken ({error})", where=str(folder), todo="Copy it again"
        ) from error
    raise SiftuneError(
        "holds no adapter weights (adapter_model.safetensors)",
        where=str(folder),
        todo="Give the folder that PEFT's save_pretrained wrote",
    )


def adapted_layers(folder: Path) -> list[str]:
    """The layers that an adapter folder's LoRA is on: as its config names them, or one by one where that is a regular expression."""
    targets = read_object(folder / "adapter_config.json", "target_modules")["target_modules"]
    if isinstance(targets, list):
        return [str(target) for target in targets]
    start = "base_model.model."
    layers = {name.partition(".lora_")[0] for name in adapter_tensors(folder) if ".lora_" in name}
    return sorted(layer.removeprefix(start) for layer in layers)


def _file_name(name: str) -> str:
    """A parameter's name without the adapter's, as PEFT writes it: `….lora_A.default.weight` -> `….lora_A.weight`."""
    head, mark, tail = name.rpartition(".lora_A." if ".lora_A." in name else ".lora_B.")
    return f"{head}{mark}{tail.rpartition('.')[2]}"


def _read_config(folder: Path) -> PeftConfig:
    path = folder / "adapter_config.json"
    try:
        if read_object(path).get("peft_type") is None:
            raise ValueError("no peft_type")
        return PeftConfig.from_pretrained(str(folder))
    except FileNotFoundError as error:
        raise SiftuneError(
            "holds no adapter_config.json", where=str(folder), todo="Give a PEFT adapter folder"
        ) from error
    # Any Exception: PEFT builds a class of its own out of whatever the file says
    except Exception as error:
        raise SiftuneError(
            f"cannot be read ({error.what if isinstance(error, SiftuneError) else error!r})",
            where=str(path),
            todo="Give a PEFT adapter folder",
        ) from error


def _check_rank(config: PeftConfig, tensors: dict[str, Tensor], folder: Path) -> None:
    """Is the rank one that the file's tensors have? Asked before layers of that rank are made."""
    pattern = getattr(config, "rank_pattern", None) or {}
    ranks = [getattr(config, "r", None), *(pattern.values() if isinstance(pattern, dict) else [pattern])]
    most = max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    for rank in ranks:
        if type(rank) is not int or not 0 < rank <= most:
            raise _other_model(f"its config says rank {str(rank)[:40]}, its file has none such", folder)


def _fill(peft_model: PeftModel, tensors: dict[str, Tensor], folder: Path) -> None:
    """Put the file's tensors into the model, and prove that exactly the adapter's tensors were set."""
    wanted = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    base = peft_model.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    extra = sorted(name for name in tensors.keys() - wanted.keys() if name not in base)
    if missing or extra:
        name = (missing or extra)[0]
        where = "the model but not in the file" if missing else "the file but not in the model"
        raise _other_model(f"{len(missing or extra)} tensors are in {where}, {name} among them", folder)
    for name, tensor in tensors.items():
        expected = (wanted[name] if name in wanted else base[name]).shape
        if tensor.shape != expected or not tensor.is_floating_point():
            raise _other_model(f"{name} is {tuple(tensor.shape)}, the model needs {tuple(expected)}", folder)
        if not torch.isfinite(tensor).all():
            raise SiftuneError(f"{name} holds NaN or Inf", where=str(folder), todo="Use another checkpoint")
    result = set_peft_model_state_dict(peft_model, tensors, adapter_name=ADAPTER)
    if result.unexpected_keys:
        raise _other_model(f"PEFT found no place for {result.unexpected_keys[0]}", folder)
    for name, parameter in lora_parameters(peft_model).items():
        if parameter.dtype != torch.float32 or not torch.equal(parameter.cpu(), tensors[name].float()):
            raise _other_model(f"PEFT did not load {name} as it is in the file", folder)


def _other_model(what: str, folder: Path) -> SiftuneError:
    return SiftuneError(
        f"the adapter does not fit this model: {what}",
        where=str(folder),
        todo="Give the model that it was trained on",
    )


def _linear_names(model: nn.Module) -> list[str]:
    """Full names of the model's linear layers, the output head left out."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    kinds = (nn.Linear, Conv1D)
    return [
        name for name, module in model.named_modules() if isinstance(module, kinds) and module is not head
    ]


def _short_names(model: nn.Module) -> str:
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in _linear_names(model)))


def _attention_projections(model: nn.Module) -> list[str]:
    """Target names of the linear layers inside attention modules: q, k, v, o, fused or not, whatever they are called."""
    inside: dict[str, str] = {}
    outside: set[str] = set()
    for name in _linear_names(model):
        parent, _, last = name.rpartition(".")
        parent = parent.rpartition(".")[2]
        if "attn" in parent.lower() or "attention" in parent.lower():
            inside[last] = parent
        else:
            outside.add(last)
    if not inside:
        raise SiftuneError(
            f"no attention projections were found; the linear layers are: {_short_names(model)}",
            where="lora_targets: auto",
            todo="Name some of them as --lora-targets, or use all-linear",
        )
    return sorted(f"{parent}.{last}" if last in outside else last for last, parent in inside.items())


def _check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise SiftuneError(
                f"the model has no layer {target!r}; its linear layers are: {_short_names(model)}",
                where="lora_targets",
                todo="Name some of these, or use auto or all-linear",
            )
