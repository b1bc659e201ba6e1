"""Hostile data files: each is an error that says where, or quarantine; nothing hangs and memory stays bounded.

What is merely broken is in test_records_bad_input.py.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_helpers import limited, no_hang
from hypothesis import example, given
from hypothesis import strategies as st

from records_helpers import lines, talk, write, zstd
from siftune.records import jsonstream
from siftune.records.errors import SiftuneError
from siftune.records.example import Example, LeftOut
from siftune.records.readers import read_pool, read_target

GOOD = {"messages": talk()}
LINE = lines([GOOD])


def fifo(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


def link(path: Path, to: str) -> str:
    path.symlink_to(to)
    return str(path)


def in_folder(folder: Path, make: Callable[[Path], object]) -> str:
    (folder / "f").mkdir()
    write(folder / "f" / "a.jsonl", LINE)
    make(folder / "f" / "b.jsonl")
    return str(folder / "f")


def table(path: Path, column: pa.Array, name: str = "x") -> str:
    rows = pa.table({"messages": [json.dumps(talk())] * len(column), name: column})
    pq.write_table(rows, path)
    return str(path)


def saved_folder(path: Path, state: Any, info: Any = None) -> str:
    path.mkdir()
    (path / "state.json").write_text(state if isinstance(state, str) else json.dumps(state))
    (path / "dataset_info.json").write_text(json.dumps({} if info is None else info))
    return str(path)


SOURCES: dict[str, Callable[[Path], str]] = {
    # what is no file
    "pipe": lambda d: fifo(d / "p.jsonl"),
    "pipe in gz": lambda d: fifo(d / "p.jsonl.gz"),
    "pipe as json": lambda d: fifo(d / "p.json"),
    "pipe as parquet": lambda d: fifo(d / "p.parquet"),
    "pipe among files": lambda d: in_folder(d, fifo),
    "endless device": lambda d: link(d / "p.jsonl", "/dev/zero"),
    "endless device as json": lambda d: link(d / "p.json", "/dev/urandom"),
    "endless device among files": lambda d: in_folder(d, lambda p: link(p, "/dev/zero")),
    "device": lambda d: "/dev/zero",
    "null device": lambda d: link(d / "p.jsonl", "/dev/null"),
    "link to itself": lambda d: link(d / "p.jsonl", "p.jsonl"),
    "link to itself among files": lambda d: in_folder(d, lambda p: link(p, "b.jsonl")),
    "link to nothing among files": lambda d: in_folder(d, lambda p: link(p, "nowhere")),
    "folder that links to itself": lambda d: link(d / "f", "f"),
    "own memory": lambda d: link(d / "p.jsonl", "/proc/self/mem"),
    # what is no name
    "name too long": lambda d: "a" * 5000 + ".jsonl",
    "path too long": lambda d: "a/" * 5000 + "b.jsonl",
    "NUL in the name": lambda d: str(d / "a\0b.jsonl"),
    "home of nobody": lambda d: "~no-such-person-here/x.jsonl",
    "escapes in the name": lambda d: str(d / "\x1b[2J\x1b]0;owned\x07.jsonl"),
    "surrogates in the name": lambda d: str(d / "a\udcff.jsonl"),
    "a file as folder": lambda d: write(d / "p.jsonl", LINE) + "/x.jsonl",
    # what lies about what it is
    "text in another ending": lambda d: write(d / "p.jsonl.zst", LINE),
    "gzip as text": lambda d: write(d / "p.jsonl", gzip.compress(LINE)),
    "gzip twice": lambda d: write(d / "p.jsonl.gz", gzip.compress(gzip.compress(LINE))),
    "zlib as gzip": lambda d: write(d / "p.jsonl.gz", zlib.compress(LINE)),
    "gzip header alone": lambda d: write(d / "p.jsonl.gz", gzip.compress(b"")[:10]),
    "zst header alone": lambda d: write(d / "p.jsonl.zst", zstd(b"")[:4]),
    "Parquet as text": lambda d: write(d / "p.jsonl", b"PAR1" + bytes(100) + b"PAR1"),
    "magic alone": lambda d: write(d / "p.parquet", b"PAR1PAR1"),
    "Parquet of a huge footer": lambda d: write(d / "p.parquet", b"PAR1" + b"\xff\xff\xff\x7fPAR1"),
    "Parquet of a negative footer": lambda d: write(d / "p.parquet", b"PAR1" + b"\xff\xff\xff\xffPAR1"),
    "Parquet footer of zeros": lambda d: write(d / "p.parquet", b"PAR1" + bytes(64) + b"\x40\0\0\0PAR1"),
    "UTF-16, big end first": lambda d: write(d / "p.jsonl", b"\xfe\xff" + LINE.decode().encode("utf-16-be")),
    "UTF-16 without its mark": lambda d: write(d / "p.jsonl", LINE.decode().encode("utf-16-le")),
    "UTF-32": lambda d: write(d / "p.json", LINE.decode().encode("utf-32")),
    "Latin-1": lambda d: write(d / "p.jsonl", '{"prompt": "é", "completion": "ü"}\n'.encode("latin-1")),
    "overlong UTF-8": lambda d: write(d / "p.jsonl", b'{"prompt": "\xc0\xaf", "completion": "x"}\n'),
    "NUL bytes": lambda d: write(d / "p.jsonl", bytes(5000)),
    "NUL bytes as json": lambda d: write(d / "p.json", bytes(5000)),
    "old Mac line ends": lambda d: write(d / "p.jsonl", LINE.strip() + b"\r" + LINE.strip() + b"\r"),
    "a script": lambda d: write(d / "p.jsonl", b"#!/bin/sh\nrm -rf ~\n"),
    "a pickle": lambda d: write(d / "p.jsonl", b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94."),
    "YAML": lambda d: write(d / "p.jsonl", b"!!python/object/apply:os.system ['true']\n"),
    "XML": lambda d: write(d / "p.json", b'<!DOCTYPE x [<!ENTITY a "&b;&b;">]><x>&a;</x>'),
    # depth and length
    "array of arrays": lambda d: write(d / "p.json", b"[" * 200_000),
    "array of closed arrays": lambda d: write(d / "p.json", b"[" * 100_000 + b"]" * 100_000),
    "object of objects": lambda d: write(d / "p.jsonl", b'{"a":' * 100_000),
    "one number of a million digits": lambda d: write(d / "p.json", b"1" * 1_000_000),
    "only commas": lambda d: write(d / "p.json", b"[" + b"," * 100_000),
    "an open string": lambda d: write(d / "p.json", b'["' + b"a" * 1_000_000),
    "a string of backslashes": lambda d: write(d / "p.json", b'["' + b"\\" * 1_000_001),
    # Arrow
    "time beyond the calendar": lambda d: table(d / "p.parquet", pa.array([2**31 - 1], pa.date32())),
    "moment beyond the calendar": lambda d: table(d / "p.parquet", pa.array([2**45], pa.timestamp("s"))),
    "column of bytes": lambda d: table(d / "p.parquet", pa.array([b"\x80\x04"], pa.binary())),
    "column that is a dot path": lambda d: table(d / "p.parquet", pa.array([b"\x80"], pa.binary()), "../../x"),
    "state.json of a list": lambda d: saved_folder(d / "s", []),
    "state.json of text": lambda d: saved_folder(d / "s", "x"),
    "state.json of numbers": lambda d: saved_folder(d / "s", {"_data_files": 3}),
    "state.json that leaves its folder": lambda d: saved_folder(
        d / "s", {"_data_files": [{"filename": "../../../../etc/passwd"}], "_fingerprint": "x", "_split": None}
    ),
    "state.json that names a builder": lambda d: saved_folder(
        d / "s", {"_data_files": [], "_format_type": "os.system"}, {"builder_name": "/tmp/evil.py"}
    ),
    "dataset_dict.json of numbers": lambda d: saved_folder(d / "s", {"splits": 3}),
}  # fmt: skip


@pytest.mark.parametrize("case", SOURCES)
def test_a_hostile_source_is_an_error_that_says_where_and_what_to_do(case: str, tmp_path: Path) -> None:
    given = SOURCES[case](tmp_path)
    for read in (lambda: list(read_pool([given])), lambda: read_target(given, "x")):
        with no_hang(), pytest.raises(SiftuneError) as caught:
            read()
        assert caught.value.where
        assert caught.value.todo
        assert len(str(caught.value)) < 20_000


ROWS: dict[str, tuple[bytes, str | None]] = {
    "key given twice, the good one last": (b'{"messages": 1, "messages": %s}' % json.dumps(talk()).encode(), None),
    "key given twice, the bad one last": (b'{"messages": %s, "messages": 1}' % json.dumps(talk()).encode(), "not a list"),
    "Infinity": (b'{"prompt": "a", "completion": "b", "x": -Infinity}', "finite"),
    "a tiny number": (b'{"prompt": "a", "completion": "b", "x": 1e-400}', None),
    "a huge whole number": (b'{"prompt": "a", "completion": "b", "x": 1%s}' % (b"0" * 4000), None),
    "minus zero": (b'{"prompt": "a", "completion": "b", "x": -0.0}', None),
    "a class": (b'{"prompt": "a", "completion": "b", "__class__": "os.system", "py/object": "os"}', None),
    "prototype": (b'{"prompt": "a", "completion": "b", "__proto__": {"x": 1}}', None),
    "an empty key": (b'{"prompt": "a", "completion": "b", "": 1}', None),
    "a key of our own": (b'{"prompt": "a", "completion": "b", "_siftune": {"row": -1}}', None),
    "a template in the text": (b'{"prompt": "{{ 7*7 }}{% raw %}", "completion": "{% endraw %}"}', None),
    "a path as id": (b'{"prompt": "a", "completion": "b", "id": "../../etc/passwd"}', None),
    "a number as source": (b'{"prompt": "a", "completion": "b", "source": 5}', None),
    "an id of megabytes": (b'{"prompt": "a", "completion": "b", "id": "%s"}' % (b"i" * 1_000_000), None),
    "ten thousand columns": (
        b'{"prompt": "a", "completion": "b", ' + b", ".join(b'"c%d": 1' % n for n in range(10_000)) + b"}",
        None,
    ),
    "three thousand turns": (json.dumps({"messages": talk() * 1500}).encode(), None),
    "role with an escape": (b'{"messages": [{"role": "\\u001b[2J", "content": "x"}]}', "unknown role"),
    "content that is a tree": (
        b'{"messages": [{"role": "user", "content": [[[[{"text": "x"}]]]]}]}',
        "not text",
    ),
    "a byte order mark inside": (b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}', "broken JSON"),
    "a line of 17 MB": (b'{"prompt": "a", "completion": "%s"}' % (b"x" * (17 << 20)), "longer than 16 MiB"),
    "separators of lines": ('{"prompt": "a\u2028\u2029\u0085", "completion": "b\u000b"}'.replace("\x0b", "").encode(), None),
    "noncharacters": ('{"prompt": "\uffff\ufdd0", "completion": "b"}'.encode(), None),
    "bidi and controls": (b'{"prompt": "\\u202e\\u0000\\u001b[31m", "completion": "\\u0007b"}', None),
    "a pair of surrogates the wrong way": (b'{"prompt": "\\udc00\\ud800", "completion": "b"}', "lone surrogate"),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_a_hostile_row_costs_only_itself(case: str, tmp_path: Path) -> None:
    row, reason = ROWS[case]
    path = write(tmp_path / "p.jsonl", LINE + row + b"\n" + LINE)
    with no_hang():
        before, found, after = list(read_pool([path]))
    assert isinstance(before, Example)
    assert isinstance(after, Example)
    assert after.where == f"{path}:3"
    if reason is None:
        assert isinstance(found, Example)
    else:
        assert isinstance(found, LeftOut)
        assert reason in found.reason
        assert len(found.text) <= 200


def test_an_array_element_without_end_is_an_error_before_all_of_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonstream, "MAX_ROW", 1 << 16)
    path = write(tmp_path / "p.json", b"[" + LINE + b', "' + b"a" * (1 << 22) + b'"]')
    rows = read_pool([path])
    assert isinstance(next(rows), Example)
    with pytest.raises(SiftuneError, match="after 1 rows: the next element is longer"):
        next(rows)


BOMBS: dict[str, tuple[str, str]] = {
    "a line of 256 MB in gzip": (
        "with gzip.open(path, 'wb', 1) as f:\n"
        "    f.write(GOOD)\n"
        "    for _ in range(256): f.write(b'x' * 2**20)\n"
        "    f.write(b'\\n' + GOOD)\n",
        "p.jsonl.gz",
    ),
    "a million blank lines in gzip": (
        "with gzip.open(path, 'wb', 1) as f:\n    f.write(GOOD)\n"
        "    for _ in range(1): f.write(b'\\n' * 2**20)\n    f.write(GOOD)\n",
        "p.jsonl.gz",
    ),
    "a line of 100 MB": (
        "with open(path, 'wb') as f:\n    f.write(GOOD + b'{\"prompt\": \"' + b'x' * 100_000_000 + b'\\n' + GOOD)\n",
        "p.jsonl",
    ),
}


@pytest.mark.parametrize("case", BOMBS)
def test_what_unfolds_to_more_than_memory_holds_is_read_in_bounded_memory(case: str, tmp_path: Path) -> None:
    make, name = BOMBS[case]
    code = (
        f"import gzip\npath, GOOD = {str(tmp_path / name)!r}, {LINE!r}\n{make}"
        "from siftune.records.readers import read_pool\n"
        "print([type(row).__name__ for row in read_pool([path])])\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "print(next(line.split()[1] for line in lines if line.startswith('VmHWM')))"
    )
    done = limited(code, megabytes=450)
    assert done.returncode == 0, done.stderr
    kinds, peak = done.stdout.split("\n")[:2]
    assert kinds in ("['Example', 'LeftOut', 'Example']", "['Example', 'Example']")
    assert int(peak) < 200 << 10, "KiB: the bytes of one row, and what Python needs to begin with"


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
NAMED = st.dictionaries(
    st.sampled_from(["messages", "conversations", "prompt", "completion", "instruction", "input", "output"])
    | st.sampled_from(["tools", "system", "history", "id", "source", "subtask", "chosen"]),
    ANY_JSON | st.lists(st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), ANY_JSON), max_size=3),
    max_size=5,
)  # fmt: skip


@given(st.binary(max_size=300))
@example(b"[" * 300)
def test_any_bytes_in_any_container_end_in_rows_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in ("a.jsonl", "a.json", "a.parquet", "a.jsonl.gz", "a.json.zst"):
        path = write(folder / name, data)
        try:
            rows = list(read_pool([path]))
        except SiftuneError as error:
            assert error.where  # noqa: PT017
            continue
        assert all(isinstance(row, (Example, LeftOut)) for row in rows)


@given(NAMED)
def test_any_json_under_known_columns_is_a_row_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any]
) -> None:
    path = write(tmp_path_factory.mktemp("any") / "p.jsonl", LINE + json.dumps(row).encode() + b"\n")
    first, second = read_pool([path])
    assert isinstance(first, Example)
    assert isinstance(second, Example) or second.reason
