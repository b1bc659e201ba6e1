"""All that a report says, as JSON values: `report.json`. The page and the terminal show nothing else.

{siftune, made, run, with_text, selections: [{name, settings, verdict, scores, composition, length, subtasks, examples, overlap, redundancy}],
 leakage, outcome, integrity}
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from siftune.datastore.targets import kept_rows
from siftune.reports.composition import columns_of, composition_section
from siftune.reports.examples import example_section
from siftune.reports.integrity import integrity_section
from siftune.reports.leakage import Sought, look_for
from siftune.reports.length import length_section
from siftune.reports.material import Material
from siftune.reports.outcome import outcome_section
from siftune.reports.overlap import overlap_section
from siftune.reports.redundancy import redundancy_section
from siftune.reports.scores import score_section
from siftune.reports.subtasks import subtask_section
from siftune.reports.verdict import fingerprint_of, verdict_section
from siftune.selection.selection import Selection, may_be_chosen

TEXT_BYTES = 900_000
"""Of escaped text that all examples of a report may take together: the page stays under 2 MB."""


def facts_of(material: Material, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """Raises SiftuneError where the run has no selection, or not those asked for."""
    selections = material.selections
    chosen = {selection.path.name: _chosen(selection) for selection in selections}
    all_chosen = chosen | {
        folder.parent.name: _chosen(Selection.open(folder.parent))
        for folder in material.path.glob("selections/*/selection.json")
        if folder.parent.name not in chosen
    }
    leakage = _leakage(material, chosen)
    common = {
        "leakage": leakage,
        "outcome": outcome_section(material.path),
        "integrity": integrity_section(material, made_with),
    }
    columns = columns_of(material)
    room = TEXT_BYTES // len(selections)
    found = [_of_selection(material, of, columns, all_chosen, room, common) for of in selections]
    return {
        "siftune": made_with.get("versions", {}).get("siftune"),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": material.path.resolve().name,
        "with_text": material.with_text,
        "tests_gone": list(material.tests_gone),
        "selections": found,
        **common,
    }


def _of_selection(
    material: Material,
    selection: Selection,
    columns: dict[str, np.ndarray],
    chosen: dict[str, np.ndarray],
    room: int,
    common: Mapping[str, Any],
) -> dict[str, Any]:
    name, table = selection.path.name, selection.scores()
    score_N = table["score"].to_numpy(zero_copy_only=False).astype(np.float64)
    # A selection made before rows were appended knows nothing of them
    scored = np.flatnonzero(~np.isnan(score_N))
    scored_N = np.zeros(material.index.num_rows, dtype=bool)
    chosen_N = scored_N.copy()
    scored_N[scored], chosen_N[chosen[name]] = True, True
    on_scored = chosen_N[scored]
    target = selection.settings["target"]
    by_checkpoint = (
        {number: of_N[scored] for number, of_N in material.scores_by_checkpoint(target).items()}
        if selection.settings["checkpoints"]
        else {}
    )
    subtasks = [c.removeprefix("subtask:") for c in table.column_names if c.startswith("subtask:")]
    found: dict[str, Any] = {
        "scores": score_section(
            score_N[scored],
            on_scored,
            by_checkpoint,
            may_N=may_be_chosen(
                material.index.slice(0, len(score_N)), score_N, repeats=selection.settings["repeats"]
            )[scored],
            by_score=selection.settings["rule"] not in ("by-subtask", "round-robin"),
        ),
        "composition": composition_section(columns, scored_N, chosen_N),
        "length": length_section(score_N[scored], material.n_trained_N[scored], on_scored),
        "subtasks": subtask_section(
            np.array(table["best_subtask"].to_pylist(), dtype=str)[scored],
            material.source_N[scored],
            on_scored,
            subtasks,
        )
        if subtasks
        else None,
        "examples": example_section(material, selection, table, room),
        "overlap": overlap_section(name, chosen, len(scored)),
        "redundancy": redundancy_section(
            material.pool, chosen[name], scored, material.index["in_warmup"].to_numpy(zero_copy_only=False)
        ),
    }
    prints = material.index["fingerprint"].take(_in_order(table, chosen[name])).to_pylist()
    verdict = verdict_section(
        str(material.path), selection, fingerprint_of(prints), found, common, material.recipe
    )
    return {"name": name, "settings": selection.settings, "verdict": verdict, **found}


def _leakage(material: Material, chosen: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Each target of the run and each test, looked for in the pool."""
    names = sorted(path.parent.name for path in material.path.glob("targets/*/target.json"))
    sought = [Sought("target", name, kept_rows(material.target(name))) for name in names]
    targets = list(sought)
    for test in material.tests:
        found = Sought("test", test.name, test.rows)
        found.in_targets = {t.name: n for t in targets if (n := len(t.fingerprints & found.fingerprints))}
        sought.append(found)
    look_for(material.pool, sought)
    rows = {name: set(of.tolist()) for name, of in chosen.items()}
    return [file.result(rows) for file in sought]


def _chosen(selection: Selection) -> np.ndarray:
    """Rows of a selection, by number."""
    return np.flatnonzero(selection.scores()["selected"].fill_null(False).to_numpy(zero_copy_only=False))


def _in_order(scores: pa.Table, rows: np.ndarray) -> np.ndarray:
    """Rows of a selection, best first."""
    return rows[np.argsort(scores["rank"].to_numpy(zero_copy_only=False)[rows])]
