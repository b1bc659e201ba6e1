"""Section 8, second part: does the pool hold rows of the target or of a test, whole or in long pieces?

A row is *exact* where messages and tools are the same, and *overlapping* where it shares a run of 13 words with a row of the file.
Runs that three or more rows of the file share are wording of the task (instructions, lists of options), not content: left aside and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from siftune.datastore.pool import Pool
from siftune.records.plain import text_of
from siftune.records.readers import TargetRow
from siftune.records.shingles import shingles_of, words_of

WORDS = 13
WORDING = 3
ROWS_KEPT = 20


class Sought:
    """A file's rows, ready to be looked for in the pool."""

    def __init__(self, kind: str, name: str, rows: Sequence[TargetRow]):
        self.kind, self.name, self.n_rows = kind, name, len(rows)
        self.in_targets: dict[str, int] = {}
        self.fingerprints = {row.example.fingerprint for row in rows}
        texts = [text_of(row.example.messages) for row in rows]
        self.sets = [
            shingles_of(t, WORDS) if len(words_of(t)) >= WORDS else np.empty(0, np.uint64) for t in texts
        ]
        counts = Counter(int(shingle) for shingles in self.sets for shingle in shingles)
        self.n_wording = sum(1 for n in counts.values() if n >= WORDING)
        own = np.array(sorted(s for s, n in counts.items() if n < WORDING), dtype=np.uint64)
        self.own = own
        self.hit = np.zeros(len(own), dtype=bool)
        self.exact: list[int] = []
        self.overlapping: list[int] = []

    def look_at(self, row: int, shingles: np.ndarray, fingerprint: str) -> None:
        """One pool row."""
        if fingerprint in self.fingerprints:
            self.exact.append(row)
        if len(self.own):
            place = np.searchsorted(self.own, shingles)
            found = place[
                (place < len(self.own)) & (self.own[np.minimum(place, len(self.own) - 1)] == shingles)
            ]
            if len(found):
                self.hit[found] = True
                self.overlapping.append(row)

    def result(self, chosen: dict[str, set[int]]) -> dict[str, Any]:
        """What was found, as JSON values. chosen: rows by selection."""
        touched = self.own[self.hit]
        rows_touched = sum(1 for shingles in self.sets if len(np.intersect1d(shingles, touched)))
        found = sorted({*self.exact, *self.overlapping})
        return {
            "kind": self.kind,
            "name": self.name,
            "rows": self.n_rows,
            "exact": len(self.exact),
            "overlapping": len(self.overlapping),
            "rows_touched": rows_touched,
            "wording_left_aside": self.n_wording,
            "in_targets": self.in_targets,
            "pool_rows": found[:ROWS_KEPT],
            "more_pool_rows": max(0, len(found) - ROWS_KEPT),
            "chosen": {name: len(rows.intersection(found)) for name, rows in chosen.items()},
        }


def look_for(pool: Pool, sought: Sequence[Sought]) -> None:
    """Go through the pool once."""
    for shard in pool.plan.shards:
        texts = pool.texts(shard)
        prints = pool.table(shard, ["fingerprint"])["fingerprint"].to_pylist()
        for row, text, fingerprint in zip(range(shard.start, shard.stop), texts, prints, strict=True):
            if text is not None:
                shingles = shingles_of(text, WORDS)
                for file in sought:
                    file.look_at(row, shingles, fingerprint)
