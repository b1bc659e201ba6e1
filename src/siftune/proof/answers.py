"""Whether a generated text gives the right answer: exact match and token F1, best over the accepted answers.

Exact match compares after whitespace is collapsed, one final "." dropped and case folded; two numbers match where they
are equal, so "1,200", "1200", "$1200" and "1200.0" are one answer.

F1 is SQuAD's: lower case, punctuation and English articles removed, then over bags of tokens, c of them common,

    precision = c / predicted tokens,  recall = c / gold tokens,  F1 = 2 · precision · recall / (precision + recall)

Punctuation is that of any language, and scripts written without spaces (Chinese, Japanese, Thai …) count by character,
as MLQA does. Where one side has no token left, F1 is 1 if the other has none either, else 0 (SQuAD 2.0).
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from decimal import Decimal
from typing import Any

from siftune.records.errors import SiftuneError
from siftune.records.example import Example

_NUMBER = re.compile(r"([+-]?\$?|\$[+-])(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?", re.ASCII)
# Lao and Thai, Myanmar, Khmer, kana, Han
_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_NO_SPACES}]|[^\s{_NO_SPACES}]+")
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def compile_extract(pattern: str) -> re.Pattern[str]:
    """The pattern of `--extract`; `^` and `$` are the ends of a line. SiftuneError where it is no regular expression."""
    try:
        return re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise SiftuneError(
            f"{pattern!r} is not a regular expression ({error})",
            where="--extract",
            todo=r"Write it as Python's re does, such as 'answer is (.*?)\.?$'",
        ) from error


def extract(text: str, pattern: re.Pattern[str] | None) -> str | None:
    """The answer in a text: of the last match group 1 where the pattern has one, else the match; None without a match.

    Without a pattern the whole text, stripped.
    """
    if pattern is None:
        return text.strip()
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    last = matches[-1]
    group = last.group(1) if pattern.groups else None
    return last.group() if group is None else group


def accepted_answers(row: Example) -> list[str]:
    """The texts that a test row's `answer` accepts: a text, a number, or a list of these. SiftuneError for others."""
    answer = row.columns["answer"]
    texts = [_as_text(one) for one in (answer if isinstance(answer, list) else [answer])]
    accepted = [text for text in texts if text is not None and text.strip()]
    if not accepted or len(accepted) < len(texts):
        raise SiftuneError(
            f"the answer {answer!r:.80} is not a text, a number or a list of these",
            where=row.where,
            todo="Correct the answer or drop the column",
        )
    return accepted


def exact_match(predicted: str, accepted: list[str]) -> bool:
    """Whether the text equals one of the accepted ones once both are normalised."""
    return _canonical(predicted) in {_canonical(text) for text in accepted}


def token_f1(predicted: str, accepted: list[str]) -> float:
    """The largest F1 of the text with an accepted one, in [0, 1]."""
    return max(_f1(_tokens(predicted), _tokens(text)) for text in accepted)


def _as_text(answer: Any) -> str | None:
    if isinstance(answer, bool):
        return None
    if isinstance(answer, float):
        if not math.isfinite(answer):
            return None
        return f"{answer:.0f}" if answer.is_integer() else repr(answer)
    return str(answer) if isinstance(answer, str | int) else None


def _canonical(text: str) -> str | Decimal:
    text = " ".join(text.split()).removesuffix(".").rstrip().casefold()
    if _NUMBER.fullmatch(text) and any(character.isdigit() for character in text):
        return Decimal(text.replace(",", "").replace("$", ""))
    return text


def _tokens(text: str) -> list[str]:
    kept = "".join(
        c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P"
    )
    return _TOKEN.findall(_ARTICLE.sub(" ", kept))


def _f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    common = (Counter(predicted) & Counter(gold)).total()
    return 2 * common / (len(predicted) + len(gold))
