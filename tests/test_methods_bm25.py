"""BM25 against Lucene's formula written out, and the words that it counts."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from bm25s import BM25

from siftune.methods import bm25
from siftune.methods.bm25 import bm25_influence, words_of
from siftune.records.plain import text_of


def on_paper(pool: list[list[str]], target: list[str], k1: float = 1.5, b: float = 0.75) -> list[float]:
    mean_length = sum(map(len, pool)) / len(pool)
    scores = []
    for row in pool:
        score = 0.0
        for word in target:
            containing = sum(word in other for other in pool)
            idf = math.log(1 + (len(pool) - containing + 0.5) / (containing + 0.5))
            tf = row.count(word)
            score += idf * tf / (tf + k1 * (1 - b + b * len(row) / mean_length))
        scores.append(score)
    return scores


def texts(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    words = [f"w{i}" for i in range(30)]
    return [" ".join(draw.choices(words, weights=range(1, 31), k=draw.randrange(1, 25))) for _ in range(n)]


def test_influence_is_lucenes_formula() -> None:
    pool, targets = texts(60, seed=1), [*texts(5, seed=2), "w1 w1 w1 unknown"]
    expected = np.array([on_paper([p.split() for p in pool], t.split()) for t in targets]).T
    found = bm25_influence(pool, targets)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 7, 4096])
def test_influence_is_that_of_a_public_package_whatever_the_block(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, targets = texts(60, seed=7), texts(5, seed=8)
    package = BM25(k1=1.5, b=0.75, method="lucene")
    package.index([words_of(text) for text in pool], show_progress=False)
    expected = np.stack([package.get_scores(words_of(target)) for target in targets], axis=1)
    monkeypatch.setattr(bm25, "ROWS_AT_ONCE", at_once)
    np.testing.assert_allclose(bm25_influence(pool, targets), expected, rtol=2e-5, atol=1e-6)


def test_a_row_without_text_is_nan_and_no_part_of_the_statistics(capfd: pytest.CaptureFixture[str]) -> None:
    pool: list[str | None] = [*texts(20, seed=3)]
    target = texts(2, seed=4)
    alone = bm25_influence(pool, target)
    pool[5:5] = [None, None]
    found = bm25_influence(iter(pool), target)
    assert np.isnan(found[5:7]).all()
    np.testing.assert_array_equal(np.delete(found, [5, 6], axis=0), alone)
    assert "".join(capfd.readouterr()) == ""


def test_order_of_the_pool_does_not_matter() -> None:
    pool, target = texts(30, seed=5), texts(3, seed=6)
    order = random.Random(0).sample(range(30), 30)
    found = bm25_influence([pool[i] for i in order], target)
    np.testing.assert_allclose(found, bm25_influence(pool, target)[order], rtol=1e-6)


def test_rows_and_targets_without_known_words_score_zero() -> None:
    found = bm25_influence(["cat dog", "", "?!"], ["", "bird", "dog"])
    assert (found[:, :2] == 0).all()
    assert (found[1:, 2] == 0).all()
    assert found[0, 2] > 0
    np.testing.assert_array_equal(bm25_influence(["", None, "…"], ["cat"]), [[0], [np.nan], [0]])
    assert bm25_influence([None], ["cat", "dog"]).shape == (1, 2)
    assert bm25_influence([], ["cat"]).shape == (0, 1)
    assert bm25_influence(["cat"], []).shape == (1, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The CAT's 3.5 snake_case!", ["the", "cat", "s", "3", "5", "snake_case"]),
        ("猫がsat上2回", ["猫", "が", "sat", "上", "2", "回"]),
        ("한국어 말", ["한국어", "말"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("แมว", ["แ", "ม", "ว"]),
        ("Ünï café", ["ünï", "café"]),
        ("cafe\u0301 x", ["cafe\u0301", "x"]),
        ("Straße—ПРИВЕТ", ["straße", "привет"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_the_text_of_a_conversation_is_all_that_is_said() -> None:
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "Two plus\ntwo?"},
        {"role": "assistant", "content": "Four."},
    ]
    assert text_of(messages) == "Two plus\ntwo?\n\nFour."
