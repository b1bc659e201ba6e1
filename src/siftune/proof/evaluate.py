"""What a model makes of test rows: its loss on the gold answer, which option it prefers, what it answers by itself.

For a row with options o_1 … o_K and the answer among them, each option takes the place of the last assistant turn and

    log p(o_k) = sum of log-probabilities of the option's tokens and of the end-of-turn token, given the turns before

is what the model says on its own about answering o_k and stopping there. The row is correct where the answer has the
largest log p. Sums are not divided by length: p(o_k) is already the probability of one event against another, and the
end-of-turn token is what keeps an option from winning as the beginning of a longer one. The same log p give

    choice_loss = -log( p(answer) / sum_k p(o_k) )

which knows nothing of the form of an answer: a model that has only learned what answers look like gains nothing.

A row with an `answer` and no options is answered by generation where that is asked for, then compared (answers.py).

The loss is the mean of -log p over the trained tokens of the gold answer, as in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from siftune.chat.encoder import ChatEncoder, Encoded
from siftune.model.precision import in_fp32
from siftune.proof.answers import accepted_answers, compile_extract, exact_match, extract, token_f1
from siftune.proof.generate import Written, generate
from siftune.proof.likelihood import mean_losses
from siftune.proof.prompts import before_answer
from siftune.records.errors import SiftuneError
from siftune.records.example import Example, Message

if TYPE_CHECKING:
    from torch import nn

# Characters of a generated text that are kept for people.
_KEPT = 2000


@dataclass(frozen=True)
class Measuring:
    """What is measured beside losses and the choice among options, and how.

    generate:       answer the rows that have an `answer` and no options, and compare; else `exact` and `f1` stay None
    extract:        regular expression that finds the answer in the generated text: its last match, of that group 1 if it
                    has one; `^` and `$` are ends of lines. The row's `answer` is compared as it is. None = the whole text
    max_new_tokens: an answer's length at most; a longer one is cut, marked and compared as it is
    precise:        compute in fp32 whatever the model is kept in (precision.py); False for one that needs its 16 bits to fit
    Raises SiftuneError where `extract` is no regular expression or there is no token to generate.
    """

    generate: bool = True
    extract: str | None = None
    max_new_tokens: int = 256
    precise: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SiftuneError(
                "an answer needs at least one token",
                where=f"--max-new-tokens: {self.max_new_tokens}",
                todo="Give a positive number",
            )
        if self.extract is not None:
            compile_extract(self.extract)

    def settings(self) -> dict[str, Any]:
        """What decides a score, as JSON values."""
        return asdict(self) if self.generate else {"generate": False, "precise": self.precise}


LIKELIHOOD = Measuring(generate=False)
"""Losses and the choice among options alone."""


@dataclass(frozen=True)
class RowScore:
    """One test row. What was not measured is None.

    loss:        mean loss on the gold answer, nats a token
    preferred:   the option of the largest log p; correct: whether that is the answer
    choice_loss: -log of the answer's share of the options' probability, nats
    exact, f1:   exact match and token F1 of what was generated (answers.py); False and 0 where nothing was extracted
    generated:   the generated text, its first 2,000 characters
    cut:         whether generation ran into max_new_tokens
    unextracted: whether `extract` found nothing in the text
    """

    id: str
    loss: float
    preferred: str | None = None
    correct: bool | None = None
    choice_loss: float | None = None
    exact: bool | None = None
    f1: float | None = None
    generated: str | None = None
    cut: bool | None = None
    unextracted: bool | None = None


@dataclass(frozen=True)
class Mean:
    """The mean of a measure over the `n` rows that have it."""

    mean: float
    n: int


@dataclass(frozen=True)
class Summary:
    """Test rows together: mean loss over all `n_rows`, the other measures where some row has them.

    n_cut, n_unextracted: generated answers that were cut, and those in which `extract` found nothing
    """

    n_rows: int
    loss: float
    accuracy: Mean | None
    choice_loss: Mean | None
    exact: Mean | None
    f1: Mean | None
    n_cut: int
    n_unextracted: int


@dataclass(frozen=True)
class Difference:
    """Mean over rows of (after - before) and its standard error (None for a single row)."""

    mean: float
    standard_error: float | None


def evaluate(
    model: nn.Module,
    encoder: ChatEncoder,
    rows: Sequence[Example],
    batch_tokens: int,
    measuring: Measuring = LIKELIHOOD,
    *,
    on_rows: Callable[[int], None] = lambda n: None,
) -> list[RowScore]:
    """Score test rows in the order given; which rows share a batch never changes a score but by rounding.

    batch_tokens: padded tokens (rows x longest) of a batch. The model is put into eval mode (no dropout)
    on_rows: told the number of rows just finished; in all as many as there are rows
    Raises SiftuneError naming the row that can't be encoded or asked, whose options are cut off, whose answer is no
    option or can't be compared, or whose loss is not a number.
    """
    options_of = [_options(row) for row in rows]
    accepted_of = {
        i: accepted_answers(row)
        for i, row in enumerate(rows)
        if measuring.generate and not options_of[i] and row.columns.get("answer") is not None
    }
    sequences_of = [_Sequences(encoder, row, options) for row, options in zip(rows, options_of, strict=True)]

    def finished(i: int) -> None:
        if i not in accepted_of:
            on_rows(1)

    with in_fp32(model) if measuring.precise else nullcontext():
        losses_of = mean_losses(model, [row.encoded for row in sequences_of], batch_tokens, finished)
        written = generate(
            model,
            encoder,
            [rows[i] for i in accepted_of],
            max_new_tokens=measuring.max_new_tokens,
            batch_tokens=batch_tokens,
            on_rows=on_rows,
        )
    written_of = dict(zip(accepted_of, written, strict=True))

    scores: list[RowScore] = []
    for i, (row, sequences, losses) in enumerate(zip(rows, sequences_of, losses_of, strict=True)):
        if not all(map(math.isfinite, losses)):
            raise SiftuneError(
                "the model's loss on this test row is not a number",
                where=row.where,
                todo="Lower the learning rate of the training, or use dtype fp32",
            )
        loss = losses[sequences.gold]
        if options_of[i]:
            scores.append(_chosen(row, options_of[i], loss, sequences.log_p(losses)))
        elif i in accepted_of:
            scores.append(_compared(row, loss, written_of[i], accepted_of[i], measuring.extract))
        else:
            scores.append(RowScore(row.id, loss))
    return scores


def summarise(scores: Sequence[RowScore]) -> Summary:
    """The means of what was measured; SiftuneError where there are no rows."""
    if not scores:
        raise SiftuneError("there are no test rows", todo="Give a test file that holds at least one row")
    return Summary(
        n_rows=len(scores),
        loss=sum(score.loss for score in scores) / len(scores),
        accuracy=_mean([score.correct for score in scores]),
        choice_loss=_mean([score.choice_loss for score in scores]),
        exact=_mean([score.exact for score in scores]),
        f1=_mean([score.f1 for score in scores]),
        n_cut=sum(bool(score.cut) for score in scores),
        n_unextracted=sum(bool(score.unextracted) for score in scores),
    )


def paired(before: Sequence[float], after: Sequence[float]) -> Difference:
    """The difference of two measurements of the same rows in the same order; pairing takes out what rows differ in."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    if n == 1:
        return Difference(mean, None)
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    return Difference(mean, math.sqrt(variance / n))


