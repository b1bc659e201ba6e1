"""BM25: a pool row scores by the words it shares with a target row, rare words counting more (Robertson; Lucene's variant).

    influence[n, v] = Σ_w idf(w) · tf(w, n) / (tf(w, n) + k1 (1 - b + b |n| / mean |n|))       over the words w of target row v
    idf(w) = log(1 + (N - df(w) + ½) / (df(w) + ½))

tf(w, n): how often row n has w; df(w): how many of the N rows have it; |n|: the row's words. A word that the target row says
twice counts twice. k1 = 1.5, b = .75. No stop words and no stemming, so that every language is served alike.

Texts come one at a time, and of each only the target's words are kept, where the package `bm25s`, which the tests compare with,
holds every word of the pool.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

K1, B = 1.5, 0.75
ROWS_AT_ONCE = 4096

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
    """`influence_N_V`, fp32. A pool text of None gives a NaN row and is no part of the statistics; no shared word gives 0."""
    from scipy.sparse import csr_matrix

    asked = [Counter(words_of(text)) for text in target_texts]
    number = {word: w for w, word in enumerate(dict.fromkeys(word for words in asked for word in words))}
    words_of_row, counts, ends, lengths = array("i"), array("i"), array("q", [0]), array("q")
    for text in pool_texts:
        words = words_of(text or "")
        shared = Counter(number[word] for word in words if word in number)
        words_of_row.extend(shared)
        counts.extend(shared.values())
        ends.append(len(counts))
        lengths.append(-1 if text is None else len(words))
    length_N = np.frombuffer(lengths, np.int64)
    has_text_N = length_N >= 0
    influence_N_V = np.full((len(lengths), len(asked)), np.nan, np.float32)
    influence_N_V[has_text_N] = 0
    if not counts:
        return influence_N_V

    n, mean_length = int(has_text_N.sum()), length_N[has_text_N].mean()
    df_W = np.bincount(words_of_row, minlength=len(number))
    idf_W = np.log1p((n - df_W + 0.5) / (df_W + 0.5))
    asked_V_W = csr_matrix(
        (
            [times * idf_W[number[word]] for words in asked for word, times in words.items()],
            [number[word] for words in asked for word in words],
            np.cumsum([0, *map(len, asked)]),
        ),
        shape=(len(asked), len(number)),
    )
    tf_N_W = csr_matrix(
        (np.asarray(counts, np.float64), np.asarray(words_of_row), np.asarray(ends)),
        shape=(len(lengths), len(number)),
    )
    for start in range(0, len(lengths), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        tf_n_W = tf_N_W[part]
        saturation_n = K1 * (1 - B + B * length_N[part] / mean_length)
        tf_n_W.data /= tf_n_W.data + np.repeat(saturation_n, np.diff(tf_n_W.indptr))
        influence_N_V[part][has_text_N[part]] = (tf_n_W @ asked_V_W.T).toarray()[has_text_N[part]]
    return influence_N_V
