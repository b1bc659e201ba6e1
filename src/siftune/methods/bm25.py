"""BM25: a pool row scores by the words it shares with a target row, rare words counting more (package `bm25s`, Lucene's variant).

    influence[n, v] = Σ_w idf(w) · tf(w, n) / (tf(w, n) + k1 (1 - b + b |n| / mean |n|))       over the words w of target row v
    idf(w) = log(1 + (N - df(w) + ½) / (df(w) + ½))

tf(w, n): how often row n has w; df(w): how many of the N rows have it; |n|: the row's words. A word that the target row says
twice counts twice. k1 = 1.5, b = .75. No stop words and no stemming, so that every language is served alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

K1, B = 1.5, 0.75

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Chinese
)
# Vowel and tone marks are no word characters to `re`, but must not cut a word in two.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[\w{_MARKS}])+")


def words_of(text: str) -> list[str]:
    """Lower-cased words of a text, in order; scripts written without spaces give their characters one by one."""
    return _WORD.findall(text.lower())


def bm25_influence(pool_texts: Iterable[str | None], target_texts: Sequence[str]) -> np.ndarray:
    """`influence_N_V`, fp32. A pool text of None gives a NaN row and is no part of the statistics; no shared word gives 0.

    Texts may come one at a time: only their word numbers are held.
    """
    from bm25s import BM25  # brings its own set of optional packages

    number: dict[str, int] = {}
    rows: list[list[int]] = []
    has_text: list[bool] = []
    for text in pool_texts:
        has_text.append(text is not None)
        if text is not None:
            rows.append([number.setdefault(word, len(number)) for word in words_of(text)])
    influence_N_V = np.full((len(has_text), len(target_texts)), np.nan, np.float32)
    influence_N_V[has_text] = 0
    if not number:
        return influence_N_V
    index = BM25(k1=K1, b=B, method="lucene")
    index.index((rows, number), create_empty_token=False, show_progress=False)
    for v, text in enumerate(target_texts):
        known = [number[word] for word in words_of(text) if word in number]
        influence_N_V[has_text, v] = index.get_scores_from_ids(known)
    return influence_N_V