def _mean(values: Sequence[bool | float | None]) -> Mean | None:
    measured = [value for value in values if value is not None]
    return Mean(sum(measured) / len(measured), len(measured)) if measured else None


def _chosen(row: Example, options: list[str], loss: float, log_p: list[float]) -> RowScore:
    """The score of a row with options, from the log p of each."""
    preferred = options[log_p.index(max(log_p))]
    answer, largest = row.columns["answer"], max(log_p)
    log_sum = largest + math.log(math.fsum(math.exp(one - largest) for one in log_p))
    return RowScore(
        row.id,
        loss,
        preferred=preferred,
        correct=preferred == answer,
        choice_loss=log_sum - log_p[options.index(answer)],
    )


def _compared(
    row: Example, loss: float, written: Written, accepted: list[str], pattern: str | None
) -> RowScore:
    """The score of a row that was answered by generation."""
    found = extract(written.text, None if pattern is None else compile_extract(pattern))
    return RowScore(
        row.id,
        loss,
        exact=found is not None and exact_match(found, accepted),
        f1=0.0 if found is None else token_f1(found, accepted),
        generated=written.text[:_KEPT],
        cut=written.cut,
        unextracted=found is None,
    )


def _options(row: Example) -> list[str]:
    """The row's options, none where it has no such column."""
    options, answer = row.columns.get("options"), row.columns.get("answer")
    if options is None:
        return []
    if (
        not isinstance(options, list)
        or len(options) < 2
        or not all(isinstance(o, str) and o for o in options)
    ):
        raise SiftuneError(
            "'options' is not a list of two texts or more",
            where=row.where,
            todo="Correct the test row or drop the column",
        )
    if len(set(options)) != len(options):
        raise SiftuneError(
            "an option is given twice", where=row.where, todo="Make the options of a row distinct"
        )
    if answer not in options:
        raise SiftuneError(
            f"the answer {answer!r} is not among the options",
            where=row.where,
            todo="Write the answer as its option is written",
        )
    return options


class _Sequences:
    """The token sequences of a row, equal ones once: the gold answer is usually one of the options.

    encoded: the sequences; gold: which of them ends in the gold answer
    """

    def __init__(self, encoder: ChatEncoder, row: Example, options: list[str]):
        self.encoded: list[Encoded] = []
        self._encoder = encoder
        self.gold = self._place(row, may_be_cut=not options)
        self._options = [self._place(_answered(row, option), may_be_cut=False) for option in options]

    def log_p(self, losses: Sequence[float]) -> list[float]:
        """log p of each option from the mean losses of the sequences."""
        return [-losses[k] * int(self.encoded[k].trained.sum()) for k in self._options]

    def _place(self, row: Example, *, may_be_cut: bool) -> int:
        """Where the sequence of a conversation is in `encoded`."""
        encoded = self._encoder.encode(row)
        if isinstance(encoded, str):
            raise SiftuneError(
                f"this test row can't be used: {encoded}", where=row.where, todo="Correct or remove the row"
            )
        if encoded.truncated and not may_be_cut:
            raise SiftuneError(
                "this test row is longer than max_length, which would cut its options",
                where=row.where,
                todo="Raise max_length",
            )
        for k, known in enumerate(self.encoded):
            if np.array_equal(known.token_ids, encoded.token_ids) and np.array_equal(
                known.trained, encoded.trained
            ):
                return k
        self.encoded.append(encoded)
        return len(self.encoded) - 1


def _answered(row: Example, option: str) -> Example:
    """The row with the option as its last assistant turn, nothing after it."""
    messages: list[Message] = [*before_answer(row), {"role": "assistant", "content": option}]
    return Example(row.id, row.source, messages, row.where, tools=row.tools)
