"""Near-duplicates: does a text nearly repeat one that was admitted before? Exact, by the Jaccard similarity of word 5-grams.

    J(x, y) = |x ∩ y| / |x ∪ y|  ≥  t      over the sets of shingles x, y        asked of every candidate, in the order of choice

Comparing all with all is avoided without losing a pair. J ≥ t needs an overlap of α = t/(1+t) (|x| + |y|), hence t |x| ≤ |y| ≤ |x| / t.
With the shingles of every text in one order, a pair that similar shares one among the first |x| - t |x| + 1 of x and as many of y (its
prefix); where the first one shared is number i of x and j of y (from 0), the overlap is at most min(|x| - i, |y| - j). The order is rarest
first, so that words that all rows share, a system prompt or a template, come last and bring no pair together that is not a
near-duplicate. (Prefix and position filters of set similarity joins: Chaudhuri et al. 2006, Bayardo et al. 2007, Xiao et al. 2008.)

Texts come in blocks, so that what is rare is counted anew as the choice grows; a block's size changes nothing but time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from siftune.records.shingles import shingles_of

WORDS = 5
_SLACK = 1e-6  # widens every bound against rounding of t; the similarity itself is compared as it is
_LOW = np.int64(2**32 - 1)


class NearDuplicates:
    """The texts admitted so far, and a block of candidates. `threshold` is t, 0 < t <= 1."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._admitted: list[np.ndarray] = []
        self._block: _Block

    def look_at(self, texts: Sequence[str]) -> None:
        """Begin a block of at least one text: its candidates have the numbers 0, 1 … from now on."""
        candidates = [shingles_of(text, WORDS) for text in texts]
        self._block = _Block([*self._admitted, *candidates], len(self._admitted), self.threshold)

    def repeats(self, i: int) -> bool:
        """Whether candidate i of the block nearly repeats a text that has been admitted."""
        return self._block.repeats(i)

    def admit(self, i: int) -> None:
        """Candidate i of the block is one that later ones may not repeat."""
        self._admitted.append(self._block.admit(i))


class _Block:
    """Sets of shingles, the first `n_before` admitted, the rest candidates; with the postings of their prefixes.

    A posting says that a set holds a shingle in its prefix. Postings are sorted by shingle, then by the set's size, so those that
    a candidate's shingle can make a pair with lie together.
    """

    def __init__(self, sets: Sequence[np.ndarray], n_before: int, threshold: float):
        self._sets, self._n_before, self._threshold = sets, n_before, threshold
        self._size_N = np.array([len(shingles) for shingles in sets], dtype=np.int64)
        self._end_N = np.cumsum(self._size_N)
        self._admitted_N = np.arange(len(sets)) < n_before
        self._order_rarest_first()
        self._index_prefixes()

    def repeats(self, i: int) -> bool:
        x = self._n_before + i
        tried: set[int] = set()
        for posting in range(self._posted_end_N[x - 1] if x else 0, self._posted_end_N[x]):
            near = self._posted_set[self._from[posting] : self._to[posting]]
            for y in near[self._admitted_N[near]].tolist():
                if y not in tried and self._similarity(x, y) >= self._threshold:
                    return True
                tried.add(y)
        return False

    def admit(self, i: int) -> np.ndarray:
        self._admitted_N[self._n_before + i] = True
        return self._sets[self._n_before + i]

    def _similarity(self, x: int, y: int) -> float:
        a, b = self._of(x), self._of(y)
        shared = len(np.intersect1d(a, b, assume_unique=True))
        return shared / (len(a) + len(b) - shared)

    def _of(self, x: int) -> np.ndarray:
        return self._shingle[self._end_N[x] - self._size_N[x] : self._end_N[x]]

    def _order_rarest_first(self) -> None:
        _, code, self._count = np.unique(np.concatenate(self._sets), return_inverse=True, return_counts=True)
        rank = np.empty(len(self._count), dtype=np.int64)
        rank[np.argsort(self._count)] = np.arange(len(rank))
        self._count.sort()
        # Set and rank packed into one number, which sorts far quicker than two keys
        set_of = np.repeat(np.arange(len(self._sets)), self._size_N)
        self._shingle = np.sort(set_of << 32 | rank[code]) & _LOW

    def _index_prefixes(self) -> None:
        t = self._threshold
        set_of = np.repeat(np.arange(len(self._sets)), self._size_N)
        place = np.arange(len(set_of)) - np.repeat(self._end_N - self._size_N, self._size_N)
        size = self._size_N[set_of]
        posted = np.flatnonzero((place <= size - t * size + _SLACK) & (self._count[self._shingle] > 1))
        shingle, set_of, place, size = self._shingle[posted], set_of[posted], place[posted], size[posted]
        by_key = np.argsort(shingle << 32 | size)
        self._posted_set = set_of[by_key]
        self._posted_end_N = np.searchsorted(set_of, np.arange(len(self._sets)), side="right")

        # |y| is at least t |x|, and so small that the |x| - i shingles from here on may still make α.
        # Sought in the order of the keys, which is far quicker than in the order of sets
        shingle, place, size = shingle[by_key], place[by_key], size[by_key]
        smallest = np.ceil(t * size - _SLACK)
        largest = np.floor(np.minimum(size / t, (size - place) * (1 + t) / t - size) + _SLACK)
        key, bounds = shingle << 32 | size, np.clip([smallest, largest], 0, float(_LOW)).astype(np.int64)
        self._from, self._to = np.empty_like(key), np.empty_like(key)
        self._from[by_key] = np.searchsorted(key, shingle << 32 | bounds[0], side="left")
        self._to[by_key] = np.searchsorted(key, shingle << 32 | bounds[1], side="right")
