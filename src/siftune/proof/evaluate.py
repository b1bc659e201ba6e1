"""What a model makes of test rows: the loss on the gold answer and, where a row has options, whether it prefers the right one.

For a row with options o_1 … o_K and the answer among them, each option takes the place of the last assistant turn and

    log p(o_k) = sum of log-probabilities of the option's tokens and of the end-of-turn token, given the turns before

is what the model says on its own about answering o_k and stopping there. The row is correct where the answer has the
largest log p. Sums are not divided by length: p(o_k) is already the probability of one event against another, and the
end-of-turn token is what keeps an option from winning as the beginning of a longer one.

The loss is the mean of -log p over the trained tokens of the gold answer, as in training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from siftune.chat.batches import pad_batch, token_batches
from siftune.chat.encoder import ChatEncoder, Encoded
from siftune.gradients.loss import losses
from siftune.records.errors import SiftuneError
from siftune.records.example import Example

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class RowScore:
    """One test row: its mean loss on the gold answer (nats a token) and, where it has options, which one won.

    `preferred` is the option of the largest log p, `correct` whether that is the answer; both None without options.
    """

    id: str
    loss: float
    preferred: str | None
    correct: bool | None


@dataclass(frozen=True)
class Summary:
    """Test rows together: mean loss over `n_rows`, accuracy over `n_choices` rows with options (None where none has)."""

    n_rows: int
    loss: float
    n_choices: int
    accuracy: float | None


@dataclass(frozen=True)
class Difference:
    """Mean over rows of (after - before) and its standard error (None for a single row)."""

    mean: float
    standard_error: float | None


def evaluate(
    model: nn.Module, encoder: ChatEncoder, rows: Sequence[Example], batch_tokens: int
) -> list[RowScore]:
    """Score test rows in the order given; batches are padded on the right and never change a score but by rounding.

    batch_tokens: padded tokens (rows x longest) of a batch. The model is put into eval mode (no dropout).
    Raises SiftuneError naming the row that can't be encoded, whose options are cut off, or whose answer is no option.
    """
    options_of = [_options(row) for row in rows]
    sequences = _Sequences(encoder)
    gold_of = [
        sequences.place(row, may_be_cut=not options) for row, options in zip(rows, options_of, strict=True)
    ]
    places_of = [
        [sequences.place(_answered(row, option), may_be_cut=False) for option in options]
        for row, options in zip(rows, options_of, strict=True)
    ]
    loss_of = _mean_losses(model, sequences.encoded, batch_tokens)

    scores: list[RowScore] = []
    for row, gold, options, places in zip(rows, gold_of, options_of, places_of, strict=True):
        log_p = {o: -loss_of[k] * sequences.n_trained(k) for o, k in zip(options, places, strict=True)}
        preferred = max(log_p, key=log_p.__getitem__, default=None)
        correct = None if preferred is None else preferred == row.columns["answer"]
        scores.append(RowScore(row.id, loss_of[gold], preferred, correct))
    return scores


def summarise(scores: Sequence[RowScore]) -> Summary:
    """Mean loss and accuracy; SiftuneError where there are no rows."""
    if not scores:
        raise SiftuneError("there are no test rows", todo="Give a test file that holds at least one row")
    choices = [score.correct for score in scores if score.correct is not None]
    accuracy = sum(choices) / len(choices) if choices else None
    return Summary(len(scores), sum(score.loss for score in scores) / len(scores), len(choices), accuracy)


def paired(before: Sequence[float], after: Sequence[float]) -> Difference:
    """The difference of two measurements of the same rows in the same order; pairing takes out what rows differ in."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    if n == 1:
        return Difference(mean, None)
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    return Difference(mean, math.sqrt(variance / n))


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


def _answered(row: Example, option: str) -> Example:
    """The row with the option as its last assistant turn, nothing after it."""
    last = max(
        (i for i, turn in enumerate(row.messages) if turn["role"] == "assistant"), default=len(row.messages)
    )
    messages: list[dict[str, Any]] = [*row.messages[:last], {"role": "assistant", "content": option}]
    return Example(row.id, row.source, messages, row.where, tools=row.tools)


class _Sequences:
    """Token sequences to run through the model, equal ones once: the gold answer is usually one of the options."""

    def __init__(self, encoder: ChatEncoder):
        self.encoded: list[Encoded] = []
        self._encoder = encoder
        self._place_of: dict[tuple[bytes, bytes], int] = {}

    def place(self, row: Example, *, may_be_cut: bool) -> int:
        """Where the row's sequence is in `encoded`."""
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
        key = (encoded.token_ids.tobytes(), encoded.trained.tobytes())
        if key not in self._place_of:
            self._place_of[key] = len(self.encoded)
            self.encoded.append(encoded)
        return self._place_of[key]

    def n_trained(self, place: int) -> int:
        return int(self.encoded[place].trained.sum())


@torch.inference_mode()
def _mean_losses(model: nn.Module, sequences: Sequence[Encoded], batch_tokens: int) -> list[float]:
    model.eval()
    device = next(model.parameters()).device
    loss_of = [math.nan] * len(sequences)
    for batch in token_batches([len(sequence.token_ids) for sequence in sequences], batch_tokens):
        ids, trained, _ = pad_batch([(sequences[i].token_ids, sequences[i].trained) for i in batch], 0)
        batch_losses = losses(model, torch.from_numpy(ids).to(device), torch.from_numpy(trained).to(device))
        for i, loss in zip(batch, batch_losses.tolist(), strict=True):
            loss_of[i] = loss
    return loss_of
