"""LoRA is added where it was asked for, loaded exactly or not at all, and what is not plain LoRA is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, T5Config, T5ForConditionalGeneration

from model_helpers import ARCHITECTURES, tiny_model
from siftune.model.lora import (
    adapted_layers,
    adapter_on,
    adapter_tensors,
    add_lora,
    check_supported,
    load_adapter,
    lora_parameters,
)
from siftune.records.errors import SiftuneError

IDS = torch.arange(3, 23).reshape(2, 10)


def _adapter(folder: Path, arch: str = "llama", *, rank: int = 4, **changes: Any) -> PeftModel:
    """Write a random adapter for a tiny model; returns the model with it on, in eval mode."""
    settings: dict[str, Any] = {"target_modules": ["q_proj", "o_proj"], "task_type": "CAUSAL_LM", "r": rank}
    model = get_peft_model(tiny_model(arch), LoraConfig(**(settings | changes)))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    assert isinstance(model, PeftModel)
    return model.eval()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_auto_is_all_attention_projections(arch: str) -> None:
    model = add_lora(tiny_model(arch), rank=4, alpha=8.0, dropout=0.1, targets=("auto",), seed=0)
    names = list(lora_parameters(model))
    per_layer = 2 if arch in ("phi3", "gpt2") else 4
    assert len(names) == 2 * 2 * per_layer
    assert all("attn" in name and "mlp" not in name for name in names)
    assert {parameter.dtype for parameter in lora_parameters(model).values()} == {torch.float32}
    everywhere = add_lora(tiny_model(arch), rank=4, alpha=8.0, dropout=0.1, targets=("all-linear",), seed=0)
    assert any("mlp" in name for name in lora_parameters(everywhere))
    assert not any("lm_head" in name for name in lora_parameters(everywhere))


@pytest.mark.parametrize("targets", [["q_proj", "o_proj"], r".*layers\.1\..*(q|v)_proj"])
def test_lora_on_the_layers_of_an_adapter_folder_is_on_the_same_parameters(
    targets: Any, tmp_path: Path
) -> None:
    theirs = _adapter(tmp_path, target_modules=targets)
    ours = add_lora(
        tiny_model("llama"), rank=4, alpha=8.0, dropout=0.0, targets=adapted_layers(tmp_path), seed=0
    )
    assert list(lora_parameters(ours)) == list(lora_parameters(theirs))


def test_names_are_those_of_the_adapter_file_in_named_parameters_order(tmp_path: Path) -> None:
    model = add_lora(tiny_model("gpt2"), rank=4, alpha=8.0, dropout=0.0, targets=("all-linear",), seed=0)
    model.save_pretrained(tmp_path)
    found = lora_parameters(model)
    assert found.keys() == load_file(tmp_path / "adapter_model.safetensors").keys()
    order = [id(parameter) for parameter in model.parameters()]
    assert [order.index(id(parameter)) for parameter in found.values()] == sorted(
        order.index(id(parameter)) for parameter in found.values()
    )


def test_seed_makes_the_weights_and_leaves_the_global_generator_alone() -> None:
    def first(seed: int) -> torch.Tensor:
        model = add_lora(tiny_model("llama"), rank=4, alpha=8.0, dropout=0.0, targets=("q_proj",), seed=seed)
        return next(iter(lora_parameters(model).values()))

    before = torch.get_rng_state()
    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))
    assert not torch.equal(first(0), first(2**32))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_target_that_names_no_layer_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        SiftuneError,
        match="no layer 'v_proj'; its linear layers are: o_proj, qkv_proj, gate_up_proj, down_proj",
    ):
        add_lora(tiny_model("phi3"), rank=4, alpha=8.0, dropout=0.0, targets=("v_proj", "o_proj"), seed=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"bias": "lora_only"},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"lora_bias": True},
    ],
    ids=str,
)
def test_loaded_adapter_computes_what_it_did_and_leaves_the_base_as_it_was(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    expected = _adapter(tmp_path, "qwen2", lora_dropout=0.5, **changes)(IDS).logits
    base = tiny_model("qwen2")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    for trainable in (False, True):
        with adapter_on(base, tmp_path, trainable=trainable) as model:
            assert torch.equal(model(IDS).logits, expected)  # dropout is off
            assert not any(module.training for module in model.modules())
            assert len(lora_parameters(model)) == 8
            assert all(p.requires_grad == trainable for p in lora_parameters(model).values())
        assert list(base.state_dict()) == list(before)
        assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
        assert not any(parameter.requires_grad for parameter in base.parameters())


def test_tied_head_in_modules_to_save(tmp_path: Path) -> None:
    expected = _adapter(tmp_path, "gemma", modules_to_save=["lm_head"])(IDS).logits
    base = tiny_model("gemma")
    plain = base(IDS).logits
    with adapter_on(base, tmp_path, trainable=False) as model:
        assert torch.equal(model(IDS).logits, expected)
    assert torch.equal(base(IDS).logits, plain)
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight


def test_pickled_and_bf16_adapters_are_read(tmp_path: Path) -> None:
    _adapter(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    path.unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    found = lora_parameters(load_adapter(tiny_model("llama"), tmp_path, trainable=False))
    assert all(torch.equal(parameter, tensors[name].float()) for name, parameter in found.items())


def _edit_tensors(change: Any) -> Any:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file(change(tensors), folder / "adapter_model.safetensors")

    return edit


def _edit_config(**changes: Any) -> Any:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def _first(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(tensors)[0]


BROKEN: dict[str, tuple[Any, str]] = {
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "holds no adapter weights"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "holds no adapter_config.json"),
    "broken config": (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
    "broken weights": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 100),
        "adapter file is broken",
    ),
    "tensor missing": (
        _edit_tensors(lambda t: {k: v for k, v in t.items() if k != _first(t)}),
        "1 tensors are in the model but not in the file",
    ),
    "tensor too many": (
        _edit_tensors(lambda t: t | {"base_model.model.x.lora_A.weight": torch.zeros(1)}),
        "not in the model",
    ),
    "rank": (_edit_config(r=8), "is .4, 32., the model needs .8, 32."),
    "nan": (_edit_tensors(lambda t: t | {_first(t): t[_first(t)] * torch.nan}), "NaN"),
    "other layers": (_edit_config(target_modules=["c_attn"]), "target modules"),
    "dora": (_edit_config(use_dora=True), "DoRA"),
    "activated": (_edit_config(alora_invocation_tokens=[1]), "activated LoRA"),
    "experts": (_edit_config(target_parameters=["experts.gate_up_proj"]), "MoE experts"),
    "pissa": (_edit_config(init_lora_weights="pissa"), "'pissa' changes the base"),
    "ia3": (_edit_config(peft_type="IA3"), "IA3 adapters are not supported"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refused_by_name_and_the_base_stays_usable(name: str, tmp_path: Path) -> None:
    damage, message = BROKEN[name]
    _adapter(tmp_path)
    damage(tmp_path)
    base = tiny_model("llama")
    plain = base(IDS).logits
    with pytest.raises(SiftuneError, match=message):
        load_adapter(base, tmp_path, trainable=False)
    assert torch.equal(base(IDS).logits, plain)
    assert "lora" not in str(base).lower()


@pytest.mark.parametrize("arch", ["phi3", "gpt2"])
def test_adapter_of_another_model_is_refused(arch: str, tmp_path: Path) -> None:
    _adapter(tmp_path)
    with pytest.raises(SiftuneError, match="does not fit this model"):
        load_adapter(tiny_model(arch), tmp_path, trainable=False)


def _mixtral() -> nn.Module:
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def _t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


def _two_adapters() -> nn.Module:
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"]))
    model.add_adapter("second", LoraConfig(target_modules=["v_proj"]))
    return model


def _merged() -> nn.Module:
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"]))
    model.merge_adapter()
    return model


UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "no adapter": (lambda: tiny_model("llama"), "no adapter, and gradients of all its weights"),
    "dora": (
        lambda: get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], use_dora=True)),
        "DoRA",
    ),
    "ia3": (
        lambda: get_peft_model(
            tiny_model("llama"), IA3Config(target_modules=["v_proj"], feedforward_modules=[])
        ),
        "IA3",
    ),
    "embedding": (
        lambda: get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["embed_tokens"])),
        "embedding",
    ),
    "output head": (
        lambda: get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj", "lm_head"])),
        "output head",
    ),
    "experts": (
        lambda: get_peft_model(_mixtral(), LoraConfig(target_parameters=["experts.gate_up_proj"])),
        "MoE experts",
    ),
    "two adapters": (_two_adapters, "several adapters .default, second."),
    "merged": (_merged, "merged"),
    "encoder-decoder": (lambda: get_peft_model(_t5(), LoraConfig(target_modules=["q"])), "encoder-decoder"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_by_name(name: str) -> None:
    make, message = UNSUPPORTED[name]
    with pytest.raises(SiftuneError, match=message):
        check_supported(make())


def test_convolution_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3)

    with pytest.raises(SiftuneError, match="LoRA on a Conv1d layer"):
        check_supported(get_peft_model(Net(), LoraConfig(target_modules=["conv"])))  # pyright: ignore[reportArgumentType]


def test_plain_adapters_are_supported(tmp_path: Path) -> None:
    check_supported(_adapter(tmp_path))
    assert len(adapter_tensors(tmp_path)) == 8
    check_supported(get_peft_model(_mixtral(), LoraConfig(target_modules=["q_proj"])))
