"""The measures of benchmarks/accuracy.py against cases that can be worked out by hand, and its page from a result of its form."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "_ext"))

import accuracy
import accuracy_tiny
import from_results
import record
from accuracy_measures import Question, agreement, bytes_per_row, cosine_error, mean_agreement, stored
from bf16 import by_peft, by_siftune, nearness
from model_helpers import write_tiny_model
from pipeline_helpers import recipe, write_inputs
from siftune.model.load import load_model
from siftune.model.lora import add_lora, lora_parameters
from siftune.pipeline.progress import Reporter
from siftune.pipeline.run import run

TWO = [Question("a", [0], ["all"]), Question("b", [1, 2], ["x", "y"])]
SAME = {rule: {"spearman": 1.0, "overlap": 1.0} for rule in ("top", "by-subtask")}


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_agreement_of_the_same_of_the_opposite_and_of_one_row_in_five() -> None:
    influence = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    assert agreement(influence, influence, TWO) == SAME
    assert agreement(3 * influence, influence, TWO) == SAME
    opposite = agreement(-influence, influence, TWO[:1])["top"]
    assert opposite == {"spearman": -1.0, "overlap": 0.0}
    moved = influence.copy()
    best = np.argsort(-moved[:, 0])
    moved[best[4], 0], moved[best[5], 0] = (
        moved[best[5], 0],
        moved[best[4], 0],
    )  # fifth and sixth change places
    assert agreement(moved, influence, TWO[:1])["top"]["overlap"] == 0.8
    assert mean_agreement([SAME, agreement(moved, influence, TWO[:1])])["top"]["overlap"] == 0.9


def test_cosine_error_is_the_root_mean_square_over_pairs() -> None:
    rows = unit_rows(9, 40)
    exact = rows @ rows.T
    assert cosine_error(rows, exact) == pytest.approx(0, abs=1e-7)
    assert cosine_error(rows, exact + 0.25) == pytest.approx(0.25, rel=1e-5)


def test_stored_numbers_are_off_by_half_a_step_at_most() -> None:
    rows = unit_rows(20, 300)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    assert np.array_equal(stored(rows, "fp32"), rows)
    assert np.all(np.abs(stored(rows, "int8") - rows) <= largest / 254 * 1.001)
    assert np.all(np.abs(stored(rows, "bf16") - rows) <= np.abs(rows) * 2**-8)
    assert np.all(np.abs(stored(rows, "fp16") - rows) <= np.abs(rows) * 2**-11 + 2**-25)
    assert [bytes_per_row(1000, dtype) for dtype in ("fp32", "bf16", "fp16", "int8")] == [
        4000,
        2000,
        2000,
        1004,
    ]


def test_the_page_has_every_choice_of_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [f"{kind} {n}" for kind in ("sketch", "rademacher") for n in accuracy.NUMBERS]
    numbers = {str(n): 0.02 for n in accuracy.NUMBERS}
    real: dict[str, Any] = {
        "coordinates": 1_000_000,
        "seconds": {"gradients fp32": 2.0, "gradients bf16": 1.0} | dict.fromkeys(kinds, 0.25),
        "error": {"sketch fp32": numbers, "sketch bf16": numbers},
        "bf16": SAME,
        "projection": dict.fromkeys(kinds, SAME),
        "stored": {f"{n} int8": {"exact": SAME, "fp32": SAME} for n in accuracy.NUMBERS},
    }
    many = {
        "rows": 2000,
        "stored_in": "fp16",
        "stored": {"int8": SAME},
        "checkpoints": {"1": SAME, "1 2": SAME},
    }
    lines = accuracy.table(real, many)
    of = {(line["choice"], line["compared"]): line for line in lines}
    assert len(of) == len(lines)
    assert of["rademacher 1024", "exact"]["cpu"] == 1.0
    assert of["sketch 1024 in int8", "exact"]["bytes"] == 4 * 1028
    assert of["checkpoints 1 2", "all four"]["cpu"] == 0.5
    result = {
        "date": "2026-01-02T00:00:00",
        "commit": "abc",
        "machine": {"cpu": "a CPU"},
        "rows": {"pool_rows": 160, "target_rows": {"t": 4}},
        "real": real,
        "all_rows": many,
        "tiny": {"gpt2": {"coordinates": 10, "sketch": numbers, "rademacher": numbers}},
        "table": lines,
    }
    (tmp_path / "accuracy.json").write_text(json.dumps(result), encoding="utf-8")
    monkeypatch.setattr(from_results, "RESULTS", tmp_path)
    page = from_results.accuracy()
    assert all(f"| {choice} | {compared} |" in page for choice, compared in of)
    assert "| tiny gpt2, sketch, 10 weights | 0.0200 | 0.0200 | 0.0200 | 0.0200 |" in page
    monkeypatch.setattr(from_results, "RESULTS", tmp_path / "none")
    assert "benchmarks/accuracy.py" in from_results.accuracy()


def test_nearness_is_of_angle_length_and_difference() -> None:
    truth = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    assert set(nearness(truth, truth).values()) == {0.0, 1.0}
    found = nearness(np.array([[6.0, 8.0], [0.0, 1.0]], np.float32), truth)  # twice as long; turned by 90°
    assert (found["cosine_least"], found["cosine_mean"]) == (0.0, 0.5)
    assert (found["norm_ratio_least"], found["norm_ratio_most"]) == (1.0, 2.0)
    assert (found["error_median"], found["error_most"]) == (
        pytest.approx((1 + 2**0.5) / 2, abs=1e-5),
        pytest.approx(2**0.5, abs=1e-5),
    )


def test_both_ways_to_a_gradient_are_one_in_fp32(tmp_path: Path) -> None:
    model = add_lora(
        load_model(str(write_tiny_model(tmp_path, "llama"))),
        rank=2,
        alpha=4.0,
        dropout=0.3,
        targets=("auto",),
        seed=0,
    )
    for weight in lora_parameters(model).values():
        weight.data.normal_(std=0.1)
    row = (np.arange(3, 14, dtype=np.int32), np.arange(11) > 4)
    np.testing.assert_allclose(by_peft(model)(row), by_siftune(model)(row), atol=1e-6, rtol=1e-4)


def test_the_paragraph_on_bf16_is_of_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = from_results.bf16()
    found = json.loads((from_results.RESULTS / "bf16.json").read_text(encoding="utf-8"))
    assert all(
        f"{of[arm]['error_median']:.3f}" in said
        for of in found["checkpoints"].values()
        for arm in ("siftune bf16", "peft bf16")
    )
    monkeypatch.setattr(from_results, "RESULTS", tmp_path)
    assert "benchmarks/bf16.py" in from_results.bf16()


def test_the_benchmark_on_a_tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(
        recipe(write_inputs(tmp_path), features=1024, batch_tokens=256),
        tmp_path / "run",
        reporter=Reporter(quiet=True),
    )
    settings = {
        "NUMBERS": (32, 1024),
        "FULL": 1024,
        "SEEDS": 2,
        "SUBSETS": ((1,), (1, 2)),
        "ARCHITECTURES": ("gpt2",),
    }
    for name, value in settings.items():
        monkeypatch.setattr(accuracy, name, value)
    monkeypatch.setattr(accuracy_tiny, "HIDDEN", 32)
    monkeypatch.setattr(accuracy_tiny, "STEPS", 3)
    for module in (record, from_results):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    small = ["--pool-rows", "20", "--target-rows", "2", "--tiny-rows", "6"]
    monkeypatch.setattr(sys, "argv", ["accuracy.py", str(tmp_path / "run"), str(tmp_path / "work"), *small])
    accuracy.main()
    found = json.loads((tmp_path / "results" / "accuracy.json").read_text())
    assert found["rows"] == {"pool_rows": 20, "target_rows": {"sums": 2}}
    for errors in (*found["real"]["error"].values(), found["tiny"]["gpt2"]["sketch"]):
        assert errors["1024"] < 0.5 * errors["32"] < 0.5  # a factor of 5.7 in expectation
    assert found["real"]["bf16"]["cosine_to_fp32"] > 0.9
    assert found["real"]["stored"]["1024 fp32"]["fp32"] == SAME
    assert found["all_rows"]["rows"] == 240
    assert found["all_rows"]["checkpoints"]["1 2"] == SAME
    assert "tiny gpt2, sketch" in from_results.accuracy()
    kept = sorted((tmp_path / "work").rglob("*.npy"))
    written = [file.stat().st_mtime_ns for file in kept]
    accuracy.main()  # goes on where it was: nothing is made again
    assert [file.stat().st_mtime_ns for file in kept] == written
    assert json.loads((tmp_path / "results" / "accuracy.json").read_text())["table"] == found["table"]
