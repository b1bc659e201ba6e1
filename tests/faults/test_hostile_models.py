"""Hostile models, templates, adapters and Trainer checkpoints: a sentence that names the folder; nothing that they hold is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_helpers import no_hang
from safetensors.torch import save_file
from transformers import PreTrainedModel

from model_helpers import tiny_tokenizer, write_tiny_model
from siftune.chat import template as chat_template
from siftune.chat.template import Renderer, RenderError
from siftune.chat.tokenizer import load_tokenizer
from siftune.model.adopt import adopt
from siftune.model.load import load_model
from siftune.model.lora import adapter_on, add_lora
from siftune.model.optimizer_state import parameter_orders
from siftune.model.torchfile import read_torch_file
from siftune.records.errors import SiftuneError

OWNED = "OWNED"


class Owned:
    """What a pickle that means harm does: `open("OWNED", "w")` when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (OWNED, "w")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", "llama")


@pytest.fixture(scope="module")
def base(folder: Path) -> PreTrainedModel:
    return load_model(str(folder))


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Trainer's checkpoint folder: adapter, Adam's state as AdamW writes it, the log of its learning rate."""
    path = tmp_path_factory.mktemp("trained") / "checkpoint-3"
    model = add_lora(load_model(str(folder)), rank=4, alpha=8.0, dropout=0.0, targets=("q_proj",), seed=0)
    model.save_pretrained(path)
    names = parameter_orders(model)["Trainer: decay group, then no-decay group"]
    of = dict(model.named_parameters())
    groups = [[of[name] for name in group] for group in names]
    adam = torch.optim.AdamW([{"params": group} for group in groups])
    for parameter in groups[0]:
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    torch.save(adam.state_dict(), path / "optimizer.pt")
    log = [{"step": 1, "learning_rate": 1e-3}, {"step": 3, "learning_rate": 5e-4}]
    (path / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": log}))
    return path


def configured(**changes: Any) -> Callable[[Path], object]:
    """Changes to config.json; None takes a field out."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def written(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


