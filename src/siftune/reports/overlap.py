"""Section 7: how many rows two selections share, beside what two random choices of the same sizes would (Jaccard)."""

from __future__ import annotations

from typing import Any

import numpy as np


def overlap_section(name: str, chosen: dict[str, np.ndarray], n_scorable: int) -> list[dict[str, Any]]:
    """The selection `name` beside every other of the run. chosen: rows by selection."""
    mine, found = chosen[name], []
    for other, rows in chosen.items():
        if other == name:
            continue
        shared = len(np.intersect1d(mine, rows))
        expected = len(mine) * len(rows) / n_scorable
        found.append(
            {
                "selection": other,
                "rows": len(rows),
                "shared": shared,
                "jaccard": round(shared / (len(mine) + len(rows) - shared), 4),
                "by_chance": round(expected / (len(mine) + len(rows) - expected), 4),
            }
        )
    return sorted(found, key=lambda row: (-row["jaccard"], row["selection"]))
