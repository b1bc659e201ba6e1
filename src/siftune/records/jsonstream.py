"""JSON rows from a file, streamed: JSON lines and JSON arrays, plain or compressed.

A broken line costs only itself, since the next one starts at the next newline. A broken array can't be read past the break.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siftune.records.errors import SiftuneError
from siftune.records.row import TOO_DEEP, Row

MAX_ROW = 1 << 24
"""Bytes that a row may have (16 MiB): no example of a chat is longer, and a line without an end must not fill the memory."""
_TOO_LONG = f"is longer than {MAX_ROW >> 20} MiB"
_CHUNK = 1 << 18  # bytes read at a time from an array
_NEAR_END = (
    32  # characters: no JSON token but a string is cut off further than this before the end of what was read
)
_SPACE = re.compile(r"[ \t\r\n]*")
_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*"|[][{},"]', re.DOTALL)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, decompressed by its ending (.gz, .zst)."""
    if path.suffix.lower() == ".gz":
        with gzip.GzipFile(path, "rb") as file:
            yield file
    elif path.suffix.lower() == ".zst":
        import pyarrow as pa

        with pa.OSFile(str(path)) as packed, pa.CompressedInputStream(packed, "zstd") as file:
            yield io.BufferedReader(file, _CHUNK)
    else:
        with io.BufferedReader(io.FileIO(path), _CHUNK) as file:
            yield file


def json_lines(path: Path, shown: str) -> Iterator[Row]:
    """The rows of a JSON-lines file; blank lines are no rows. `shown` is the path as the person gave it."""
    with opened(path) as file:
        number = 0
        while line := file.readline(MAX_ROW + 1):
            number += 1
            if number == 1:
                line = _without_mark(line, shown)
            if len(line) > MAX_ROW:
                _skip_line(file, line)
                yield Row(f"{shown}:{number}", None, line[:1000].decode("utf-8", "replace"), _TOO_LONG)
                continue
            line = line.rstrip(b"\r\n")
            if line and not line.isspace():
                yield _parsed_line(line, f"{shown}:{number}")


def _skip_line(file: io.BufferedIOBase, part: bytes) -> None:
    """Read to the end of the line of which `part` was read last, holding little of it."""
    while part and not part.endswith(b"\n"):
        part = file.readline(_CHUNK)


def json_rows(path: Path, shown: str) -> Iterator[Row]:
    """The rows of a .json file: an array, or JSON lines under another name."""
    with opened(path) as file:
        start = _without_mark(file.read(_CHUNK), shown).lstrip()
        while not start and (more := file.read(_CHUNK)):
            start = more.lstrip()
    if start.startswith(b"["):
        yield from json_array(path, shown)
        return
    for count, row in enumerate(json_lines(path, shown)):
        if count == 0 and row.problem:
            raise SiftuneError(
                f"the file is neither a JSON array nor JSON lines ({row.problem})",
                where=row.where,
                todo="Write the rows as a list, [{…}, {…}], or one object a line",
            )
        yield row


def _without_mark(start: bytes, shown: str) -> bytes:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SiftuneError("is text in UTF-16", where=shown, todo="Save the file as UTF-8")
    return start.removeprefix(codecs.BOM_UTF8)


def _parsed_line(line: bytes, where: str) -> Row:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = line[:1000].decode("utf-8", "backslashreplace")
        return Row(where, None, shown, f"invalid UTF-8 (byte {error.start + 1})")
    try:
        return Row(where, json.loads(text), text)
    except (ValueError, RecursionError) as error:
        problem = _problem(error)
    if text.startswith("["):
        problem += "; a JSON array belongs in a file that ends in .json"
    return Row(where, None, text, problem)


def _problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} (column {error.colno})"
    return TOO_DEEP if isinstance(error, RecursionError) else "holds a number with too many digits"


def json_array(path: Path, shown: str) -> Iterator[Row]:
    """The elements of a JSON array, `where` = the line on which each starts (and its number, where lines hold several).

    Only the element at hand and one chunk are held. Raises SiftuneError naming the line where the array breaks.
    """
    with opened(path) as file:
        text = _Window(file, shown)
        text.expect("[")
        last_line, closed = 0, text.peek() == "]"
        while not closed:
            text.peek()
            line, start = text.line(), text.buffer[text.position : text.position + 200]
            where = f"{shown}:{line}" if line != last_line else f"{shown}:{line} (element {text.count + 1})"
            last_line = line
            value, problem = text.element()
            yield Row(where, value, start, problem)
            closed = text.peek() != ","
            if not closed:
                text.expect(",")
        text.expect("]")
        if text.peek():
            raise text.broken("text after the end of the array", text.position)


