"""A row as it came from a file, before anybody knows what it means; and what of it JSON can give back.

Every column of a chosen row is written again as JSON, so a row may hold only what JSON can: no NaN or infinity, no lone
surrogate (readers of JSON refuse them), no nesting that a reader's stack can't take.
"""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from typing import Any, NamedTuple

MAX_DEPTH = 200  # json, jinja and Arrow recurse: Python's own limit of 1000 is shared with whoever calls them


class Row(NamedTuple):
    """One input row. `problem` says why `value` could not be parsed; `text` is how it began, None where it was no text."""

    where: str
    value: Any
    text: str | None = None
    problem: str | None = None


class UnusableError(Exception):
    """Why a row can't become an example; the text is the reason it gets in quarantine."""


TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"


def unfit(value: Any, depth: int = 0) -> str | None:
    """Why JSON can't give `value` back, as the end of a sentence ("column x ..."); None where it can."""
    if isinstance(value, str):
        return None if value.isascii() else _unfit_text(value)
    if isinstance(value, float):
        return None if math.isfinite(value) else "is not a finite number"
    if isinstance(value, (dict, list)):
        if depth == MAX_DEPTH:
            return TOO_DEEP
        if isinstance(value, dict):
            for key in value:
                if reason := unfit(key):
                    return reason
            value = value.values()
        for item in value:
            if reason := unfit(item, depth + 1):
                return reason
    return None


def _unfit_text(text: str) -> str | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "holds a lone surrogate"
    return None


def printable(text: str) -> str:
    """`text` with lone surrogates written out, so that it can go into any file."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def plain(value: Any) -> Any:
    """A value from Arrow as JSON would hold it.

    Dates and times become ISO text, durations, decimals and UUIDs their usual text. Arrow can't tell an absent key from an
    empty one, so empty fields inside a struct are taken as absent. Raises TypeError, naming the type, for anything else
    (bytes, images).
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (datetime.date, datetime.time)):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, (datetime.timedelta, decimal.Decimal, uuid.UUID)):
        return str(value)
    raise TypeError(type(value).__name__)
