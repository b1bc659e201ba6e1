"""Section 6: rows side by side. For each subtask its target rows and the pool rows that serve it most; the most opposed; those around the
cut; the best under each checkpoint alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from siftune.datastore.targets import kept_rows
from siftune.records.readers import TargetRow
from siftune.reports.marked import marked
from siftune.reports.material import Material
from siftune.selection.selection import Selection

SUBTASKS, TARGET_ROWS, BEST, OPPOSED, AROUND = 60, 2, 3, 5, 3
MOST_BYTES = 1400


def example_section(material: Material, selection: Selection, scores: pa.Table, room: int) -> dict[str, Any]:
    """Rows by number with their text; `room`: bytes of escaped text for all of them together."""
    score_N = _floats(scores, "score")
    chosen_N = scores["selected"].fill_null(False).to_numpy(zero_copy_only=False)
    subtasks = [name.removeprefix("subtask:") for name in scores.column_names if name.startswith("subtask:")]
    served = {name: _floats(scores, f"subtask:{name}") for name in subtasks[:SUBTASKS]}
    best = {name: _first(-of_N, BEST) for name, of_N in served.items()}
    rank_N = _floats(scores, "rank")
    if not subtasks:
        best = {"": _first(rank_N, BEST + 2)}
    n_chosen = int(chosen_N.sum())
    around = [
        int(row)
        for row in np.argsort(np.nan_to_num(rank_N, nan=np.inf))[
            max(0, n_chosen - AROUND) : n_chosen + AROUND
        ]
    ]
    around = [row for row in around if not np.isnan(score_N[row])]
    against_N = _against(material, selection, score_N)
    opposed = _first(against_N, OPPOSED) if subtasks else []
    influences = _by_checkpoint(material, selection)
    by_checkpoint = {
        # Rows that were appended since, and those in quarantine, have no score
        number: _first(np.where(np.isnan(score_N), np.nan, -of_N[: len(score_N)]), BEST)
        for number, of_N in influences.items()
    }
    wanted = dict.fromkeys([*(row for rows in best.values() for row in rows), *opposed, *around])
    wanted |= dict.fromkeys(row for rows in by_checkpoint.values() for row in rows)
    targets = _target_rows(material, selection, list(best))
    each = min(MOST_BYTES, room // max(1, len(wanted) + sum(len(rows) for rows in targets.values())))
    texts = _texts(material, wanted, each)

    def row_of(row: int, value: float, of: str) -> dict[str, Any]:
        return {
            "row": row,
            "id": str(scores["id"][row].as_py()),
            "source": str(scores["source"][row].as_py()),
            "of": of,
            "value": value,
            "rank": int(rank_N[row]),
            "chosen": bool(chosen_N[row]),
            "parts": texts.get(row),
        }

    return {
        "subtasks": [
            {
                "subtask": name,
                "target": [_target_row(material, v, row, each) for v, row in targets.get(name, [])],
                "pool": [
                    row_of(row, float(served[name][row]), "score on this subtask")
                    if subtasks
                    else row_of(row, float(score_N[row]), "score")
                    for row in rows
                ],
            }
            for name, rows in best.items()
        ],
        "more_subtasks": max(0, len(subtasks) - SUBTASKS),
        "opposed_by": "gradients" if selection.settings["checkpoints"] else "score",
        "opposed": [row_of(row, float(against_N[row]), "mean influence") for row in opposed]
        if selection.settings["checkpoints"]
        else [row_of(row, float(score_N[row]), "score") for row in opposed],
        "around_the_cut": [row_of(row, float(score_N[row]), "score") for row in around],
        "checkpoints": [
            {"checkpoint": number, "pool": [row_of(row, float(of_N[row]), "influence") for row in rows]}
            for (number, rows), of_N in zip(by_checkpoint.items(), influences.values(), strict=True)
        ],
        "why_no_marks": None
        if material.encoder is not None or not material.with_text
        else "the tokenizer could not be loaded",
        "finding": _finding(against_N, best, chosen_N, selection, has_subtasks=bool(subtasks)),
    }


def _finding(
    against_N: np.ndarray,
    best: dict[str, list[int]],
    chosen_N: np.ndarray,
    selection: Selection,
    *,
    has_subtasks: bool,
) -> str:
    rows = [row for of in best.values() for row in of]
    if not has_subtasks:
        return f"The {len(rows)} rows that rank first, and those around the cut."
    text = f"Of the {len(set(rows))} rows that serve a subtask most, {sum(bool(chosen_N[row]) for row in set(rows))} were chosen"
    if copies := selection.summary["n_duplicates_left_out"]:
        text += f" ({copies:,} rows of the pool are exact copies of others and could not be)"
    if selection.settings["checkpoints"]:
        against, known = int((against_N < 0).sum()), int((~np.isnan(against_N)).sum())
        text += f". By their gradients {against:,} of {known:,} rows are against the target on average, {int((chosen_N & (against_N < 0)).sum()):,} of the chosen among them: those serve single target rows"
    return text + "."


def _against(material: Material, selection: Selection, score_N: np.ndarray) -> np.ndarray:
    """What says that a row is against the target: the gradients' mean influence, else how little it is like the target."""
    mean_N = (
        material.mean_influence(selection.settings["target"]) if selection.settings["checkpoints"] else None
    )
    return score_N if mean_N is None else np.where(np.isnan(score_N), np.nan, mean_N[: len(score_N)])


def _by_checkpoint(material: Material, selection: Selection) -> dict[int, np.ndarray]:
    if not selection.settings["checkpoints"]:
        return {}
    found = material.scores_by_checkpoint(selection.settings["target"])
    return found if len(found) > 1 else {}


def _texts(material: Material, rows: Iterable[int], each: int) -> dict[int, list[dict[str, Any]]]:
    wanted = list(rows)
    if material.encoder is None or not material.with_text:
        return {}
    tokens = material.pool.tokens_of(wanted)
    return {
        row: marked(material.encoder, ids, trained, each)
        for row, (ids, trained) in zip(wanted, tokens, strict=True)
    }


def _target_rows(
    material: Material, selection: Selection, subtasks: list[str]
) -> dict[str, list[tuple[int, TargetRow]]]:
    """The first target rows of each subtask with their numbers in the target's file, from 1; of all where a method sees no subtasks."""
    if selection.settings["target"] is None:
        return {}
    rows = list(enumerate(kept_rows(material.target(selection.settings["target"])), 1))
    return {
        name: [(v, row) for v, row in rows if row.subtask == name or subtasks == [""]][:TARGET_ROWS]
        for name in subtasks
    }


def _target_row(material: Material, number: int, row: TargetRow, each: int) -> dict[str, Any]:
    parts = None
    if material.encoder is not None and material.with_text:
        encoded = material.encoder.encode(row.example)
        if not isinstance(encoded, str):  # usable when it was read into the run
            parts = marked(material.encoder, encoded.token_ids, encoded.trained, each)
    return {"number": number, "id": row.example.id, "parts": parts}


def _first(key_N: np.ndarray, count: int) -> list[int]:
    """The rows with the smallest keys, NaN left aside, ties by row."""
    order = np.argsort(key_N, kind="stable")[:count]
    return [int(row) for row in order if not np.isnan(key_N[row])]


def _floats(scores: pa.Table, name: str) -> np.ndarray:
    return scores[name].to_numpy(zero_copy_only=False).astype(np.float64)
