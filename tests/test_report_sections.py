"""The sections of a report against slow plain counting."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from siftune.records.example import Example
from siftune.records.plain import text_of
from siftune.records.readers import TargetRow
from siftune.records.shingles import shingles_of, words_of
from siftune.reports.composition import apart, shares
from siftune.reports.integrity import stages_of
from siftune.reports.leakage import Sought
from siftune.reports.length import length_section
from siftune.reports.marked import cut
from siftune.reports.overlap import overlap_section
from siftune.reports.scores import score_section
from siftune.reports.subtasks import subtask_section


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(3)


def ranks(values: list[float]) -> list[float]:
    """Mean rank of equal values."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]


def rank_correlation(a: list[float], b: list[float]) -> float:
    x, y = ranks(a), ranks(b)
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    return top / (sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y)) ** 0.5


def test_bins_hold_every_row_once_and_ties_at_the_cut_are_counted(draw: np.random.Generator) -> None:
    score_N = draw.integers(0, 12, 200).astype(float)
    order = np.argsort(-score_N, kind="stable")
    chosen_N = np.zeros(200, dtype=bool)
    chosen_N[order[:30]] = True
    other_N = score_N + draw.normal(size=200)
    found = score_section(score_N, chosen_N, {1: score_N, 2: other_N}, by_score=True)
    assert sum(found["pool"]) == 200
    assert sum(found["chosen"]) == 30
    cut_at = min(score_N[chosen_N])
    assert found["ties_at_cut"] == sum(score_N == cut_at)
    assert found["tied_but_left_out"] == sum(
        s == cut_at and not c for s, c in zip(score_N, chosen_N, strict=True)
    )
    assert found["higher_but_left_out"] == 0
    expected = rank_correlation(score_N.tolist(), other_N.tolist())
    assert found["agreement"] == [{"first": 1, "second": 2, "spearman": pytest.approx(expected, abs=1e-3)}]


def test_shares_and_lift(draw: np.random.Generator) -> None:
    value_N = draw.choice(["a", "b", "c", "never"], 300, p=[0.5, 0.3, 0.15, 0.05])
    scored_N = draw.random(300) < 0.9
    chosen_N = scored_N & (draw.random(300) < 0.2) & (value_N != "never")
    rows = shares(value_N, scored_N, chosen_N)
    pool = Counter(v for v, s in zip(value_N, scored_N, strict=True) if s)
    chosen = Counter(v for v, c in zip(value_N, chosen_N, strict=True) if c)
    assert {row["value"]: (row["pool"], row["chosen"]) for row in rows} == {
        v: (pool[v], chosen[v]) for v in pool
    }
    for row in rows:
        lift = chosen[row["value"]] / chosen.total() / (pool[row["value"]] / pool.total())
        assert row["lift"] == pytest.approx(lift, abs=1e-3)
    assert apart(rows) == pytest.approx(
        sum(abs(chosen[v] / chosen.total() - pool[v] / pool.total()) for v in pool) / 2, abs=2e-3
    )
    assert rows[-1]["value"] == "never"


@pytest.mark.parametrize(("sign", "flagged"), [(1, True), (-1, True), (0, False)])
def test_length_bias_is_flagged_either_way(draw: np.random.Generator, sign: int, flagged: bool) -> None:
    n_trained_N = draw.integers(1, 400, 500)
    score_N = sign * n_trained_N / 100 + draw.normal(size=500)
    chosen_N = np.zeros(500, dtype=bool)
    chosen_N[np.argsort(-score_N)[:50]] = True
    found = length_section(score_N, n_trained_N, chosen_N)
    assert found["flagged"] is flagged
    assert found["spearman"] == pytest.approx(
        rank_correlation(score_N.tolist(), n_trained_N.tolist()), abs=1e-3
    )
    assert found["low"] < found["spearman"] < found["high"]
    assert sum(of["rows"] for of in found["bins"]) == 500
    assert found["medians"]["chosen"] == np.median(n_trained_N[chosen_N])


def test_length_of_rows_that_never_vary() -> None:
    found = length_section(np.arange(9.0), np.full(9, 4), np.arange(9) > 6)
    assert found["spearman"] is None
    assert not found["flagged"]


