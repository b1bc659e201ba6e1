"""Limits on a choice, for any method and rule: the order is walked best first and rows are admitted until the budget is full.

near_duplicates  a row as like as this to one admitted before is passed over (see near_duplicates.py)
per_source       a row that would take its source over its part is passed over; a later, shorter one may still fit

What is admitted is a sequence that the budget then cuts as it cuts any order: the first row of it that does not fit ends the walk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from siftune.records.budget import Budget
from siftune.records.errors import SiftuneError
from siftune.selection.near_duplicates import NearDuplicates

_FIRST_BLOCK, _BLOCK = 1024, 16384  # rows whose texts are fetched at once: few where few may do
_BLOCK_TOKENS = 4_000_000  # so that a block of long rows is no larger than one of short ones


class Admitted(NamedTuple):
    """What was chosen under limits.

    chosen:      pool rows, best first
    passed_over: rows that each limit passed over before the budget was full, or the order at its end
    wanted:      rows that the budget asks for; None where it is in tokens
    short:       rows (tokens, where the budget is in tokens) that the choice lacks because limits left no further row
    """

    chosen: np.ndarray
    passed_over: dict[str, int]
    wanted: int | None
    short: int


def parse_per_source(text: str) -> Budget:
    """Read `per_source`: `20%` of the budget, `50` rows or `10k tokens`, of one source. SiftuneError for anything else."""
    try:
        return Budget.parse(text)
    except SiftuneError as error:
        raise SiftuneError(
            error.what,
            where="per_source",
            todo="Write a per cent of the budget ('20%'), a count of rows ('50') or tokens ('10k tokens')",
        ) from error


def check_near_duplicates(threshold: float) -> float:
    """`near_duplicates` if it is a similarity, else SiftuneError."""
    if not 0 < threshold <= 1:
        raise SiftuneError(
            f"{threshold} is not a similarity",
            where="near_duplicates",
            todo="Give a number above 0 up to 1, for example 0.8; 1 passes over only texts with the same word 5-grams",
        )
    return threshold


def admit(
    order: np.ndarray,
    *,
    budget: Budget,
    n_scorable: int,
    n_tokens_N: np.ndarray,
    source_N: np.ndarray,
    text_of: Callable[[np.ndarray], list[str]] | None,
    near_duplicates: float | None,
    per_source: str | None,
) -> Admitted:
    """Choose from rows that may be chosen, best first, under limits; without any, what `Budget.rows` says.

    n_scorable:      rows that the budget's per cent are of
    n_tokens_N, source_N: of every pool row
    text_of:         the texts (prompt and answer) of some rows, in the order given; needed by `near_duplicates`, called block by block
    near_duplicates: Jaccard similarity of word 5-grams, 0 < x <= 1, from which on a row is passed over
    per_source:      most that one source gives: per cent of the budget as asked (rows at least 1; tokens where that is
                     in tokens), a count of rows, or tokens
    Limits that leave less than the budget are no error: see `Admitted.short`. Raises SiftuneError for a limit that is
    none, for a budget as `Budget.rows` does, and where a limit in tokens is below every row.
    """
    n_fit = budget.rows(n_tokens_N[order].tolist(), n_scorable)
    in_tokens = budget.kind == "tokens"
    wanted = None if in_tokens else n_fit
    if near_duplicates is None and per_source is None:
        return Admitted(order[:n_fit], {}, wanted, 0)

    asked = int(budget.amount) if in_tokens else n_fit
    there_are = int(n_tokens_N[order].sum()) if in_tokens else n_fit
    near = None if near_duplicates is None else NearDuplicates(check_near_duplicates(near_duplicates))
    sources = None
    if per_source is not None:
        sources = _Sources(parse_per_source(per_source), asked, in_tokens, n_tokens_N, source_N)

    passed_over: dict[str, int] = {}
    chosen: list[int] = []
    used, short = 0, 0
    for row in _admissible(order, n_tokens_N, sources, near, text_of, passed_over):
        cost = int(n_tokens_N[row]) if in_tokens else 1
        if used + cost > asked:
            break
        chosen.append(row)
        used += cost
        if used == asked:
            break
    else:
        short = min(asked, there_are) - used
    if not chosen:
        raise SiftuneError(
            f"{per_source!r} leaves no row: each has more tokens than one source may give",
            where="per_source",
            todo="Raise it, or the budget that it is a part of",
        )
    return Admitted(np.array(chosen, dtype=order.dtype), passed_over, wanted, short)


class _Sources:
    """What each source may still give, in rows or in tokens."""

    def __init__(
        self, most: Budget, asked: int, in_tokens: bool, n_tokens_N: np.ndarray, source_N: np.ndarray
    ):
        of_budget = most.kind == "percent"
        self._most = max(1, int(asked * most.amount / 100)) if of_budget else int(most.amount)
        self._in_tokens = in_tokens if of_budget else most.kind == "tokens"
        self._n_tokens_N, self._source_N = n_tokens_N, source_N
        self._given: Counter[str] = Counter()

    def has_room(self, row: int) -> bool:
        return self._given[self._source_N[row]] + self._cost(row) <= self._most

    def take(self, row: int) -> None:
        self._given[self._source_N[row]] += self._cost(row)

    def _cost(self, row: int) -> int:
        return int(self._n_tokens_N[row]) if self._in_tokens else 1


def _admissible(
    order: np.ndarray,
    n_tokens_N: np.ndarray,
    sources: _Sources | None,
    near: NearDuplicates | None,
    text_of: Callable[[np.ndarray], list[str]] | None,
    passed_over: dict[str, int],
) -> Iterator[int]:
    """The rows that the limits let through, best first; asking for the next admits the one before.

    passed_over: counts the others, by limit, as far as the walk has come
    """
    passed_over |= {"per_source": 0} if sources else {}
    passed_over |= {"near_duplicates": 0} if near else {}
    for rows in _blocks(order, n_tokens_N):
        # A source without room for a row now has none later: that row's text is never needed
        with_room = [row for row in rows.tolist() if sources is None or sources.has_room(row)]
        number = {row: i for i, row in enumerate(with_room)}
        if near and with_room:
            assert text_of is not None, "near_duplicates needs the texts"
            near.look_at(text_of(np.array(with_room, dtype=np.int64)))
        for row in rows.tolist():
            if sources and not sources.has_room(row):
                passed_over["per_source"] += 1
            elif near and near.repeats(number[row]):
                passed_over["near_duplicates"] += 1
            else:
                yield row
                if sources:
                    sources.take(row)
                if near:
                    near.admit(number[row])


def _blocks(order: np.ndarray, n_tokens_N: np.ndarray) -> Iterator[np.ndarray]:
    """The order in blocks that double up to a bound of rows and of tokens; a row that is over it alone is a block."""
    end_of = np.cumsum(n_tokens_N[order], dtype=np.int64)
    start, most = 0, _FIRST_BLOCK
    while start < len(order):
        before = end_of[start - 1] if start else 0
        stop = int(np.searchsorted(end_of, before + _BLOCK_TOKENS, side="right"))
        stop = min(max(stop, start + 1), start + most)
        yield order[start:stop]
        start, most = stop, min(2 * most, _BLOCK)
