"""Limits on a choice: what they admit against a walk that compares all with all, in blocks of any size; and that they stay quick."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siftune.records.budget import Budget
from siftune.records.errors import SiftuneError
from siftune.records.shingles import shingles_of, words_of
from siftune.selection import limits
from siftune.selection.limits import Admitted, admit, parse_per_source
from siftune.selection.near_duplicates import NearDuplicates, _Block


class Case(NamedTuple):
    texts: list[str]
    sources: list[str]
    n_tokens: list[int]
    order: list[int]
    keep: str
    near_duplicates: float | None
    per_source: str | None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Texts that repeat pieces of one another; any budget that the best row fits."""
    n = draw(st.integers(1, 14))
    piece = st.sampled_from(
        ["a b c d e f", "a b c d e g", "h i j", "Be kind and brief in all you say", "k", "l"]
    )
    texts = [" ".join(draw(st.lists(piece, max_size=5))) for _ in range(n)]
    n_tokens = draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    order = draw(st.permutations(range(n)))[: draw(st.integers(1, n))]
    keep = draw(
        st.one_of(
            st.integers(1, 100).map(lambda p: f"{p}%"),
            st.integers(1, len(order)).map(str),
            st.integers(n_tokens[order[0]], 60).map(lambda t: f"{t} tokens"),
        )
    )
    threshold = st.one_of(st.sampled_from([0.1, 1 / 3, 0.5, 0.6, 0.8, 1.0]), st.floats(0.01, 1))
    part = st.one_of(
        st.integers(1, 100).map(lambda p: f"{p}%"),
        st.integers(1, 5).map(str),
        st.integers(3, 20).map(lambda t: f"{t} tokens"),
    )
    return Case(
        texts,
        draw(st.lists(st.sampled_from("xyz"), min_size=n, max_size=n)),
        n_tokens,
        order,
        keep,
        draw(st.none() | threshold),
        draw(st.none() | part),
    )


def admitted(case: Case) -> Admitted:
    return admit(
        np.array(case.order),
        budget=Budget.parse(case.keep),
        n_scorable=len(case.texts),
        n_tokens_N=np.array(case.n_tokens),
        source_N=np.array(case.sources, dtype=object),
        text_of=lambda rows: [case.texts[row] for row in rows],
        near_duplicates=case.near_duplicates,
        per_source=case.per_source,
    )


def jaccard(a: str, b: str) -> float:
    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)} or {tuple(words)}

    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def walked(case: Case) -> tuple[list[int], Counter[str]]:
    """The choice by the definition: row by row, each against every row admitted."""
    budget = Budget.parse(case.keep)
    in_tokens = budget.kind == "tokens"
    room = int(budget.amount) if in_tokens else budget.rows([1] * len(case.order), len(case.texts))
    part = Budget.parse(case.per_source) if case.per_source else None
    chosen: list[int] = []
    passed: Counter[str] = Counter()

    def cost(row: int) -> int:
        return case.n_tokens[row] if in_tokens else 1

    for row in case.order:
        if len(chosen) == room and not in_tokens:
            break
        if part:
            mine = [r for r in [*chosen, row] if case.sources[r] == case.sources[row]]
            tokens = sum(case.n_tokens[r] for r in mine)
            if part.kind == "percent":
                given = tokens if in_tokens else len(mine)
                over = given > max(1, int(room * part.amount / 100))
            else:
                over = (tokens if part.kind == "tokens" else len(mine)) > part.amount
            if over:
                passed["per_source"] += 1
                continue
        if case.near_duplicates and any(
            jaccard(case.texts[row], case.texts[other]) >= case.near_duplicates for other in chosen
        ):
            passed["near_duplicates"] += 1
            continue
        if sum(map(cost, chosen)) + cost(row) > room:
            break
        chosen.append(row)
        if in_tokens and sum(map(cost, chosen)) == room:
            break
    return chosen, passed


@pytest.mark.parametrize(("first", "block_tokens"), [(1, 10**9), (3, 10**9), (1024, 10**9), (1024, 7)])
@settings(max_examples=100)
@given(case=cases())
def test_the_choice_is_that_of_a_plain_walk_whatever_the_blocks(first: int, block_tokens: int, case: Case):
    expected, passed = walked(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "_FIRST_BLOCK", first)
        patch.setattr(limits, "_BLOCK_TOKENS", block_tokens)
        if not expected:
            with pytest.raises(SiftuneError, match=r"per_source.*leaves no row"):
                admitted(case)
            return
        found = admitted(case)
    assert found.chosen.tolist() == expected
    assert Counter(found.passed_over) == passed
    assert set(found.passed_over) == {
        name for name in ("near_duplicates", "per_source") if getattr(case, name) is not None
    }


@given(case=cases())
def test_without_limits_the_budget_alone_decides(case: Case):
    found = admitted(case._replace(near_duplicates=None, per_source=None))
    tokens = [case.n_tokens[row] for row in case.order]
    count = Budget.parse(case.keep).rows(tokens, len(case.texts))
    assert found.chosen.tolist() == case.order[:count]
    assert found.wanted == (None if "tokens" in case.keep else count)
    assert (found.passed_over, found.short) == ({}, 0)


def chosen_from(texts: Sequence[str], keep: str, **settings: Any) -> Admitted:
    rows = list(range(len(texts)))
    limits_set = {"near_duplicates": None, "per_source": None} | settings
    return admitted(Case(list(texts), ["one"] * len(rows), [10] * len(rows), rows, keep, **limits_set))


