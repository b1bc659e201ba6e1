"""Section 8, first part: near-duplicates inside the choice, beside a random choice of the same size."""

from __future__ import annotations

from typing import Any

import numpy as np

from siftune.datastore.pool import Pool
from siftune.selection.near_duplicates import NearDuplicates

ALIKE = 0.7
MOST_ROWS = 3000
"""Of a larger choice a random part is looked at: two rows of it are as alike as two of the whole."""


def redundancy_section(
    pool: Pool, chosen: np.ndarray, usable: np.ndarray, in_warmup_N: np.ndarray, seed: int = 0
) -> dict[str, Any]:
    """Rows that nearly repeat another of the choice (Jaccard of word 5-grams at least .7), and rows that the warm-up saw."""
    draw = np.random.default_rng(seed)
    n = min(len(chosen), MOST_ROWS)
    part = np.sort(draw.permutation(chosen)[:n])
    random = np.sort(draw.permutation(usable)[:n])
    repeated, by_chance = _repeated(pool, part), _repeated(pool, random)
    warm = int(in_warmup_N[chosen].sum())
    expected = float(in_warmup_N[usable].mean())
    finding = f"{repeated:,} of {n:,} chosen rows nearly repeat another of them ({repeated / n:.1%}); of as many random rows {by_chance:,} ({by_chance / n:.1%})."
    if in_warmup_N.any():
        finding += f" {warm:,} chosen rows were in the warm-up ({warm / len(chosen):.0%}; {expected:.0%} of the pool were)."
    return {
        "looked_at": n,
        "of": len(chosen),
        "near_duplicates": repeated,
        "near_duplicates_random": by_chance,
        "alike": ALIKE,
        "in_warmup": warm,
        "in_warmup_share": round(warm / len(chosen), 4),
        "pool_in_warmup_share": round(expected, 4),
        "flagged": repeated / n > 0.1 and repeated > 2 * by_chance,
        "finding": finding,
    }


def _repeated(pool: Pool, rows: np.ndarray) -> int:
    seen, found = NearDuplicates(ALIKE), 0
    seen.look_at(pool.texts_of(rows))
    for place in range(len(rows)):
        if seen.repeats(place):
            found += 1
        else:
            seen.admit(place)
    return found
