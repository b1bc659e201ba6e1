"""Shingles: the runs of n words in a text, by which two texts can be told to be nearly the same whatever they mean.

Words are lower-cased and are what blanks separate; in scripts that are written without blanks (Chinese, Japanese, Thai, Lao,
Burmese, Khmer) every character is a word. Signs stay, so that `( - 1` and `( + 1` differ.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np

_BLANKLESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_BLANKLESS}]|[^\\s{_BLANKLESS}]+")

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word's hash is lost on the way


def words_of(text: str) -> list[str]:
    """The words of a text, lower-cased, in order."""
    text = text.lower()
    return text.split() if text.isascii() else _WORD.findall(text)  # the same, and far quicker


def shingles_of(text: str, n: int) -> np.ndarray:
    """The set of runs of n words, each as its 64-bit hash: sorted, each once (uint64 [shingles]), the same on every machine.

    A text of fewer words is one shingle as a whole. Two different shingles of a million have the same hash with a chance of
    about one in ten million.
    """
    hash_T = np.array([_hash_of[word] for word in words_of(text)], dtype=np.uint64)
    width = min(n, len(hash_T))
    n_runs = len(hash_T) - width + 1
    run_S = np.full(n_runs, width, dtype=np.uint64)
    for k in range(width):
        run_S = run_S * _FACTOR + hash_T[k : k + n_runs]
    run_S.sort()
    return run_S[np.append(True, run_S[1:] != run_S[:-1])]


class _Hashes(dict[str, int]):
    """64-bit hashes of words, remembered for the million or so that came last."""

    def __missing__(self, word: str) -> int:
        if len(self) >= 2**20:
            self.clear()
        # a lone surrogate is a character like any other here
        data = word.encode("utf-8", "surrogatepass")
        self[word] = found = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        return found


_hash_of = _Hashes()