CODE = f"open({OWNED!r}, 'w')\nclass Model: pass\nclass Config: pass\n"
AUTO = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
HUGE_HEADER = (2**62).to_bytes(8, "little") + b"{}"
MODELS: dict[str, Callable[[Path], object]] = {
    "own code of an unknown kind": lambda f: (
        written("evil.py", CODE)(f),
        configured(model_type="evil", auto_map=AUTO)(f),
    ),
    "unknown kind": configured(model_type="evil", architectures=["Evil"]),
    "no kind": configured(model_type=None),
    "kind with a path": configured(model_type="../../evil"),
    "kind as list": configured(model_type=["llama"]),
    "a list": written("config.json", "[]"),
    "text": written("config.json", '"x"'),
    "broken": written("config.json", "{"),
    "deep": written("config.json", '{"a":' * 5000 + "1" + "}" * 5000),
    "UTF-16": written("config.json", "{}".encode("utf-16")),
    "empty": written("config.json", b""),
    "a pipe": replaced("config.json", os.mkfifo),
    "a device": replaced("config.json", lambda p: p.symlink_to("/dev/zero")),
    "a billion layers": configured(num_hidden_layers=10**9),
    "minus one layer": configured(num_hidden_layers=-1),
    "layers as text": configured(num_hidden_layers="two"),
    "layers as fraction": configured(num_hidden_layers=1e99),
    "a trillion words": configured(vocab_size=10**12),
    "no words": configured(vocab_size=0),
    "words as list": configured(vocab_size=[1]),
    "a hidden size of a billion": configured(hidden_size=10**9),
    "an inner size of a trillion": configured(intermediate_size=10**12),
    "a million heads": configured(num_attention_heads=10**6, num_key_value_heads=10**6, head_dim=10**6),
    "no heads": configured(num_attention_heads=0),
    "another size": configured(hidden_size=64),
    "another inner size": configured(intermediate_size=96),
    "an activation of nobody": configured(hidden_act="__import__('os')"),
    "a dtype of nobody": configured(dtype="evil", torch_dtype="evil"),
    "quantisation as text": configured(quantization_config="evil"),
    "weights of a huge header": written("model.safetensors", HUGE_HEADER),
    "weights of a negative header": written("model.safetensors", b"\xff" * 64),
    "weights that overlap": written(
        "model.safetensors",
        (64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'.ljust(64) + bytes(4),
    ),
    "weights cut off": lambda f: written("model.safetensors", (f / "model.safetensors").read_bytes()[:-9])(f),
    "weights that are none": written("model.safetensors", b""),
    "weights as pipe": replaced("model.safetensors", os.mkfifo),
    "weights as device": replaced("model.safetensors", lambda p: p.symlink_to("/dev/zero")),
    "an index that leaves the folder": lambda f: (
        (f / "model.safetensors").rename(f / "other.safetensors"),
        written("model.safetensors.index.json", '{"metadata": {}, "weight_map": {"a": "../../../etc/passwd"}}')(f),
    ),
    "pickled weights": replaced(
        "model.safetensors", lambda p: p.with_name("pytorch_model.bin").write_bytes(pickle.dumps(Owned()))
    ),
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_refused(load: Callable[[str], object], copy: Path, here: Path) -> None:
    """An error of bounded length names the folder and what to do; nothing of it was run."""
    with no_hang(), pytest.raises(SiftuneError) as caught:
        load(str(copy))
    assert str(copy) in str(caught.value)
    assert caught.value.todo
    assert len(str(caught.value)) < 2000
    assert not (here / OWNED).exists()


@pytest.mark.parametrize("case", MODELS)
def test_a_hostile_model_folder_is_an_error_that_names_it(case: str, folder: Path, here: Path) -> None:
    copy = shutil.copytree(folder, here / "m")
    MODELS[case](copy)
    check_refused(load_model, copy, here)


def test_own_code_beside_a_known_kind_is_not_run(folder: Path, here: Path) -> None:
    copy = shutil.copytree(folder, here / "m")
    written("evil.py", CODE)(copy)
    configured(auto_map=AUTO)(copy)
    tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["evil.Config", "evil.Config"]}
    (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert type(load_model(str(copy))).__name__ == "LlamaForCausalLM"
    assert len(load_tokenizer(str(copy)))
    assert not (here / OWNED).exists()


TOKENIZERS: dict[str, Callable[[Path], object]] = {
    "a list": written("tokenizer.json", "[]"),
    "broken": written("tokenizer.json", "{"),
    "empty": written("tokenizer.json", b""),
    "deep": written("tokenizer.json", "[" * 100_000),
    "of another version": written("tokenizer.json", '{"version": "9.9", "model": {"type": "Evil"}}'),
    "without a model": written("tokenizer.json", '{"version": "1.0"}'),
    "a class of nobody": lambda f: (
        (f / "tokenizer.json").unlink(),
        written("tokenizer_config.json", '{"tokenizer_class": "os.system"}')(f),
    ),
    "own code": lambda f: (
        (f / "tokenizer.json").unlink(),
        written("evil.py", CODE)(f),
        written("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.Config", null]}}')(f),
    ),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_hostile_tokenizer_is_an_error_that_names_its_folder(case: str, folder: Path, here: Path) -> None:
    copy = shutil.copytree(folder, here / "m")
    TOKENIZERS[case](copy)
    check_refused(load_tokenizer, copy, here)


TEMPLATES = {
    "classes of a text": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__['os'].system('true') }}",
    "globals of a cycler": "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
    "attributes by filter": "{{ (''|attr('__class__')).__mro__.x }}",
    "attributes by format": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}{{ ''.__class__.x.y }}",
    "globals of the template": "{{ self._TemplateReference__context.environment.loader.x }}",
    "a change of the messages": "{{ messages.append(1) }}",
    "another file": "{% include '/etc/passwd' %}",
    "another template": "{% extends '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os.system('true') }}",
    "a long range": "{% for i in range(10**9) %}{% endfor %}",
    "a recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "broken": "{% for %}",
    "a refusal of many lines": "{{ raise_exception('x\\n' * 99999) }}",
    "a division by zero": "{{ 1 / 0 }}",
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_hostile_template_refuses_the_row_and_reaches_nothing(case: str) -> None:
    with no_hang(), pytest.raises(RenderError) as caught:
        Renderer(TEMPLATES[case], {})([{"role": "user", "content": "x"}], None)
    assert len(str(caught.value)) < 400


