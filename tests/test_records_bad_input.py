"""Reading bad input, as tables: a bad row is left out with its place and reason, a bad source is an error that says where."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from records_helpers import lines, talk, turn, write, zstd
from siftune.records import jsonstream
from siftune.records.errors import SiftuneError
from siftune.records.example import Example, LeftOut
from siftune.records.readers import read_pool, read_target

GOOD = {"messages": talk()}
USER = turn("user", "?")


def said(*turns: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": list(turns), **columns}


def called(function: Any) -> dict[str, Any]:
    return said(USER, {"role": "assistant", "content": "", "tool_calls": [function]})


BAD_ROWS: list[tuple[Any, str]] = [
    # broken text (bytes are a line as it stands)
    (b'{"messages": [', "broken JSON: Expecting value (column 15)"),
    (b'{"a": 1} {"b": 2}', "broken JSON: Extra data (column 10)"),
    (b'{"a": "\xff"}', "invalid UTF-8 (byte 8)"),
    (b'{"a": "\x00"}', "broken JSON: Invalid control character at (column 8)"),
    (b'{"n": ' + b"1" * 5000 + b"}", "holds a number with too many digits"),
    (b"[" * 100_000, "is nested deeper than 200 levels; a JSON array belongs in a file that ends in .json"),
    (b'{"messages": ' + b"[" * 250 + b"]" * 250 + b"}", "message 1 is not an object"),
    (b"[", "broken JSON: Expecting value (column 2); a JSON array belongs in a file that ends in .json"),
    # no row that is known
    ([GOOD], "not an object"),
    (7, "not an object"),
    (None, "not an object"),
    ({}, "no known format; columns: none"),
    ({"text": "x", "n": 1}, "no known format; columns: text, n"),
    ({"messages": None, "id": 3}, "no known format; columns: messages (null), id"),
    ({"prompt": "x"}, "no known format; columns: prompt"),
    ({"prompt": "x", "completion": None}, "no known format; columns: prompt, completion (null)"),
    ({"instruction": "x", "input": ""}, "no known format; columns: instruction, input"),
    (
        {"prompt": "x", "chosen": "a", "rejected": "b"},
        "preference pairs are not supported (columns chosen and rejected)",
    ),
    # no assistant turn to learn
    (said(), "no assistant turn"),
    (said(USER), "no assistant turn"),
    (said(turn("system", "s"), USER, USER, system="s"), "no assistant turn"),
    (said(USER, turn("assistant", "")), "empty assistant turn (message 2)"),
    (said(*talk(), USER, turn("assistant", " \n")), "empty assistant turn (message 4)"),
    (said(USER, {"role": "assistant", "content": "", "tool_calls": []}), "empty assistant turn (message 2)"),
    (said(USER, {"role": "assistant", "content": []}), "empty assistant turn (message 2)"),
    (said(USER, {"role": "assistant", "content": None}), "message 2 has no content"),
    (said(USER, {"role": "assistant"}), "message 2 has no content"),
    ({"instruction": "x", "output": ""}, "empty assistant turn (message 2)"),
    ({"prompt": [USER], "completion": [turn("assistant", "")]}, "empty assistant turn (message 2)"),
    # messages that are none
    ({"messages": "hi"}, "column messages is not a list of messages"),
    (said("hi"), "message 1 is not an object"),
    (said(USER, {"content": "x"}), "message 2 has no role"),
    (said({"role": 1, "content": "x"}), "the role of message 1 is not text"),
    (said(turn("narrator", "x")), "unknown role 'narrator' (message 1)"),
    (said(USER, {"role": "assistant", "content": 4}), "content of message 2 is not text"),
    (said({"role": "user", "content": [{"type": "image"}]}), "image content is not supported (message 1)"),
    (
        said({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
        "image content is not supported (message 1)",
    ),
    (said({"role": "user", "content": ["x"]}), "a content part of message 1 is not text"),
    (
        said({"role": "user", "content": [{"type": "text", "text": None}]}),
        "a content part of message 1 is not text",
    ),
    (said(USER, {**talk()[1], "name": 3}), "name of message 2 is not text"),
    (said(*talk(), system=3), "column system is not text"),
    (
        said(turn("system", "a"), *talk(), system="b"),
        "two system turns that differ: column system and message 1",
    ),
    ({"instruction": 3, "output": "x"}, "column instruction is not text"),
    ({"instruction": "x", "input": 0, "output": "x"}, "column input is not text"),
    ({"instruction": "x", "output": "x", "history": [["a"]]}, "column history is not a list of pairs"),
    ({"instruction": "x", "output": "x", "history": "a"}, "column history is not a list"),
    ({"prompt": "x", "completion": {"a": 1}}, "column completion is not a list of messages"),
    # tools
    (called({"function": {}}), "a function call of message 2 has no name"),
    (called("f"), "a function call of message 2 has no name"),
    (
        called({"name": "f", "arguments": "{"}),
        "the arguments of 'f' in message 2 is not JSON (Expecting property name*",
    ),
    (called({"name": "f", "arguments": "[]"}), "the arguments of 'f' in message 2 are not an object"),
    (called({"name": "f", "arguments": '{"x": NaN}'}), "message 2 is not a finite number"),
    (
        called({"name": "f", "parameters": {}}),
        "a function call of message 2 has no arguments, but parameters",
    ),
    (
        said({**USER, "tool_calls": [{"name": "f"}]}, talk()[1]),
        "message 1 calls a function, but its role is user",
    ),
    (said(USER, {"from": "function_call", "value": "f(x)"}), "the function call of message 2 is not JSON (*"),
    (said(USER, {"from": "function_call", "value": ""}), "message 2 calls no function"),
    (said(*talk(), tools="calculator"), "column tools is not JSON (*"),
    (said(*talk(), tools=["f"]), "column tools is not a list of objects"),
    # what JSON can't give back
    (b'{"prompt": "a", "completion": "b\\ud800"}', "message 2 holds a lone surrogate"),
    (b'{"prompt": "a", "completion": "b", "tools": [{"\\udc00": 1}]}', "column tools holds a lone surrogate"),
    (b'{"prompt": "a", "completion": "b", "system": "\\udc00"}', "column system holds a lone surrogate"),
    (b'{"prompt": "a", "completion": "b", "id": "\\udc00"}', "column id holds a lone surrogate"),
    (b'{"prompt": "a", "completion": "b", "x": {"y": NaN}}', "column x is not a finite number"),
    (b'{"prompt": "a", "completion": "b", "x": 1e999}', "column x is not a finite number"),
    (
        b'{"prompt": "a", "completion": "b", "x": ' + b"[" * 250 + b"]" * 250 + b"}",
        "column x is nested deeper than 200 levels",
    ),
]


def as_line(row: Any) -> bytes:
    return row + b"\n" if isinstance(row, bytes) else lines([row])


def matches(reason: str, wanted: str) -> bool:
    return reason.startswith(wanted[:-1]) if wanted.endswith("*") else reason == wanted


def test_bad_rows_are_left_out_with_their_reasons_and_nothing_else_is(tmp_path: Path):
    good = as_line(GOOD)
    path = write(tmp_path / "p.jsonl", b"".join(as_line(row) + good for row, _ in BAD_ROWS))
    found = list(read_pool([path]))
    assert len(found) == 2 * len(BAD_ROWS)
    for number, ((row, reason), item) in enumerate(zip(BAD_ROWS, found[::2], strict=True)):
        assert isinstance(item, LeftOut), row
        assert matches(item.reason, reason), (item.reason, reason)
        assert item.where == f"{path}:{2 * number + 1}"
        assert len(item.text) <= 200
        json.dumps(item.__dict__, ensure_ascii=False).encode()
    assert all(isinstance(item, Example) and item.messages == talk() for item in found[1::2])


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_bad_row_of_a_target_is_an_error(row: Any, reason: str, tmp_path: Path):
    path = write(tmp_path / "t.jsonl", as_line(GOOD) + b"\n" + as_line(row))
    with pytest.raises(SiftuneError) as caught:
        read_target(path, "maths")
    assert caught.value.where == f"{path}:3"
    assert matches(caught.value.what, reason)


def test_left_out_rows_keep_what_is_known_of_them(tmp_path: Path):
    rows = [
        GOOD,
        {"id": 5, "dataset": "d", "text": "x" * 500},
        {"id": "\ud800", "prompt": "a", "completion": "b"},
    ]
    path = write(tmp_path / "p.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    _, first, second = read_pool([path])
    assert isinstance(first, LeftOut)
    assert (first.id, first.source, first.text) == ("5", "d", json.dumps(rows[1])[:200])
    assert isinstance(second, LeftOut)
    assert second.id == "\\ud800"


def test_hostile_but_legal_text_stays_as_it_is(tmp_path: Path):
    texts = ["\x00\x1b[31m", "\u202eabc", "🦉" * 300_000, "a" * 1_500_000, "<|im_end|>", "\ufeffx", "\u2028"]
    rows = [said(turn("user", t), turn("assistant", "x" + t)) | {"big": 10**400} for t in texts]
    for found in (
        list(read_pool([write(tmp_path / "p.jsonl", lines(rows))])),
        list(read_pool([write(tmp_path / "p.json", json.dumps(rows).encode())])),
    ):
        assert [item.columns if isinstance(item, Example) else item for item in found] == rows


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_elements_of_an_array_that_cannot_be_held_cost_only_themselves(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jsonstream, "_CHUNK", chunk)
    deep = '{"x": ["]\\"", ' + "[" * 3000 + "]" * 3000 + "]}"
    parts = [json.dumps(GOOD), deep, "1" * 5000, "12", "-Infinity", '"a]"', "null", json.dumps(GOOD)]
    found = list(read_pool([write(tmp_path / "p.json", ("[" + " ,\n".join(parts) + "]").encode())]))
    reasons = [
        "is nested deeper than 200 levels",
        "holds a number with too many digits",
        *["not an object"] * 4,
    ]
    assert [item.reason for item in found if isinstance(item, LeftOut)] == reasons
    assert [isinstance(item, Example) for item in found] == [True, *[False] * 6, True]


def random_text(n_rows: int) -> bytes:
    """Lines that hardly compress, so that a cut falls among rows."""
    import hashlib

    return lines([said(*talk(hashlib.sha256(str(n).encode()).hexdigest() * 40)) for n in range(n_rows)])


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def cut_parquet(folder: Path) -> str:
    path = Path(parquet(folder / "p.parquet", [GOOD] * 50))
    return write(path, path.read_bytes()[:-20])


def twice_named(folder: Path) -> str:
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["x", "x"]), folder / "p.parquet")
    return str(folder / "p.parquet")


def saved(folder: Path, split: str) -> str:
    DatasetDict({"a": Dataset.from_list([GOOD]), "b": Dataset.from_list([GOOD])}).save_to_disk(folder / "d")
    return f"{folder / 'd'}{split}"


def made_folder(folder: Path, *names: str) -> str:
    (folder / "f").mkdir()
    for name in names:
        (folder / "f" / name).touch()
    return str(folder / "f")


G = as_line(GOOD)
# what is written and given, and what the error says: PATH is what was given
BAD_SOURCES: dict[str, tuple[Callable[[Path], str], str]] = {
    "empty": (lambda d: write(d / "p.jsonl", b""), "PATH: holds no rows. "),
    "blank lines": (lambda d: write(d / "p.jsonl", b"\n \n"), "PATH: holds no rows"),
    "empty gz": (lambda d: write(d / "p.jsonl.gz", gzip.compress(b"")), "PATH: holds no rows"),
    "empty json": (lambda d: write(d / "p.json", b" \n"), "PATH: holds no rows"),
    "empty array": (lambda d: write(d / "p.json", b"[ ]"), "PATH: holds no rows"),
    "empty parquet": (lambda d: parquet(d / "p.parquet", []), "PATH: holds no rows"),
    "no usable row": (
        lambda d: write(d / "p.jsonl", b'\n{"q": 1, "text": "x"}\n{"q": 2, "z": 3}\n'),
        "PATH:2: none of the 2 rows of PATH can be used, this one because: no known format; columns: q, text; "
        "columns found: q, text, z. Known formats are messages",
    ),
    "csv": (
        lambda d: write(d / "p.csv", G),
        "PATH: the ending of the file is not known. Known endings are .jsonl, ",
    ),
    "gz alone": (lambda d: write(d / "p.gz", G), "PATH: the ending of the file is not known"),
    "packed parquet": (lambda d: write(d / "p.parquet.gz", G), "PATH: the ending of the file is not known"),
    "missing": (lambda d: str(d / "p.jsonl"), "PATH: there is no such file or folder. Check the path"),
    "missing, relative": (lambda d: "data/p.jsonl.gz", "PATH: there is no such file or folder"),
    "missing folder": (lambda d: "./data", "PATH: there is no such file or folder"),
    "one word": (lambda d: "alpaca", "PATH: there is no such file or folder.*OWNER/NAME"),
    "empty name": (lambda d: "", "'': the path is empty"),
    "folder without data": (
        lambda d: made_folder(d, "README.md"),
        "PATH: the folder holds no data. Known endings",
    ),
    "empty file in a folder": (lambda d: made_folder(d, "a.jsonl"), "PATH/a.jsonl: holds no rows"),
    "split of plain files": (
        lambda d: made_folder(d, "a.jsonl") + ":train",
        "PATH: is not a folder that datasets wrote",
    ),
    "no split named": (lambda d: saved(d, ""), "PATH: has several splits \\(a, b\\). Name one: PATH:a"),
    "unknown split": (lambda d: saved(d, ":c"), "PATH: has no split 'c' \\(a, b\\)"),
    "broken folder": (lambda d: made_folder(d, "state.json"), "PATH: can't be read as a folder of datasets"),
    "UTF-16": (lambda d: write(d / "p.jsonl", G.decode().encode("utf-16")), "PATH: is text in UTF-16. Save"),
    "cut gz": (
        lambda d: write(d / "p.jsonl.gz", gzip.compress(random_text(400))[:-5000]),
        r"PATH: .*after [1-9]\d+ rows: Compressed",
    ),
    "cut zst": (
        lambda d: write(d / "p.jsonl.zst", zstd(random_text(400))[:-5000]),
        r"PATH: .*after [1-9]\d+ rows: Truncated",
    ),
    "no gz": (
        lambda d: write(d / "p.jsonl.gz", G),
        "PATH: can't be read to its end, after 0 rows: Not a gzipped file",
    ),
    "no zst": (lambda d: write(d / "p.json.zst", G), "PATH: can't be read to its end, after 0 rows: ZSTD"),
    "flipped gz": (
        lambda d: write(d / "p.jsonl.gz", gzip.compress(G * 9)[:-6] + b"123456"),
        "PATH: .*CRC check failed",
    ),
    "cut parquet": (cut_parquet, "PATH: can't be read as Parquet, after 0 rows"),
    "no parquet": (lambda d: write(d / "p.parquet", G), "PATH: can't be read as Parquet, after 0 rows"),
    "column named twice": (twice_named, "PATH: has two columns 'x'"),
    "bytes": (
        lambda d: parquet(d / "p.parquet", [{**GOOD, "image": {"bytes": b"x"}}]),
        "PATH: column 'image' holds bytes.*Remove",
    ),
    "object over lines": (
        lambda d: write(d / "p.json", b'{\n"data": []}'),
        "PATH:1: the file is neither a JSON array nor JSON lines",
    ),
    "broken array": (
        lambda d: write(d / "p.json", b"[\n" + G + b",\n{],\n" + G + b"]"),
        "PATH:4: the JSON array breaks here, after 1 rows: Expecting property name .*column 2.*jsonl",
    ),
    "cut array": (
        lambda d: write(d / "p.json", b"[\n" + G + b',\n{"a": "x'),
        "PATH:4: .*after 1 rows: Unterminated string .*column 7",
    ),
    "array without end": (
        lambda d: write(d / "p.json", b"[" + G),
        "PATH:2: .*after 1 rows: Expecting ',' or ']'",
    ),
    "array with a comma too many": (
        lambda d: write(d / "p.json", b"[" + G + b", ]"),
        "PATH:2: .*: Expecting value .column 3",
    ),
    "array without a comma": (
        lambda d: write(d / "p.json", b"[" + G + G + b"]"),
        "PATH:2: .*: Expecting ',' or ']' .column 1",
    ),
    "text after the array": (
        lambda d: write(d / "p.json", b"[" + G + b"]\n\n]"),
        "PATH:4: .*: text after the end",
    ),
    "array cut in a deep element": (
        lambda d: write(d / "p.json", b"[" + G + b"," + b"[" * 9000),
        "PATH:2: .*the last element has no end",
    ),
    "array of bad UTF-8": (
        lambda d: write(d / "p.json", b"[" + G + b',\n"ab\xff"]'),
        "PATH:3: .*: invalid UTF-8 .column 4",
    ),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_source_is_an_error_that_says_where(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made, message = BAD_SOURCES[case]
    given = made(tmp_path)
    pattern = message.replace("PATH", re.escape(given))
    with pytest.raises(SiftuneError, match=f"^{pattern}") as caught:
        list(read_pool([given]))
    assert caught.value.todo
    with pytest.raises(SiftuneError, match="no known format" if case == "no usable row" else f"^{pattern}"):
        read_target(given, "maths")


def test_rows_before_a_break_come_out_first(tmp_path: Path):
    path = write(tmp_path / "p.json", b"[" + G + b"," + G + b", oops]")
    rows = read_pool([path])
    assert [next(rows).where, next(rows).where] == [f"{path}:1", f"{path}:2"]
    with pytest.raises(SiftuneError, match="after 2 rows"):
        next(rows)


def test_every_path_is_looked_up_before_a_row_is_read(tmp_path: Path):
    with pytest.raises(SiftuneError, match="no such file"):
        read_pool([write(tmp_path / "p.jsonl", G), str(tmp_path / "missing.jsonl")])
    with pytest.raises(SiftuneError, match="no pool is given"):
        read_pool([])


@pytest.mark.parametrize(
    ("subtasks", "line", "what"),
    [
        (["a", None, "a"], 2, "names no subtask, but .*:1 does"),
        ([None, "a"], 1, "names no subtask, but .*:2 does"),
        (["a", ["b"]], 2, r"the subtask \['b'\] is not a name"),
        (["a", ""], 2, "the subtask '' is not a name"),
        ([True], 1, "the subtask True is not a name"),
    ],
)
def test_subtasks_that_are_none(subtasks: list[Any], line: int, what: str, tmp_path: Path):
    path = write(tmp_path / "t.jsonl", lines([{**GOOD, "subtask": subtask} for subtask in subtasks]))
    with pytest.raises(SiftuneError, match=what) as caught:
        read_target(path, "maths")
    assert caught.value.where == f"{path}:{line}"


@pytest.mark.parametrize("name", ["", ".x", "a/b", "a b", "ü"])
def test_a_target_whose_name_is_no_folder_name(name: str, tmp_path: Path):
    with pytest.raises(SiftuneError, match="can't name a target"):
        read_target(write(tmp_path / "t.jsonl", G), name)
