"""What the experiments do beside the command line: features in several directions from one pass, scores kept in the repository."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import directions
import kept
from pipeline_helpers import recipe, write_inputs
from siftune.pipeline.run import run
from siftune.proof.cells import Cell, read_cell, write_cell
from siftune.proof.evaluate import RowScore


def test_one_pass_gives_the_features_and_influence_of_a_run_in_each_direction(tmp_path: Path) -> None:
    given = write_inputs(tmp_path / "inputs")
    run(recipe(given), tmp_path / "one", until="warmup")
    directions.main(tmp_path / "one", 2, ["sgd", "adam"])
    for kind in ("sgd", "adam"):
        run(recipe(given, direction=kind), tmp_path / kind)
        for part in (
            "datastore/less/2/shard-00001.safetensors",
            "targets/sums/influence/2/shard-00001.safetensors",
        ):
            expected, found = load_file(tmp_path / kind / part), load_file(tmp_path / f"one-{kind}" / part)
            assert expected.keys() == found.keys()
            for name, numbers in expected.items():
                at_most = 1 if numbers.dtype == np.int8 else 1e-3 * np.abs(numbers).max()
                np.testing.assert_allclose(
                    found[name].astype(float), numbers.astype(float), rtol=0, atol=at_most
                )


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a cell of a part of a test, in a repository of its own."""
    monkeypatch.setattr(kept, "HERE", tmp_path / "experiments")
    (tmp_path / "experiments" / "headline" / "results").mkdir(parents=True)
    rows = tmp_path / "parts" / "final" / "sums.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("".join(json.dumps({"id": f"row {i}"}) + "\n" for i in range(3)), encoding="utf-8")
    scores = [
        RowScore(f"row {i}", 0.5 + i, preferred="secret", correct=i == 1, choice_loss=i / 3) for i in range(3)
    ]
    write_cell(
        tmp_path / "run" / "proof" / "cells" / "sums-a-b.json",
        Cell("sums", {"arm": "less", "seed": 2}, scores),
    )
    return tmp_path


def test_scores_come_back_without_a_word_of_the_rows(measured: Path) -> None:
    file = kept.keep(measured / "run", "final", "headline")
    assert "secret" not in file.read_text(encoding="utf-8")
    (measured / "again").mkdir()
    assert kept.restore(measured / "again", "final", "headline") == 1
    before, after = (_scores(measured / name) for name in ("run", "again"))
    for old, new in zip(before, after, strict=True):
        assert new == {**old, "preferred": None, "choice_loss": pytest.approx(old["choice_loss"], abs=1e-4)}
    assert kept.restore(measured / "again", "final", "headline") == 0


def test_cells_of_another_part_are_not_kept_and_lost_ones_stay(measured: Path) -> None:
    kept.keep(measured / "run", "final", "headline")
    (measured / "empty" / "proof" / "cells").mkdir(parents=True)
    other = Cell("sums", {"arm": "less", "seed": 0}, [RowScore("row 9", 1.0)])
    write_cell(measured / "empty" / "proof" / "cells" / "sums-c-d.json", other)
    file = kept.keep(measured / "empty", "final", "headline")
    assert list(json.loads(file.read_text(encoding="utf-8"))["cells"]) == ["sums-a-b.json"]


def _scores(run_path: Path) -> list[dict[str, Any]]:
    return [asdict(score) for score in read_cell(run_path / "proof" / "cells" / "sums-a-b.json").scores]  # pyright: ignore[reportArgumentType]