def test_a_template_that_loops_for_ever_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.3)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with no_hang(), pytest.raises(RenderError, match=r"longer than 0\.3 seconds"):
        Renderer(endless, {})([{"role": "user", "content": "x"}], None)
    assert tiny_tokenizer().chat_template
    assert Renderer("{{ messages[0]['content'] }}", {})([{"role": "user", "content": "x"}], None) == "x"


def adapter_config(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        from safetensors.torch import load_file

        found = load_file(folder / "adapter_model.safetensors")
        save_file(change(found) or found, folder / "adapter_model.safetensors")

    return changed


def pickled(data: Callable[[], bytes]) -> Callable[[Path], object]:
    return replaced(
        "adapter_model.safetensors", lambda p: p.with_name("adapter_model.bin").write_bytes(data())
    )


def torch_file(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def rezipped(data: bytes, **options: Any) -> bytes:
    """The same archive, written again by other rules."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", **options) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return buffer.getvalue()


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
ADAPTERS: dict[str, Callable[[Path], object]] = {
    "pickle that runs": pickled(lambda: pickle.dumps(Owned())),
    "torch file that runs": pickled(lambda: torch_file(Owned())),
    "torch file that runs, protocol 4": pickled(lambda: torch_file(Owned(), pickle_protocol=4)),
    "old torch file that runs": pickled(lambda: torch_file(Owned(), _use_new_zipfile_serialization=False)),
    "torch file beside tensors": pickled(lambda: torch_file({A: torch.zeros(4, 32), "x": Owned()})),
    "a whole module": pickled(lambda: torch_file(torch.nn.Linear(2, 2))),
    "packed archive": pickled(
        lambda: rezipped(torch_file({A: torch.zeros(10**7)}), compression=zipfile.ZIP_DEFLATED)
    ),
    "empty archive": pickled(lambda: rezipped(b"PK\5\6" + bytes(18))),
    "archive of nothing known": pickled(lambda: _zip({"a": b"b"})),
    "archive of two pickles": pickled(lambda: _zip({"a/data.pkl": b"N.", "b/data.pkl": b"N."})),
    "archive of a bytearray": pickled(lambda: _zip({"a/data.pkl": b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR."})),
    "numbers, not tensors": pickled(lambda: torch_file({A: 3})),
    "a list": pickled(lambda: torch_file([1])),
    "garbage": pickled(lambda: b"garbage"),
    "nothing": pickled(lambda: b""),
    "huge header": written("adapter_model.safetensors", HUGE_HEADER),
    "header of nothing": written("adapter_model.safetensors", b""),
    "header that is a list": written("adapter_model.safetensors", (2).to_bytes(8, "little") + b"[]"),
    "a shape of a trillion": written(
        "adapter_model.safetensors",
        (80).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'.ljust(80) + bytes(4),
    ),
    "a pipe": replaced("adapter_model.safetensors", os.mkfifo),
    "NaN": tensors(lambda t: t | {A: torch.full((4, 32), float("nan"))}),
    "Inf": tensors(lambda t: t | {A: torch.full((4, 32), float("-inf"))}),
    "another shape": tensors(lambda t: t | {A: torch.zeros(4, 31)}),
    "another rank": tensors(lambda t: t | {A: torch.zeros(5, 32)}),
    "whole numbers": tensors(lambda t: t | {A: torch.zeros(4, 32, dtype=torch.int64)}),
    "no dimension": tensors(lambda t: t | {A: torch.tensor(1.0)}),
    "a name of nobody": tensors(lambda t: t | {"../../x": torch.zeros(1)}),
    "no tensors": tensors(lambda t: {"x": torch.zeros(0)}),
    "a weight too few": tensors(lambda t: {name: value for name, value in t.items() if name != A}),
    "unknown kind": adapter_config(peft_type="EVIL"),
    "kind as list": adapter_config(peft_type=["LORA"]),
    "no kind": adapter_config(peft_type=None),
    "prompt tuning": adapter_config(peft_type="PROMPT_TUNING", num_virtual_tokens=10**9),
    "rank of a billion": adapter_config(r=10**9),
    "rank pattern of a billion": adapter_config(rank_pattern={"q_proj": 10**9}),
    "rank as text": adapter_config(r="4"),
    "rank pattern as list": adapter_config(rank_pattern=[4]),
    "negative rank": adapter_config(r=-4),
    "alpha as text": adapter_config(lora_alpha="x"),
    "targets of nobody": adapter_config(target_modules=["evil"]),
    "targets as number": adapter_config(target_modules=7),
    "a broken pattern": adapter_config(target_modules="(("),
    "layers of nobody": adapter_config(layers_to_transform=[10**9], layers_pattern="evil"),
    "loftq": adapter_config(init_lora_weights="loftq", loftq_config={"loftq_bits": 4}),
    "corda of a file": adapter_config(init_lora_weights="corda", corda_config={"cache_file": "evil.pt"}),
    "a module to import": adapter_config(megatron_config={"a": 1}, megatron_core="evil_module"),
    "config that is a list": written("adapter_config.json", "[]"),
    "config of depth": written("adapter_config.json", "[" * 100_000),
    "config as pipe": replaced("adapter_config.json", os.mkfifo),
}  # fmt: skip


def _zip(parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("case", ADAPTERS)
def test_a_hostile_adapter_is_an_error_and_the_base_stays_as_it_was(
    case: str, trained: Path, base: PreTrainedModel, here: Path
) -> None:
    copy = shutil.copytree(trained, here / "a")
    (here / "evil_module.py").write_text(CODE)
    ADAPTERS[case](copy)
    names = [name for name, _ in base.named_modules()]
    with no_hang(), pytest.raises(SiftuneError) as caught, adapter_on(base, copy, trainable=True):
        pass
    assert str(copy) in str(caught.value)
    assert caught.value.todo
    assert not (here / OWNED).exists()
    assert [name for name, _ in base.named_modules()] == names


def test_a_pattern_that_would_be_tried_for_ever_is_stopped(
    trained: Path, base: PreTrainedModel, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siftune.model.lora.PATTERN_SECONDS", 0.5)
    copy = shutil.copytree(trained, here / "a")
    adapter_config(target_modules=r"(([a-z0-9_]+)+\.?)+x")(copy)
    with no_hang(), pytest.raises(SiftuneError, match=r"longer than 0\.5 seconds"), adapter_on(base, copy, trainable=True):  # fmt: skip
        pass


def state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        found = torch.load(folder / "optimizer.pt", weights_only=True)
        result = change(found)
        torch.save(found if result is None else result, folder / "optimizer.pt")

    return changed


def entry(**values: Any) -> Callable[[Path], object]:
    return state(lambda s: s["state"][0].update(values))


def group(**values: Any) -> Callable[[Path], object]:
    return state(lambda s: [g.update(values) for g in s["param_groups"]] and None)


def optimizer(data: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / "optimizer.pt").write_bytes(data())


def trainer_state(value: Any) -> Callable[[Path], object]:
    return written("trainer_state.json", value if isinstance(value, str) else json.dumps(value))


OPTIMIZERS: dict[str, Callable[[Path], object]] = {
    "pickle that runs": optimizer(lambda: pickle.dumps(Owned())),
    "torch file that runs": optimizer(lambda: torch_file({"state": Owned(), "param_groups": []})),
    "old torch file that runs": optimizer(
        lambda: torch_file({"state": Owned()}, _use_new_zipfile_serialization=False)
    ),
    "packed archive": optimizer(
        lambda: rezipped(torch_file({"state": torch.zeros(10**7)}), compression=zipfile.ZIP_DEFLATED)
    ),
    "packed by bzip2": optimizer(lambda: rezipped(torch_file({"state": {}}), compression=zipfile.ZIP_BZIP2)),
    "a pipe": replaced("optimizer.pt", os.mkfifo),
    "a device": replaced("optimizer.pt", lambda p: p.symlink_to("/dev/zero")),
    "a folder": replaced("optimizer.pt", Path.mkdir),
    "a tensor": state(lambda s: torch.zeros(3)),
    "a list": state(lambda s: [1]),
    "no groups": state(lambda s: s.pop("param_groups") and None),
    "groups as dict": state(lambda s: s.update(param_groups={})),
    "groups of numbers": state(lambda s: s.update(param_groups=[1])),
    "groups of nothing": state(lambda s: s.update(param_groups=[])),
    "a group without parameters": state(lambda s: s["param_groups"][0].pop("params") and None),
    "a group of text": group(params=["a"]),
    "a group of a million": group(params=list(range(100_000))),
    "state as list": state(lambda s: s.update(state=[1])),
    "state of numbers": state(lambda s: s.update(state={0: 1})),
    "moment as number": entry(exp_avg=3),
    "moment as text": entry(exp_avg_sq="x"),
    "moment of whole numbers": entry(exp_avg=torch.zeros(4, 32, dtype=torch.int64)),
    "moment of another shape": entry(exp_avg=torch.zeros(32, 4)),
    "moment that takes no memory": entry(exp_avg=torch.zeros(1).expand(10**6, 10**6)),
    "sparse moment": entry(exp_avg=torch.zeros(4, 32).to_sparse()),
    "moment without storage": entry(exp_avg=torch.empty(4, 32, device="meta")),
    "v of Inf": entry(exp_avg_sq=torch.full((4, 32), float("inf"))),
    "NaN step": entry(step=torch.tensor(float("nan"))),
    "infinite step": entry(step=float("inf")),
    "half a step": entry(step=torch.tensor(0.5)),
    "no step": entry(step=torch.tensor(0.0)),
    "steps": entry(step=torch.zeros(3)),
    "step as text": entry(step="1"),
    "betas as text": group(betas="ab"),
    "one beta": group(betas=(0.9,)),
    "NaN beta": group(betas=(float("nan"), 0.9)),
    "beta of 1": group(betas=(0.9, 1.0)),
    "negative eps": group(eps=-1.0),
    "NaN eps": group(eps=float("nan")),
    "log of a list": trainer_state([]),
    "log of text": trainer_state("x"),
    "log of depth": trainer_state("[" * 100_000),
    "log of numbers": trainer_state({"global_step": 3, "log_history": [1, 2]}),
    "step of text": trainer_state({"global_step": "x", "log_history": []}),
    "step without end": trainer_state('{"global_step": Infinity, "log_history": []}'),
    "step of 9999 digits": trainer_state('{"global_step": %s, "log_history": []}' % ("9" * 9999)),
    "NaN rate": trainer_state('{"global_step": 3, "log_history": [{"step": 1, "learning_rate": NaN}]}'),
    "infinite rate": trainer_state('{"global_step": 3, "log_history": [{"step": 1, "learning_rate": Infinity}]}'),
    "negative rate": trainer_state('{"global_step": 3, "log_history": [{"step": 1, "learning_rate": -1}]}'),
    "rate as list": trainer_state('{"global_step": 3, "log_history": [{"step": 1, "learning_rate": []}]}'),
    "template config as list": written("tokenizer_config.json", "[]"),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_a_hostile_checkpoint_is_an_error_and_nothing_of_it_is_run_or_kept(
    case: str, trained: Path, base: PreTrainedModel, here: Path
) -> None:
    copy = shutil.copytree(trained, here / "checkpoint-3")
    OPTIMIZERS[case](copy)
    with no_hang(), pytest.raises(SiftuneError) as caught:
        adopt(copy, here / "run", base=base)
    assert caught.value.where
    assert caught.value.todo
    assert not (here / OWNED).exists()


def test_the_checkpoint_is_sound_before_it_is_damaged(
    trained: Path, base: PreTrainedModel, here: Path
) -> None:
    assert adopt(trained, here / "run", base=base).checkpoints[0].step == 1
    packed = here / "adapter_model.bin"
    packed.write_bytes(
        torch_file({A: torch.zeros(4, 32, dtype=torch.bfloat16), "n": torch.nn.Parameter(torch.ones(2))})
    )
    assert read_torch_file(packed)[A].dtype == torch.bfloat16
