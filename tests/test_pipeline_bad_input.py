"""Bad input, one table: each case ends in a sentence that names the place, or in quarantine with a reason; nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from model_helpers import write_tiny_model
from pipeline_helpers import pool_rows, recipe, turn, write_inputs, write_rows
from siftune.model.load import load_model
from siftune.model.lora import add_lora
from siftune.pipeline import training
from siftune.pipeline.progress import Reporter
from siftune.pipeline.run import run, select
from siftune.records.errors import SiftuneError

Change = Callable[[Path], dict[str, Any]]
"""Makes files in a folder and returns the settings that use them."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = write_inputs(tmp_path_factory.mktemp("inputs"))
    return {
        **settings,
        "pool": [str(write_rows(Path(settings["pool"][0]), pool_rows(60, 10)))],
        "keep": "10%",
        "epochs": 1,
    }


@pytest.fixture(scope="module")
def trained(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a real Trainer left of a short LoRA training."""
    folder = tmp_path_factory.mktemp("trained")
    model = add_lora(load_model(given["model"]), rank=4, alpha=16.0, dropout=0.0, targets=("q_proj",), seed=0)
    rows = [{"input_ids": torch.arange(3, 13), "labels": torch.arange(3, 13)} for _ in range(8)]
    arguments = TrainingArguments(
        str(folder),
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        per_device_train_batch_size=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(model, arguments, train_dataset=rows).train()
    return folder


def text_pool(text: str, name: str = "bad.jsonl") -> Change:
    def change(folder: Path) -> dict[str, Any]:
        (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        return {"pool": [str(folder / name)]}

    return change


def text_target(text: str) -> Change:
    def change(folder: Path) -> dict[str, Any]:
        (folder / "t.jsonl").write_text(text, encoding="utf-8")
        return {"target": {"sums": str(folder / "t.jsonl")}}

    return change


def settings(**changes: Any) -> Change:
    return lambda folder: changes


def without_tokenizer(folder: Path) -> dict[str, Any]:
    write_tiny_model(folder / "bare", "llama")
    for file in (folder / "bare").glob("token*"):
        file.unlink()
    (folder / "bare" / "chat_template.jinja").unlink(missing_ok=True)
    return {"model": str(folder / "bare")}


def adapter_of_another_model(folder: Path) -> dict[str, Any]:
    write_tiny_model(folder / "gpt2", "gpt2")
    add_lora(
        load_model(str(folder / "gpt2")), rank=4, alpha=16.0, dropout=0.0, targets=("auto",), seed=0
    ).save_pretrained(folder / "adapter")
    return {"adapter": str(folder / "adapter")}


GOOD = json.dumps({"messages": turn("hi", "hello")})
STOPS: list[tuple[str, Change, str]] = [
    ("no such file", settings(pool=["nowhere.jsonl"]), "nowhere.jsonl"),
    ("unknown ending", text_pool(GOOD, "rows.csv"), "rows.csv"),
    ("empty file", text_pool(""), "no rows"),
    ("unknown format", text_pool('{"a": 1}\n'), "bad.jsonl:1"),
    ("every line broken", text_pool("{\n"), "bad.jsonl:1"),
    ("a broken JSON array", text_pool('[{"messages": []}, {]', "bad.json"), "bad.json:1"),
    ("target without rows", text_target(""), "t.jsonl"),
    (
        "target row without answer",
        text_target(json.dumps({"messages": [{"role": "user", "content": "x"}]})),
        "t.jsonl:1",
    ),
    ("target line broken", text_target(GOOD + "\n{\n"), "t.jsonl:2"),
    ("budget 0", settings(keep="0"), "keep"),
    ("budget 200 %", settings(keep="200%"), "keep"),
    ("budget abc", settings(keep="abc"), "keep"),
    ("more rows than there are", settings(keep="1000"), "keep"),
    ("unknown setting", settings(lerning_rate=1), "learning_rate"),
    ("unknown direction", settings(direction="adan"), "direction"),
    ("target name with a path in it", settings(target={"../x": "f"}), "target"),
    ("model folder without tokenizer", without_tokenizer, "tokenizer"),
    ("no such model", settings(model="./nowhere"), "nowhere"),
    ("an adapter for another model", adapter_of_another_model, "another model|does not fit"),
    ("adopt what is not there", settings(adopt="nowhere"), "nowhere"),
    ("weights without adopt", settings(weights=[1.0]), "weights"),
    ("unknown device", settings(device="cuda:99"), "device"),
    ("mask that the template lacks", settings(mask="generation"), "mask: generation"),
]


@pytest.mark.parametrize(("change", "names"), [case[1:] for case in STOPS], ids=[case[0] for case in STOPS])
def test_stops_with_a_sentence_that_names_the_place(
    change: Change, names: str, given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SiftuneError, match=names) as caught:
        run(recipe(given, **change(tmp_path)), tmp_path / "run")
    assert caught.value.todo, "says what to do next"


def damage_state(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    for file in folder.glob("checkpoint-*/optimizer.pt"):
        state = torch.load(file, weights_only=True)
        change(state)
        torch.save(state, file)


def adafactor(state: dict[str, Any]) -> None:
    for moments in state["state"].values():
        moments["exp_avg_sq_row"] = moments.pop("exp_avg_sq")[0]


def nan_moments(state: dict[str, Any]) -> None:
    state["state"][0]["exp_avg"][0] = float("nan")


def negative_v(state: dict[str, Any]) -> None:
    state["state"][0]["exp_avg_sq"][0] = -1.0


ADOPTIONS: list[tuple[str, Callable[[Path], None], str]] = [
    (
        "no optimizer state",
        lambda f: [p.unlink() for p in f.glob("checkpoint-*/optimizer.pt")] and None,
        "optimizer",
    ),
    ("Adafactor", lambda f: damage_state(f, adafactor), "Adafactor"),
    ("moments not finite", lambda f: damage_state(f, nan_moments), "NaN|finite"),
    ("v below zero", lambda f: damage_state(f, negative_v), "negative|below"),
    (
        "no log of the learning rate",
        lambda f: [p.unlink() for p in f.glob("checkpoint-*/trainer_state.json")] and None,
        "weights",
    ),
]


@pytest.mark.parametrize(
    ("damage", "names"), [case[1:] for case in ADOPTIONS], ids=[case[0] for case in ADOPTIONS]
)
def test_a_training_that_cannot_be_adopted(
    damage: Callable[[Path], None], names: str, given: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "trained")
    damage(tmp_path / "trained")
    with pytest.raises(SiftuneError, match=names):
        run(recipe(given, adopt=str(tmp_path / "trained")), tmp_path / "run")


def test_an_adopted_training_serves_in_place_of_a_warm_up(
    given: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    result = run(recipe(given, adopt=str(trained)), tmp_path / "run")
    assert len(result.selections["sums"].rows()) == 6
    facts = json.loads((tmp_path / "run/checkpoints/2/checkpoint.json").read_text())
    assert facts["step"] == 4
    again = select(tmp_path / "run", {"keep": "3", "name": "three"})
    assert len(again.selections["three"].rows()) == 3


def test_bad_rows_go_to_quarantine_each_with_its_reason_and_the_counts_add_up(
    given: dict[str, Any], tmp_path: Path
) -> None:
    good = [json.dumps(row) for row in pool_rows(40, 8)]
    bad = {
        3: ("{broken", "JSON"),
        5: (json.dumps({"messages": [{"role": "user", "content": "only a question"}]}), "assistant"),
        9: (json.dumps({"messages": turn("hi", "")}), "empty"),
        11: (json.dumps({"messages": turn("lone", "\ud800")}), "surrogate"),
        14: (json.dumps({"messages": turn("long " * 3000, "cut off")}), "max_length"),
        20: (json.dumps([1, 2]), "object"),
        22: (json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}), "preference"),
    }
    fine = {
        16: json.dumps({"id": "nul", "messages": turn("nul \x00 inside", "ok \x00 too")}),
        18: json.dumps({"id": "huge", "messages": turn("q", "A" * 1_000_000)}),
        24: json.dumps({"id": "twin", "messages": turn("same id", "one")}),
        25: json.dumps({"id": "twin", "messages": turn("same id", "two")}),
        27: json.dumps({"id": "copy", "messages": json.loads(good[0])["messages"]}),
    }
    lines = list(good)
    for place, text in sorted({**{k: v[0] for k, v in bad.items()}, **fine}.items()):
        lines.insert(place - 1, text)
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    target = tmp_path / "t.jsonl"
    target.write_text(lines[0] + "\n", encoding="utf-8")  # leakage: a target row that is a pool row
    out = tmp_path / "run"
    run(recipe(given, pool=[str(file)], target={"sums": str(target)}, max_length=128), out)

    quarantine = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {q["where"].rpartition(":")[2]: q["row"] for q in quarantine} == {str(n): n - 1 for n in bad}
    for q in quarantine:
        assert bad[q["row"] + 1][1] in q["reason"]
    table = pq.read_table(out / "selections/sums/scores.parquet").to_pydict()
    assert len(table["row"]) == len(lines)
    scored = [row for row, value in zip(table["row"], table["score"], strict=True) if value is not None]
    assert sorted([*scored, *(q["row"] for q in quarantine)]) == list(range(len(lines)))
    assert sorted(r for r in table["rank"] if r is not None) == list(range(1, len(scored) + 1))
    index = pq.read_table(out / "pool/index.parquet").to_pydict()
    assert index["status"][17] == "truncated"
    assert index["n_tokens"][17] == 128
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [e["rows"] for e in events if e["event"] == "leakage"] == [[0, 26]]
    assert next(e for e in events if e["event"] == "stage done" and e["stage"] == "pool")["repeated_ids"] == 1
    everything = select(out, {"keep": "100%", "name": "all"}).selections["all"]
    assert everything.summary["n_duplicates_left_out"] == 1
    assert len(everything.rows()) == len(scored) - 1
    assert len(
        select(out, {"keep": "100%", "repeats": True, "name": "all-twice"}).selections["all-twice"].rows()
    ) == len(scored)


def test_a_folder_with_other_things_and_a_file_are_no_run_directory(
    given: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SiftuneError, match="other things"):
        run(recipe(given), tmp_path)
    with pytest.raises(SiftuneError, match="is a file"):
        run(recipe(given), tmp_path / "notes.txt")
    with pytest.raises(SiftuneError, match=r"recipe\.yaml"):
        select(tmp_path, {"keep": "5%"})
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_full_disk_is_said_and_the_run_goes_on_afterwards(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    from siftune.records import files

    real, calls = os.replace, [0]

    def full(source: Any, to: Any) -> None:
        calls[0] += 1
        if calls[0] == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, to)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(SiftuneError, match="disk is full"):
        run(recipe(given), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.part"))
    result = run(recipe(given), tmp_path / "run")
    assert len(result.selections["sums"].rows()) == 6


def test_layers_that_text_never_reaches_are_refused_before_the_warm_up(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the vision tower of a model that sees: its layers are called as those of the text model."""
    made = training.load_base

    def with_tower(*rest: Any) -> Any:
        model = made(*rest)
        model.tower = nn.ModuleDict({"self_attn": nn.ModuleDict({"q_proj": nn.Linear(4, 4)})})
        return model

    monkeypatch.setattr(training, "load_base", with_tower)
    with pytest.raises(SiftuneError, match=r"text never comes to 2 of the layers.*tower\.self_attn\.q_proj"):
        run(recipe(given, lora_targets=["q_proj"]), tmp_path / "run", reporter=Reporter(quiet=True))
    assert not list((tmp_path / "run").glob("checkpoints/[0-9]*"))
