"""The budget: how much to keep. `5%` of the scorable rows, `1000` rows, or `2M tokens`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from siftune.records.errors import SiftuneError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_TOKENS = re.compile(r"(\d+(?:\.\d+)?)\s*([kmb]?)\s*tokens?", re.IGNORECASE)
_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmb]?)(?:\s*rows?)?", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """How much to keep: `amount` per cent of the scorable rows, rows, or tokens."""

    kind: Literal["percent", "rows", "tokens"]
    amount: Decimal

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget as a person writes it.

        Raises SiftuneError for anything else, for zero, and for more than 100 %.
        """
        text = text.strip()
        if match := _PERCENT.fullmatch(text):
            budget = cls("percent", Decimal(match[1]))
        elif match := _TOKENS.fullmatch(text):
            budget = cls("tokens", Decimal(match[1]) * _UNITS[match[2].lower()])
        elif match := _COUNT.fullmatch(text):
            budget = cls("rows", Decimal(match[1]) * _UNITS[match[2].lower()])
        else:
            raise _refused(text, "is not a budget")
        if budget.amount <= 0:
            raise _refused(text, "keeps nothing")
        if budget.kind == "percent" and budget.amount > 100:
            raise _refused(text, "is more than the whole pool")
        if budget.kind != "percent" and budget.amount != int(budget.amount):
            raise _refused(text, "is not a whole number")
        return budget

    def __str__(self) -> str:
        if self.kind == "percent":
            return f"{self.amount.normalize():f}%"
        return f"{int(self.amount)}" + (" tokens" if self.kind == "tokens" else "")

    def rows(self, n_tokens: Sequence[int], n_scorable: int) -> int:
        """How many of the best-first rows fit.

        n_tokens:   tokens of the i-th best row that may be chosen
        n_scorable: rows that per cent are of (all that have a score, exact duplicates too)

        Per cent are rounded down, at least 1, at most all that may be chosen. Tokens are never exceeded. Raises SiftuneError
        where fewer rows can be chosen than asked, or the best one alone exceeds the tokens.
        """
        if self.kind == "percent":
            return min(len(n_tokens), max(1, int(n_scorable * self.amount / 100)))
        if self.kind == "rows":
            if self.amount > len(n_tokens):
                raise _refused(str(self), f"is more than the {len(n_tokens)} rows that can be chosen")
            return int(self.amount)
        total = count = 0
        for tokens in n_tokens:
            total += int(tokens)
            if total > self.amount:
                break
            count += 1
        if count == 0:
            raise _refused(str(self), f"is less than the best row's {int(n_tokens[0])} tokens")
        return count


def _refused(text: str, why: str) -> SiftuneError:
    return SiftuneError(
        f"{text!r} {why}",
        where="keep",
        todo="Write a per cent above 0 up to 100% ('5%'), a count ('1000') or '2M tokens'",
    )
