"""Reading good input: every format in every container gives the same conversations; every row comes out once, in order."""

from __future__ import annotations

import datetime
import gzip
import json
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from records_helpers import CONTAINERS, in_fresh_python, lines, talk, turn, write
from siftune.records import jsonstream
from siftune.records.errors import SiftuneError
from siftune.records.example import Example, LeftOut
from siftune.records.formats import conversation_of
from siftune.records.readers import read_pool, read_target

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
spoken = text.filter(str.strip)  # an answer without text is no answer
pairs = st.lists(st.tuples(text, spoken), min_size=1, max_size=3)


def examples(*sources: str) -> list[Example]:
    items = list(read_pool(sources))
    assert not [item for item in items if isinstance(item, LeftOut)]
    return [item for item in items if isinstance(item, Example)]


def one(row: dict[str, Any]) -> list[dict[str, Any]]:
    return conversation_of(row).messages


def canonical(system: str, turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    messages = [turn("system", system)] if system else []
    return messages + [message for question, answer in turns for message in talk(question, answer)]


def as_messages(system: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    return {"messages": canonical(system, turns)}


def as_parts(system: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    def parts(content: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": content[:3]}, {"type": "text", "text": content[3:]}]

    return {
        "conversation": [
            {**message, "content": parts(message["content"])} for message in canonical(system, turns)
        ]
    }


def as_sharegpt(system: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    said = [{"from": names[m["role"]], "value": m["content"]} for m in canonical("", turns)]
    return {"conversations": said, "system": system}


def as_alpaca(system: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    *history, (question, answer) = turns
    return {
        "system": system,
        "history": [list(p) for p in history],
        "instruction": question,
        "input": "",
        "output": answer,
    }


def as_completion(system: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    *prompt, answer = canonical(system, turns)
    return {"prompt": prompt, "completion": [answer]}


FORMATS = [as_messages, as_parts, as_sharegpt, as_alpaca, as_completion]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_in_every_container_gives_the_same_conversation(
    form: Any, container: str, tmp_path: Path
):
    talks = [
        ("be ü", [("hi", "yes"), ("\u2028 and\r\n", " \x00x ")]),
        ("", [("", "b")]),
        ("s", [("a", "\n\nÅ"), ("", "c")]),
    ]
    rows = [{"id": f"r{i}", **form(*talk_)} for i, talk_ in enumerate(talks)]
    found = examples(CONTAINERS[container](tmp_path, rows))
    assert [example.messages for example in found] == [canonical(*talk_) for talk_ in talks]
    assert [example.id for example in found] == ["r0", "r1", "r2"]
    assert len({example.where for example in found}) == 3


@given(
    st.lists(st.tuples(text, pairs, st.sampled_from(FORMATS), st.text(max_size=3)), min_size=1, max_size=4),
    st.integers(1, 40),
)
def test_mixed_rows_survive_any_chunk_size(talks: list[Any], chunk: int):
    rows = [form(system, turns) | {"note": note} for system, turns, form, note in talks]
    data = json.dumps(rows, indent=None if chunk % 2 else 1).encode()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonstream, "_CHUNK", chunk)
        array = examples(write(Path(folder) / "p.json", data))
        lined = examples(
            write(Path(folder) / "p.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        )
    wanted = [canonical(system, turns) for system, turns, _, _ in talks]
    assert [e.messages for e in array] == [e.messages for e in lined] == wanted
    assert [e.columns for e in array] == [e.columns for e in lined] == rows  # as they came


@given(st.lists(st.sampled_from(["good", "broken", "blank", "list", "empty"]), min_size=1, max_size=12))
def test_every_row_comes_out_once_in_order(kinds: list[str]):
    forms = {
        "good": lines([{"messages": talk()}]),
        "broken": b'{"messages": [\n',
        "blank": b" \t\n",
        "list": b"[]\n",
        "empty": lines([{"prompt": "x", "completion": ""}]),
    }
    found: list[Example | LeftOut] = []
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "p.jsonl", b"".join(forms[kind] for kind in kinds))
        try:
            found.extend(read_pool([path]))
        except SiftuneError:
            assert "good" not in kinds
        else:
            assert "good" in kinds
    if "good" in kinds:
        wanted = [(f"{path}:{n}", kind == "good") for n, kind in enumerate(kinds, 1) if kind != "blank"]
        assert [(item.where, isinstance(item, Example)) for item in found] == wanted


def test_where_id_and_source(tmp_path: Path):
    rows = [
        {"messages": talk()},
        {"messages": talk(), "id": 7, "dataset": "d", "source": ""},
        {"messages": talk(), "id": "x", "dataset": "d", "source": "s"},
        {"messages": talk(), "id": "", "source": 3},
    ]
    plain = write(tmp_path / "my.pool.jsonl.gz", gzip.compress(b"\n" + lines(rows)))
    found = examples(plain)
    assert [e.where for e in found] == [f"{plain}:{n}" for n in (2, 3, 4, 5)]
    assert [e.id for e in found] == [f"{plain}:2", "7", "x", f"{plain}:5"]
    assert [e.source for e in found] == ["my.pool", "d", "s", "my.pool"]

    array = write(
        tmp_path / "a.json",
        b'[\n\n {"prompt":\n "a", "response": "b"}, {"prompt": "", "completion": "b"}, {"prompt": "", "completion": "b"}\n,'
        + lines(rows[:1])
        + b"]",
    )
    assert [e.where for e in examples(array)] == [f"{array}:{n}" for n in ("3", "4", "4 (element 3)", "5")]

    pq.write_table(pa.Table.from_pylist(rows[:1] * 3), tmp_path / "p.parquet", row_group_size=2)
    assert [e.where for e in examples(str(tmp_path / "p.parquet"))] == [
        f"{tmp_path}/p.parquet:{n}" for n in (1, 2, 3)
    ]


def test_several_sources_and_a_folder_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "many").mkdir()
    write(tmp_path / "many" / "b.jsonl", lines([{"prompt": "2", "completion": "x"}]))
    write(tmp_path / "many" / "a.json", b'[{"instruction": "1", "input": "more", "output": "x"}]')
    write(tmp_path / "many" / "README.md", b"not data")
    write(tmp_path / "one.jsonl", lines([{"messages": talk("0")}]))
    monkeypatch.chdir(tmp_path)
    found = examples("one.jsonl", "many/", "./one.jsonl")
    assert [e.messages[0]["content"] for e in found] == ["0", "1\n\nmore", "2", "0"]
    assert [e.where for e in found] == ["one.jsonl:1", "many/a.json:1", "many/b.jsonl:1", "./one.jsonl:1"]
    assert [e.source for e in found] == ["one", "a", "b", "one"]
    assert [e.where for e in examples("one.jsonl")] == [e.where for e in read_pool("one.jsonl")]


def test_tool_calls_take_the_shape_that_templates_expect():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": [1, None]}}}
    as_text = {**call, "function": {"name": "f", "arguments": '{"x": [1, null]}'}}
    flat = {"id": "c1", "name": "f", "arguments": '{"x": [1, null]}'}
    for given_calls in ([call], [as_text], [flat], json.dumps([call])):
        messages = one(
            {
                "messages": [
                    turn("user", "?"),
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": given_calls,
                        "reasoning_content": "hm",
                        "x": 1,
                    },
                    {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "f", "tool_calls": None},
                    turn("assistant", "3"),
                ]
            }
        )
        assert messages[1] == {
            "role": "assistant",
            "content": "",
            "tool_calls": [call],
            "reasoning_content": "hm",
        }
        assert messages[2] == {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "f"}
    sharegpt = one(
        {
            "conversations": [
                {"from": "human", "value": "?"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "3"},
            ]
        }
    )
    assert [m["role"] for m in sharegpt] == ["user", "assistant", "tool", "assistant"]
    assert sharegpt[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    ]
    old = one(
        {
            "messages": [
                {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}
            ]
        }
    )
    assert old[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


def test_tools_are_a_list_or_its_text():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for tools in ([tool], json.dumps([tool])):
        assert conversation_of({"messages": talk(), "tools": tools}).tools == [tool]
    for tools in (None, "", [], "[]"):
        assert conversation_of({"messages": talk(), "tools": tools}).tools is None


def test_arrow_structs_do_not_invent_keys(tmp_path: Path):
    calls = [{"function": {"name": name, "arguments": {name: 1}}} for name in ("f", "g")]
    rows: list[dict[str, Any]] = [
        {"messages": [turn("user", "?"), {"role": "assistant", "content": None, "tool_calls": [call]}]}
        for call in calls
    ]
    rows.append({"messages": talk(), "extra": 1})
    pq.write_table(pa.Table.from_pylist([{"extra": None, **row} for row in rows]), tmp_path / "p.parquet")
    found = examples(str(tmp_path / "p.parquet"))
    assert [e.messages[1].get("tool_calls", [{}])[0].get("function") for e in found[:2]] == [
        c["function"] for c in calls
    ]
    assert found[2].messages == talk()
    assert [e.columns["extra"] for e in found] == [None, None, 1]


def test_arrow_types_that_json_lacks_become_text(tmp_path: Path):
    row = {
        "prompt": "a",
        "completion": "b",
        "day": datetime.date(2024, 5, 1),
        "price": Decimal("1.50"),
        "took": datetime.timedelta(1),
    }
    row["at"] = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    columns = examples(str(tmp_path / "p.parquet"))[0].columns
    assert json.loads(json.dumps(columns)) == columns
    assert (columns["day"], columns["price"], columns["at"]) == (
        "2024-05-01",
        "1.50",
        "2024-05-01T12:00:00+00:00",
    )


def test_json_columns_of_datasets(tmp_path: Path):
    rows = [
        {"messages": talk()},
        {"messages": [*talk(), {"role": "user", "content": "!", "n": {"deep": [1]}}]},
    ]
    Dataset.from_list(rows, on_mixed_types="use_json").save_to_disk(tmp_path / "d")
    assert [e.columns for e in examples(str(tmp_path / "d"))] == rows


def test_names_of_roles_and_trailing_turns():
    names = [
        "system",
        "developer",
        "human",
        "User",
        "chatgpt",
        "bot",
        "model",
        "function_response",
        "tool_response",
        "user",
    ]
    messages = one({"conversations": [{"from": name, "value": "x"} for name in names]})
    roles = [
        "system",
        "developer",
        "user",
        "user",
        "assistant",
        "assistant",
        "assistant",
        "tool",
        "tool",
        "user",
    ]
    assert [message["role"] for message in messages] == roles
    assert one({"messages": [turn("system", "s"), *talk()], "system": "s"}) == [turn("system", "s"), *talk()]


# The hub: load_dataset is the library's own, given local files, so what it streams is real.


def test_a_hub_id_reaches_the_library_as_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "x.jsonl", lines([{"messages": talk(str(n)), "n": n} for n in range(520)]))
    asked: list[Any] = []

    def local(name: str, config: str | None, **settings: Any) -> Any:
        asked.append((name, config, settings))
        return load_dataset("json", data_files=path, split="train", streaming=True, cache_dir=str(tmp_path))

    monkeypatch.setattr("datasets.load_dataset", local)
    found = examples("owner/a.name")
    assert [e.columns["n"] for e in found] == list(range(520))
    assert (found[-1].where, found[-1].source, found[-1].messages) == (
        "owner/a.name:520",
        "a.name",
        talk("519"),
    )
    examples("owner/name/config:test.x@refs/pr/1")
    assert asked == [
        ("owner/a.name", None, {"split": "train", "revision": None, "streaming": True}),
        ("owner/name", "config", {"split": "test.x", "revision": "refs/pr/1", "streaming": True}),
    ]


@pytest.mark.parametrize(
    ("error", "todo"),
    [
        (ValueError("Bad split: x. Available splits: ['train']"), "OWNER/NAME:SPLIT"),
        (
            ValueError("Config name is missing. Pick one among the available configs: ['a']"),
            "OWNER/NAME/CONFIG",
        ),
        (FileNotFoundError("Dataset 'o/n' doesn't exist on the Hub"), "no file or folder"),
        (RuntimeError("Dataset 'o/n' is a gated dataset on the Hub"), "HF_TOKEN"),
        (ConnectionError("no route"), "network"),
    ],
)
def test_errors_of_the_hub_say_what_to_do(error: Exception, todo: str, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("datasets.load_dataset", fails)
    with pytest.raises(SiftuneError, match=f"(?i)^o/n: .*{todo}"):
        list(read_pool(["o/n"]))


# Targets


def test_target_rows_keep_their_subtasks_and_columns(tmp_path: Path):
    rows = [{"messages": talk(), "subtask": s, "answer": "4", "options": ["4", "5"]} for s in ("b", 1, "a")]
    found = read_target(write(tmp_path / "t.jsonl", lines(rows)), "maths")
    assert [row.subtask for row in found] == ["b", "1", "a"]
    assert [row.example.columns for row in found] == rows
    plain = read_target(write(tmp_path / "t.jsonl", lines([{"messages": talk()}] * 2)), "maths")
    assert [row.subtask for row in plain] == ["all", "all"]
    DatasetDict(
        {"dev": Dataset.from_list([{"prompt": "a", "completion": "b", "subtask": "s"}])}
    ).save_to_disk(tmp_path / "d")
    assert [row.subtask for row in read_target(f"{tmp_path}/d:dev", "maths")] == ["s"]


# What a fresh Python sees: speed and memory without the tests' type checks


def test_a_large_pool_streams_without_torch(tmp_path: Path):
    rows = [{"messages": talk(f"{n} " * 50, "yes")} for n in range(10_000)]
    array = write(tmp_path / "p.json", json.dumps(rows).encode())
    broken = lines(rows).splitlines(keepends=True)
    broken[2] = b'{"messages": [{"role": "user", "content": "cut\n'
    lined = write(tmp_path / "p.jsonl", b"".join(broken))
    printed = in_fresh_python(
        f"""
import sys, tracemalloc
from siftune.records.readers import read_pool
from siftune.records.example import LeftOut
left = [(n, item.where, item.reason) for n, item in enumerate(read_pool([{lined!r}])) if isinstance(item, LeftOut)]
print(left == [(2, {lined!r} + ":3", "broken JSON: Unterminated string starting at (column 43)")])
tracemalloc.start()
print(sum(1 for _ in read_pool([{array!r}])), tracemalloc.get_traced_memory()[1] < 3_000_000)
print([name for name in ("torch", "transformers", "datasets") if name in sys.modules])
"""
    )
    assert printed.splitlines() == ["True", "10000 True", "[]"]
