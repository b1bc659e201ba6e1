"""Exact match, F1 and extraction against hand-computed cases and SQuAD's own script."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siftune.proof.answers import accepted_answers, compile_extract, exact_match, extract, token_f1
from siftune.records.errors import SiftuneError
from siftune.records.example import Example


@pytest.mark.parametrize(
    ("predicted", "accepted"),
    [
        ("  Paris. ", ["paris"]),
        ("New\n York", ["new york"]),
        ("1,200", ["1200"]),
        ("$1200", ["1200"]),
        ("1200.0", ["1,200"]),
        ("-$3.50", ["-3.5"]),
        ("$-3.50", ["-3.5"]),
        (".5", ["0.50"]),
        ("1,234,567.", ["1234567"]),
        ("(A)", ["(B)", "(a)"]),
        ("STRASSE", ["straße"]),
    ],
)
def test_exact_match(predicted, accepted):
    assert exact_match(predicted, accepted)


@pytest.mark.parametrize(
    ("predicted", "gold"),
    [
        ("Paris, France", "Paris"),
        ("12,00", "1200"),
        ("120", "1200"),
        ("5", "-5"),
        ("", "0"),
        ("$", "0"),
        (".", "0"),
        ("1.2.3", "12.3"),
        ("5%", "5"),
        ("A", "(A)"),
    ],
)
def test_no_match(predicted, gold):
    assert not exact_match(predicted, [gold])


@pytest.mark.parametrize(
    ("predicted", "gold", "f1"),
    [
        ("The cat sat.", "a cat", 2 / 3),  # {cat, sat} and {cat}: precision 1/2, recall 1
        ("to be or not to be", "to be", 1 / 2),  # two of six, two of two
        ("dog", "cat", 0),
        ("the", "an", 1),
        ("the", "cat", 0),
        ("北京大学", "北京", 2 / 3),  # two of four characters, two of two
        ("กรุงเทพ", "กรุง", 2 * 4 / (7 + 4)),
        ("am 3. Mai 2020 in 北京。", "北京", 2 * 2 / (7 + 2)),
        ("서울 대학교", "서울", 2 / 3),  # Korean is written with spaces
    ],
)
def test_f1_by_hand(predicted, gold, f1):
    assert token_f1(predicted, [gold]) == pytest.approx(f1)


def squad_f1(prediction: str, truth: str) -> float:
    """As in SQuAD's evaluate-v1.1.py and 2.0, for ASCII."""

    def tokens(text: str) -> list[str]:
        kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split()).split()

    predicted, gold = tokens(prediction), tokens(truth)
    if len(gold) == 0 or len(predicted) == 0:
        return int(gold == predicted)
    num_same = sum((Counter(predicted) & Counter(gold)).values())
    if num_same == 0:
        return 0
    precision, recall = num_same / len(predicted), num_same / len(gold)
    return (2 * precision * recall) / (precision + recall)


WORDS = st.lists(st.sampled_from(["the", "An", "a", "cat", "cat's", "dog.", "U.S.", "3,000", "-", "the-cat"]))


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_f1_is_squads_best_over_answers(predicted, golds):
    text, accepted = " ".join(predicted), [" ".join(gold) for gold in golds]
    assert token_f1(text, accepted) == pytest.approx(max(squad_f1(text, gold) for gold in accepted))


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (None, "  all of it \n", "all of it"),
        (r"answer is (.*?)\.?$", "The answer is 3.\nNo, the answer is 4.\nSure", "4"),
        (r"-?[\d,]+", "3 and 4,000 and -5", "-5"),
        (r"#### (\d+)", "the answer is 3", None),
        (r"is (\d+)|none", "is 3, or none", "none"),
        (r"is( not)? (\d+)", "is not 4", " not"),
    ],
)
def test_extract_takes_the_last_match(pattern, text, found):
    assert extract(text, None if pattern is None else compile_extract(pattern)) == found


def test_bad_pattern_is_told():
    with pytest.raises(SiftuneError, match=r"--extract: '\(' is not a regular expression"):
        compile_extract("(")


def row(answer) -> Example:
    return Example("1", "", [], "test.jsonl:9", {"answer": answer})


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ("Paris", ["Paris"]),
        (18, ["18"]),
        (18.0, ["18"]),
        (0.5, ["0.5"]),
        (["Paris", 7], ["Paris", "7"]),
        (0, ["0"]),
    ],
)
def test_accepted_answers(answer, texts):
    assert accepted_answers(row(answer)) == texts


@pytest.mark.parametrize(
    "answer", ["", " ", [], [""], ["Paris", None], True, float("nan"), {"text": "Paris"}]
)
def test_answers_that_can_not_be_compared_are_named(answer):
    with pytest.raises(SiftuneError, match=r"test\.jsonl:9: the answer .* is not a text"):
        accepted_answers(row(answer))