class _Window:
    """The part of an array's text that is in memory: `buffer` from `position` on is not yet read."""

    def __init__(self, file: io.BufferedIOBase, shown: str):
        self.file, self.shown = file, shown
        self.decoder, self.json = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
        self.buffer, self.position, self.at_end = "", 0, False
        self.lines_before, self.counted = 1, 0  # the line at which `buffer[counted]` stands
        self.column_before = 0  # characters on the line of `buffer[0]` that are behind it
        self.count = 0

    def line(self, position: int | None = None) -> int:
        """The line on which `position` (default: the next character) stands, from 1."""
        if position is not None:
            return self.lines_before + self.buffer.count("\n", self.counted, position)
        self.lines_before += self.buffer.count("\n", self.counted, self.position)
        self.counted = self.position
        return self.lines_before

    def column(self, position: int) -> int:
        """The column at which `position` stands, from 1."""
        newline = self.buffer.rfind("\n", 0, position)
        return position - newline if newline >= 0 else self.column_before + position + 1

    def more(self) -> None:
        """Read on, forgetting what is behind; doubling, so that a long element is parsed again only a few times."""
        if len(self.buffer) - self.position > MAX_ROW:
            raise self.broken(f"the next element {_TOO_LONG}", self.position)
        self.line()
        self.column_before = self.column(self.position) - 1
        self.buffer, self.position, self.counted = self.buffer[self.position :], 0, 0
        data = self.file.read(max(_CHUNK, 2 * len(self.buffer)))
        self.at_end = not data
        try:
            self.buffer += self.decoder.decode(data, final=self.at_end)
        except UnicodeDecodeError as error:
            good = self.buffer + error.object[: error.start].decode("utf-8", "replace")
            self.buffer = good
            raise self.broken("invalid UTF-8", len(good)) from error

    def peek(self) -> str:
        """The next character that isn't space; empty at the end of the file."""
        while True:
            match = _SPACE.match(self.buffer, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.buffer) or self.at_end:
                return self.buffer[self.position : self.position + 1]
            self.more()

    def expect(self, mark: str) -> None:
        if self.peek() != mark:
            wanted = "',' or ']'" if mark == "]" else f"'{mark}'"
            raise self.broken(f"Expecting {wanted}", self.position)
        self.position += 1

    def element(self) -> tuple[Any, str | None]:
        """The next element, or None and the reason why a well-marked element can't be held."""
        while True:
            problem = value = None
            try:
                value, end = self.json.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                if self.at_end or not self._may_be_cut(error):
                    raise self.broken(error.msg, error.pos) from error
                end = None
            except (ValueError, RecursionError) as error:
                problem, end = _problem(error), _end_of_value(self.buffer, self.position)
            # a number that reaches the end of the buffer may go on behind it
            if end is not None and (end < len(self.buffer) or self.at_end):
                self.position, self.count = end, self.count + 1
                return value, problem
            if self.at_end:
                raise self.broken("the last element has no end", self.position)
            self.more()

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.buffer) - _NEAR_END

    def broken(self, what: str, position: int) -> SiftuneError:
        return SiftuneError(
            f"the JSON array breaks here, after {self.count} rows: {what} (column {self.column(position)})",
            where=f"{self.shown}:{self.line(position)}",
            todo="Correct the file, or write one object a line (.jsonl): there a broken row costs only itself",
        )


def _end_of_value(text: str, start: int) -> int | None:
    """Where the JSON value at `start` ends, found by its brackets alone; None where the text ends first."""
    depth = 0
    for match in _STRUCTURE.finditer(text, start):
        mark = match[0]
        if mark == '"':
            return None  # a string that is cut off
        if depth == 0 and mark in ",]}":
            return match.start()
        depth += (mark in "[{") - (mark in "]}")
        if depth == 0 and mark != ",":
            return match.end()
    return None