def test_subtasks_are_counted_by_source(draw: np.random.Generator) -> None:
    source_N = draw.choice(["p", "q"], 100)
    best_N = draw.choice(["one", "two"], 100)
    chosen_N = draw.random(100) < 0.3
    found = subtask_section(best_N, source_N, chosen_N, ["one", "two", "three"])
    for row in found["rows"]:
        for source, n in zip(found["sources"], row["cells"], strict=True):
            inside = zip(best_N, source_N, chosen_N, strict=True)
            assert n == sum(b == row["subtask"] and s == source and c for b, s, c in inside)
    assert found["without"] == ["three"]
    assert sum(row["chosen"] for row in found["rows"]) == chosen_N.sum()


@pytest.mark.parametrize(("share", "flagged"), [(0.95, True), (0.3, False)])
def test_a_subtask_that_takes_over_is_flagged(share: float, flagged: bool) -> None:
    best_N = np.array(["big"] * int(share * 100) + [f"s{i % 9}" for i in range(100 - int(share * 100))])
    subtasks = ["big", *(f"s{i}" for i in range(9))]
    found = subtask_section(best_N, np.full(100, "x"), np.ones(100, dtype=bool), subtasks)
    assert found["flagged"] is flagged


def test_overlap_beside_chance() -> None:
    chosen = {"a": np.arange(10), "b": np.arange(5, 25), "c": np.arange(90, 100)}
    found = {of["selection"]: of for of in overlap_section("a", chosen, 100)}
    assert found["b"]["shared"] == 5
    assert found["b"]["jaccard"] == pytest.approx(5 / 25)
    assert found["b"]["by_chance"] == pytest.approx(2 / 28, abs=1e-4)
    assert found["c"]["jaccard"] == 0


def target_row(text: str) -> TargetRow:
    messages: list[Any] = [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]
    return TargetRow(Example("id", "file", messages, "file:1"), "all")


def runs(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[k : k + 13]) for k in range(len(words) - 12)}


def test_leakage_against_a_search_of_words() -> None:
    draw = random.Random(5)
    words = [f"w{i}" for i in range(60)]
    wording = " ".join(draw.choices(words, k=20))
    texts = [f"{wording} {' '.join(draw.choices(words, k=30))}" for _ in range(6)]
    rows = [target_row(text) for text in texts]
    pool = [" ".join(draw.choices(words, k=40)) for _ in range(30)]
    pool[3] = f"before {' '.join(words_of(texts[2])[25:45])} after"  # a piece of a row
    pool[7] = f"{wording} {' '.join(draw.choices(words, k=30))}"  # the wording alone
    pool[9] = texts[4]

    sought = Sought("test", "t", rows)
    examples = [target_row(text).example for text in pool]
    for row, example in enumerate(examples):
        sought.look_at(row, shingles_of(text_of(example.messages), 13), example.fingerprint)
    found = sought.result({"mine": {3, 7, 9, 11}})

    whole = [text_of(row.example.messages) for row in rows]
    counts = Counter(run for text in whole for run in runs(text))
    own = {run for run, n in counts.items() if n < 3}
    expected = [row for row, example in enumerate(examples) if runs(text_of(example.messages)) & own]
    assert expected == [3, 9]
    assert found["pool_rows"] == expected
    assert (found["exact"], found["overlapping"], found["rows_touched"]) == (1, 2, 2)
    assert found["wording_left_aside"] == sum(n >= 3 for n in counts.values()) > 0
    assert found["chosen"] == {"mine": 2}


@pytest.mark.parametrize(
    "text", ["plain", "<" * 100_000, "é" * 5000, "\u202eevil\x00\x1b[31m" * 400, "𝕏" * 3000]
)
def test_cut_text_fits_and_is_inert(text: str) -> None:
    from html import escape

    found = cut(text, 600)
    assert len(escape(found).encode()) <= 600 + 60  # and the note of what was left out
    assert all(character.isprintable() or character == "\n" for character in found)
    assert found == text if text == "plain" else "left out" in found


def test_stages_add_up_over_tries(tmp_path: Any) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"event": "stage began", "stage": "pool"}\n'
        '{"event": "stage interrupted", "stage": "pool", "seconds": 1.5, "cpu_seconds": 1, "peak_memory_mib": 9}\n'
        '{"event": "stage began", "stage": "pool"}\n'
        '{"event": "stage done", "stage": "pool", "seconds": 2.0, "cpu_seconds": 1, "peak_memory_mib": 7}\n'
        '{"event": "stage be'
    )
    assert stages_of(log) == [
        {"stage": "pool", "seconds": 3.5, "cpu_seconds": 2, "peak_memory_mib": 9, "began": 2, "done": 1}
    ]
