"""A model is loaded whole, frozen and without code of its own, or refused with what to do."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from model_helpers import ARCHITECTURES, tiny_model, write_tiny_model
from siftune.model import load
from siftune.model.load import choose_dtype, load_model
from siftune.model.lora import add_lora, check_supported, lora_parameters
from siftune.records.errors import SiftuneError

IDS = torch.arange(3, 23).reshape(2, 10)
CPU = torch.device("cpu")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loads_frozen_in_eval_mode_with_the_same_numbers(arch: str, tmp_path: Path) -> None:
    model = load_model(str(write_tiny_model(tmp_path, arch)))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(IDS).logits, tiny_model(arch)(IDS).logits)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_dtype_of_the_base_and_fp32_lora(dtype: Any, expected: torch.dtype, tmp_path: Path) -> None:
    model = load_model(str(write_tiny_model(tmp_path, "llama")), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    lora = lora_parameters(add_lora(model, rank=4, alpha=8.0, dropout=0.0, targets=("auto",), seed=0))
    assert {parameter.dtype for parameter in lora.values()} == {torch.float32}


def test_attention_as_asked(tmp_path: Path) -> None:
    folder = str(write_tiny_model(tmp_path, "llama"))
    assert load_model(folder, attn="eager").config._attn_implementation == "eager"
    with pytest.raises(SiftuneError, match="nonsense"):
        load_model(folder, attn="nonsense")


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantised_base_takes_lora_and_gradients(bits: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = load_model(str(write_tiny_model(tmp_path, "llama", hidden=64)), quantize=bits)
    assert model.is_quantized
    peft_model = add_lora(model, rank=4, alpha=8.0, dropout=0.0, targets=("auto",), seed=0)
    check_supported(peft_model)
    peft_model(input_ids=IDS, labels=IDS).loss.backward()
    gradients = [
        parameter.grad for name, parameter in lora_parameters(peft_model).items() if "lora_B" in name
    ]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    plain, found = tiny_model("llama", hidden=64)(IDS).logits, peft_model(input_ids=IDS).logits
    assert torch.nn.functional.cosine_similarity(plain.flatten(), found.float().flatten(), dim=0) > 0.9


def test_missing_bitsandbytes_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(write_tiny_model(tmp_path, "llama"))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(SiftuneError, match="pip install bitsandbytes"):
        load_model(folder, quantize="4bit")


def _edit_config(**changes: Any) -> Any:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def _only_bin(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")


def _without(name: str) -> Any:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def _adapter_only(folder: Path) -> None:
    get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)


BROKEN: dict[str, tuple[Any, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
    "unknown type": (_edit_config(model_type="nonsense"), "cannot be loaded.*nonsense"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "only pickles": (_only_bin, "pickled weights.*save_pretrained"),
    "broken weights": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "cannot be loaded"),
    "weights missing": (
        _without("model.layers.1.mlp.up_proj.weight"),
        "1 weights of a LlamaForCausalLM are not in the files",
    ),
    "head missing": (_without("lm_head.weight"), "lm_head.weight among them"),
    "other sizes": (
        _edit_config(intermediate_size=96),
        "weights of a LlamaForCausalLM are not|cannot be loaded",
    ),
    "remote code": (
        _edit_config(model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}),
        "brings its own code, which is never run",
    ),
    "adapter": (_adapter_only, "is a LoRA adapter, not a model"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folder_is_refused_with_its_path(name: str, tmp_path: Path) -> None:
    damage, message = BROKEN[name]
    folder = write_tiny_model(tmp_path / "model", "llama")
    damage(folder)
    with pytest.raises(SiftuneError, match=message) as caught:
        load_model(str(folder))
    assert str(folder) in str(caught.value)
    assert caught.value.todo


def test_other_kinds_of_model_are_refused_by_name(tmp_path: Path) -> None:
    T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path / "t5")
    with pytest.raises(SiftuneError, match="t5 model is an encoder-decoder"):
        load_model(str(tmp_path / "t5"))
    BertForMaskedLM(
        BertConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(SiftuneError, match="masked language model"):
        load_model(str(tmp_path / "bert"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such folder"),
        ("/nowhere/at/all", "no such folder"),
        ("owner/no-such-model", "hub gave no model.*HF_TOKEN"),
        ("a/b/c", "no such folder"),
        ("", "no model is given"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(SiftuneError, match=message):
        load_model(name)


def test_choice_of_dtype_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_cpu_flags", lambda: {"avx2", "amx_bf16"})
    assert choose_dtype("auto", CPU) == ("bf16", "the CPU has amx_bf16")
    monkeypatch.setattr(load, "_cpu_flags", lambda: {"avx2", "avx512f"})
    assert choose_dtype("auto", CPU) == ("fp32", "the CPU has no bf16 instructions")
    assert choose_dtype("fp16", CPU) == ("fp16", "as set")
    assert choose_dtype("auto", torch.device("mps"))[0] == "fp32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert choose_dtype("auto", torch.device("cuda"))[0] == "bf16"
    with pytest.raises(SiftuneError, match="no dtype 'fp8'"):
        choose_dtype("fp8", CPU)
