"""The demo's pool, target and test rows, built from the real wheel."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest

from demo_helpers import demo_tokenizer
from siftune.demo import data as demo
from siftune.demo.wheels import package_folder
from siftune.records.errors import SiftuneError
from siftune.records.example import Example

Rows = dict[str, list[dict[str, Any]]]


def built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[demo.DemoData, Rows]:
    monkeypatch.setenv("SIFTUNE_CACHE", str(folder))
    data = demo.demo_data(demo_tokenizer())
    named = {"pool": data.pool, "target": data.target, "test": data.test}
    return data, {
        name: [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        for name, path in named.items()
    }


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    with pytest.MonkeyPatch.context() as patch:
        return built(tmp_path_factory.mktemp("data"), patch)[1]


def test_sizes(rows):
    assert len(rows["pool"]) <= 320
    assert 8 <= len(rows["target"]) <= 10
    assert len(rows["test"]) >= 50
    tasks = Counter(row["source"] for row in rows["pool"])
    assert len(tasks) >= 10
    assert 20 <= tasks["naughty_strings"] <= 40
    assert {row["source"] for row in rows["target"] + rows["test"]} == {"naughty_strings"}


def test_rows_are_short_conversations(rows):
    tokenizer = demo_tokenizer()
    for row in (row for part in rows.values() for row in part):
        assert row["messages"][-1]["role"] == "assistant"
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert len(tokenizer(text)["input_ids"]) <= 96


def test_nothing_measured_was_seen(rows):
    """No row stands in two files, and no test row is nearly a row of the pool or target."""
    prints = {
        part: [Example(row["id"], "", row["messages"], "").fingerprint for row in rows[part]] for part in rows
    }
    everything = [fingerprint for part in prints.values() for fingerprint in part]
    assert len(set(everything)) == len(everything)

    def pieces(row: dict[str, Any]) -> set[str]:
        text = f"  {row['messages'][-2]['content'].removeprefix('Is this string malicious? ').lower()}  "
        return {text[i : i + 3] for i in range(len(text) - 2)}

    seen = [row for row in rows["pool"] + rows["target"] if row["source"] == "naughty_strings"]
    for test in rows["test"]:
        for other in seen:
            common, union = pieces(test) & pieces(other), pieces(test) | pieces(other)
            assert len(common) / len(union) < 0.5, (test, other)


def test_answers_are_options_in_equal_shares(rows):
    for row in rows["test"]:
        assert row["options"] == ["Yes", "No"]
        assert row["answer"] == row["messages"][-1]["content"]
    for part in ("target", "test"):
        assert {*Counter(row["messages"][-1]["content"] for row in rows[part]).values()} == {
            len(rows[part]) // 2
        }


def test_no_task_with_a_licence_of_its_own(rows):
    """The wheel's licence file names the folders that are not under MIT."""
    (licence,) = [file for file in files("evals") or [] if file.name == "LICENSE.md"]
    other_licences = set(re.findall(r"evals/registry/data/(\w+)", licence.read_text(encoding="utf-8")))
    assert {"theory_of_mind", "text_compression", "steganography", "schelling_point"} <= other_licences
    assert not other_licences & {row["source"] for row in rows["pool"]}


def test_same_wheel_same_bytes(tmp_path, monkeypatch):
    one, _ = built(tmp_path / "one", monkeypatch)
    two, _ = built(tmp_path / "two", monkeypatch)
    for name in ("pool", "target", "test"):
        assert getattr(one, name).read_bytes() == getattr(two, name).read_bytes()


def other_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the wheel's tasks that may be spoiled; its registry folder."""
    real = package_folder("evals") / "registry" / "data"
    registry = tmp_path / "evals" / "registry" / "data"
    for task in (demo.TARGET_TASK, *demo.OTHER_TASKS):
        name, _, file = task.partition("/")
        path = registry / name / (file or "samples.jsonl")
        path.parent.mkdir(parents=True)
        path.symlink_to(real / name / (file or "samples.jsonl"))
    monkeypatch.setattr(demo, "package_folder", lambda _: tmp_path / "evals")
    return registry


def spoil(path: Path) -> None:
    path.unlink()
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def test_git_lfs_pointers_are_skipped_and_counted(tmp_path, monkeypatch):
    registry = other_wheel(tmp_path, monkeypatch)
    spoil(registry / "food" / "samples.jsonl")
    spoil(registry / "anagrams" / "samples.jsonl")
    data, rows = built(tmp_path / "cache", monkeypatch)
    assert any("2 tasks whose file is only a Git LFS pointer" in note for note in data.notes)
    assert not {"food", "anagrams"} & {row["source"] for row in rows["pool"]}


def test_another_wheel_is_refused(tmp_path, monkeypatch):
    registry = other_wheel(tmp_path, monkeypatch)
    for task in ("food", "anagrams", "swap-words", "sort_numeric"):
        spoil(registry / task / "samples.jsonl")
    with pytest.raises(SiftuneError, match="only 9 of the demo's tasks"):
        built(tmp_path / "cache", monkeypatch)
    (registry / "naughty_strings" / "samples.jsonl").unlink()
    with pytest.raises(SiftuneError, match="is missing"):
        built(tmp_path / "cache", monkeypatch)