def test_what_the_limits_leave_too_few_of_is_told():
    rows = chosen_from(["same text"] * 6, "4", near_duplicates=0.8)
    assert (rows.chosen.tolist(), rows.wanted, rows.short) == ([0], 4, 3)
    assert rows.passed_over == {"near_duplicates": 5}

    tokens = chosen_from(["same text"] * 6, "40 tokens", near_duplicates=0.8)
    assert (tokens.chosen.tolist(), tokens.wanted, tokens.short) == ([0], None, 30)

    # A budget beyond all there is lacks only what was passed over
    all_there_is = chosen_from(["same text"] * 6, "900 tokens", near_duplicates=0.8)
    assert all_there_is.short == 50

    full = chosen_from([f"text number {i}" for i in range(6)], "35 tokens", near_duplicates=0.8)
    assert (full.chosen.tolist(), full.short) == ([0, 1, 2], 0)


def test_a_per_cent_of_the_budget_gives_a_source_one_row_at_least():
    assert len(chosen_from(["a", "b", "c"], "3", per_source="1%").chosen) == 1
    assert len(chosen_from(["a", "b", "c"], "3", per_source="67%").chosen) == 2


def test_texts_are_fetched_only_for_rows_that_may_be_needed():
    fetched: list[int] = []
    n = 5000

    def text_of(rows: np.ndarray) -> list[str]:
        fetched.extend(rows.tolist())
        return [f"text number {row}" for row in rows]

    def call(keep: str, per_source: str | None) -> Admitted:
        fetched.clear()
        return admit(
            np.arange(n)[::-1],
            budget=Budget.parse(keep),
            n_scorable=n,
            n_tokens_N=np.full(n, 7),
            source_N=np.array(["big"] * (n - 10) + ["small"] * 10, dtype=object),
            text_of=text_of,
            near_duplicates=0.9,
            per_source=per_source,
        )

    assert call("20", None).chosen.tolist() == list(range(n - 1, n - 21, -1))
    assert len(fetched) <= 1024
    few = call("100", "30")
    assert (len(few.chosen), few.passed_over) == (40, {"per_source": n - 40, "near_duplicates": 0})
    assert len(fetched) <= 1024, "the only source with room left is read no further"


def test_words_that_all_rows_share_make_no_pair_to_compare(monkeypatch: pytest.MonkeyPatch):
    compared: list[tuple[int, int]] = []
    similarity = _Block._similarity

    def counted(block: _Block, x: int, y: int) -> float:
        compared.append((x, y))
        return similarity(block, x, y)

    monkeypatch.setattr(_Block, "_similarity", counted)
    rng = np.random.default_rng(0)
    template = " ".join(f"t{i}" for i in range(100))
    texts = [
        f"{template} " + " ".join(f"w{w}" for w in rng.integers(10_000, size=int(rng.integers(20, 60))))
        for _ in range(600)
    ]
    texts[599] = texts[3] + " too"
    near = NearDuplicates(0.85)
    repeated = []
    for start in (0, 300):
        near.look_at(texts[start : start + 300])
        for i in range(300):
            if near.repeats(i):
                repeated.append(start + i)
            else:
                near.admit(i)
    assert repeated == [599]
    assert len(compared) < 20, "of 180,000 pairs"


def test_shingles_are_runs_of_lower_cased_words_and_a_short_text_is_one():
    assert words_of("The  cat\tSAT\n(-1)") == ["the", "cat", "sat", "(-1)"]
    assert words_of("né à Paris 我爱你 ok") == ["né", "à", "paris", "我", "爱", "你", "ok"]
    assert len(shingles_of("a b c d e f g", 5)) == 3
    assert len(shingles_of("a a a a a a a", 5)) == 1
    assert shingles_of("A b  C", 5).tolist() == shingles_of("a B c", 5).tolist()
    distinct = ["", "a", "a b", "b a", "a b c d", "a b c d e", "a b c d - e", "\ud800", "a " * 4 + "b"]
    assert len({tuple(shingles_of(text, 5).tolist()) for text in distinct}) == len(distinct)
    twelve, thirteen = (shingles_of(" ".join("abcdefghijklmnop"[:n]), 13) for n in (12, 13))
    assert len(twelve) == len(thirteen) == 1
    assert twelve.tolist() != thirteen.tolist()
    # The same on every machine: these hashes may lie on disk
    assert shingles_of("a b c d e", 5).tolist() == [6_123_923_907_002_188_469]


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "lots", "-3", "1.5", "20 %%"])
def test_a_part_of_a_source_that_is_none_is_refused(text: str):
    with pytest.raises(SiftuneError) as error:
        chosen_from(["a", "b"], "1", per_source=text)
    assert error.value.where == "per_source"


def test_a_part_is_read_as_a_budget_is():
    assert str(parse_per_source("20 %")) == "20%"
    assert str(parse_per_source("50")) == "50"


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, float("nan")])
def test_a_threshold_that_is_no_similarity_is_refused(threshold: float):
    with pytest.raises(SiftuneError) as error:
        chosen_from(["a", "b"], "1", near_duplicates=threshold)
    assert error.value.where == "near_duplicates"


def test_a_budget_is_refused_as_it_is_without_limits():
    for keep, what in (("3", "more than the 2 rows"), ("9 tokens", "less than the best row's 10 tokens")):
        with pytest.raises(SiftuneError, match=what) as error:
            chosen_from(["a", "b"], keep, near_duplicates=0.9, per_source="1")
        assert error.value.where == "keep"
