"""Section 5: which sources serve which subtasks, how many chosen rows each subtask has, and whether one takes everything."""

from __future__ import annotations

from typing import Any

import numpy as np

SOURCES = 8
MOST = 0.5
"""A subtask that has more than this part of the choice is said to take it over, where it is also more than three equal shares."""


def subtask_section(
    best_subtask_N: np.ndarray, source_N: np.ndarray, chosen_N: np.ndarray, subtasks: list[str]
) -> dict[str, Any]:
    """Counts of chosen rows by source and by the subtask that each serves most.

    best_subtask_N: of every scored row, as text
    """
    names, counts = np.unique(source_N[chosen_N], return_counts=True)
    shown = [str(name) for name in names[np.lexsort((names, -counts))][:SOURCES]]
    rows = []
    for subtask in subtasks:
        of_subtask = chosen_N & (best_subtask_N == subtask)
        cells = [int((of_subtask & (source_N == source)).sum()) for source in shown]
        won = int(of_subtask.sum())
        rows.append({"subtask": subtask, "chosen": won, "cells": cells, "other": won - sum(cells)})
    n_chosen = int(chosen_N.sum())
    largest = max(rows, key=lambda row: row["chosen"])
    share = largest["chosen"] / n_chosen
    flagged = len(rows) > 1 and share > MOST and share > min(3 / len(rows), 0.9)
    without = [row["subtask"] for row in rows if not row["chosen"]]
    finding = f"{largest['subtask']!r} has most: {largest['chosen']:,} of {n_chosen:,} chosen rows serve it best ({share:.0%})"
    finding += (
        f"; {len(without)} of {len(rows)} subtasks are no chosen row's best."
        if without
        else "; every subtask has some."
    )
    return {"sources": shown, "rows": rows, "flagged": flagged, "without": without, "finding": finding}
