"""Reading a pool and a target: every input row comes out once, in order, as an Example or as LeftOut with its reason.

Rows stream: none is held longer than its consumer holds it. What stops the reading of a whole source (it doesn't exist, is
cut off, is empty, holds no usable row) is a SiftuneError; what spoils one row is that row's LeftOut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from siftune.records.errors import SiftuneError
from siftune.records.example import Example, LeftOut
from siftune.records.formats import FORMATS, conversation_of
from siftune.records.names import check_name
from siftune.records.row import Row, UnusableError, printable, unfit
from siftune.records.sources import Source, find_sources

ALL = "all"  # the one subtask of a target whose rows name none
_TEXT = 200  # characters of a left-out row that are kept to find it again


class TargetRow(NamedTuple):
    """A row of a target, and the subtask it belongs to."""

    example: Example
    subtask: str


def read_pool(sources: Sequence[str]) -> Iterator[Example | LeftOut]:
    """The rows of all sources, in the order given; see `sources` for what may be given, `formats` for what rows may be.

    Every path is looked up at once, rows are read as they are asked for. Raises SiftuneError for a source that can't be
    found, can't be read to its end, holds no rows, or none that can be used.
    """
    if not sources:
        raise SiftuneError("no pool is given", where="pool", todo="Name at least one file with --pool")
    given = [sources] if isinstance(sources, str) else sources
    found = [source for text in given for source in find_sources(text)]
    return chain.from_iterable(map(_read, found))


def read_target(source: str, name: str, what: str = "target") -> list[TargetRow]:
    """The rows of the target called `name`, or of the test, as `what` says. A column `subtask` on every row or on none; without it there is one, "all".

    Raises SiftuneError as `read_pool` does, and naming the place of the first row that can't be used.
    """
    check_name(name, what)
    items = [item for found in find_sources(source) for item in _read(found, complete=True)]
    examples = [item for item in items if isinstance(item, Example)]
    subtasks = [_subtask(example) for example in examples]
    for example, subtask in zip(examples, subtasks, strict=True):
        if (subtask is None) != (subtasks[0] is None):
            without, having = (example, examples[0]) if subtask is None else (examples[0], example)
            raise SiftuneError(
                f"this row of the {what} names no subtask, but {having.where} does",
                where=without.where,
                todo="Give every row a subtask, or none",
            )
    return [TargetRow(example, subtask or ALL) for example, subtask in zip(examples, subtasks, strict=True)]


def _subtask(example: Example) -> str | None:
    subtask = example.columns.get("subtask")
    if type(subtask) is int:
        return str(subtask)
    if subtask is None or (isinstance(subtask, str) and subtask):
        return subtask
    raise SiftuneError(
        f"the subtask {subtask!r:.80} is not a name",
        where=example.where,
        todo="Write text or a whole number, or leave it out",
    )


def _read(source: Source, complete: bool = False) -> Iterator[Example | LeftOut]:
    """A source's rows; `complete` = a row that can't be used is an error."""
    count, usable, first, columns = 0, False, None, dict[str, None]()
    for row in source.rows():
        count += 1
        item = _example(row, source.name)
        if isinstance(item, Example):
            usable = True
        elif complete:
            raise SiftuneError(
                item.reason,
                where=item.where,
                todo="Correct or remove it: every row of a target must be usable",
            )
        elif not usable:
            first = first or item
            columns |= dict.fromkeys(row.value if isinstance(row.value, dict) and len(columns) < 20 else ())
        yield item
    if count == 0:
        raise SiftuneError(
            "holds no rows", where=printable(source.given), todo="Give a file with at least one row"
        )
    if first is not None and not usable:
        found = f"; columns found: {', '.join(map(printable, columns))}" if columns else ""
        raise SiftuneError(
            f"none of the {count} rows of {printable(source.given)} can be used, this one because: {first.reason}{found}",
            where=first.where,
            todo=f"Known formats are {FORMATS}",
        )


def _example(row: Row, name: str) -> Example | LeftOut:
    columns: dict[str, Any] = row.value if isinstance(row.value, dict) else {}
    identity, source = _id(columns) or row.where, _source(columns) or name
    try:
        if row.problem is not None:
            raise UnusableError(row.problem)
        if not isinstance(row.value, dict):
            raise UnusableError("not an object")
        messages, tools = conversation_of(columns)
        for column, value in columns.items():
            if reason := unfit(value) or unfit(column):
                raise UnusableError(f"column {column} {reason}")
    except UnusableError as problem:
        text = json.dumps(row.value)[:_TEXT] if row.text is None else row.text[:_TEXT]
        parts = (row.where, str(problem), identity, source, text)
        return LeftOut(*map(printable, parts))
    return Example(identity, source, messages, row.where, columns, tools)


def _id(columns: dict[str, Any]) -> str | None:
    given = columns.get("id")
    if type(given) is int:
        return str(given)
    return given if isinstance(given, str) else None


def _source(columns: dict[str, Any]) -> str | None:
    for column in ("source", "dataset"):
        if isinstance(columns.get(column), str) and columns[column]:
            return columns[column]
    return None
