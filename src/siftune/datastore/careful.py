"""Numbers of a shard's rows, batch by batch, whatever one of them does.

Memory that doesn't hold a batch: it is made in halves, down to one row. Any other exception: the batch is tried three times,
then made in halves, until the rows are alone that fail, and these get no numbers but a reason. A batch with such a row is at last
made whole, another row's tokens standing in at that place, cut to the same length: all shapes are as if nothing had
failed, so the other rows get the bytes that they would have had. Where that fails too, what its halves gave stays, equal to rounding.

A batch over which a process ended (`siftune.datastore.trouble`) counts as one that failed; a row, after two.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from siftune.chat.batches import pad_batch, token_batches
from siftune.datastore.pool import TokenRows
from siftune.datastore.targets import Target
from siftune.datastore.trouble import DEATHS, Trouble
from siftune.records.errors import SiftuneError

TRIES = 3
"""Of whatever raises an exception."""
MOST = 3
"""Rows of a shard that may fail, each by itself; where more do, it is no fault of theirs."""

Item = TypeVar("Item")
Told = Callable[..., None]
"""Is told what was done about a failure: an event and its details, JSON values."""


@dataclass(frozen=True)
class Work(Generic[Item]):
    """What is to be made: arrays `whole` [n, …], NaN so far, from n items, which are the rows `row_N`.

    stand_in(item, other): something of the shape of `item`, with nothing but `other` in it
    """

    whole: Sequence[np.ndarray]
    row_N: np.ndarray
    items: Sequence[Item]
    make: Callable[[list[Item]], Sequence[np.ndarray]]
    stand_in: Callable[[Item, Item], Item]


class ProcessEndedError(Exception):
    """A process that was at these rows has ended."""


@dataclass
class Care:
    """What becomes of failures among one shard's rows, or a target's.

    name:    of what they belong to, for messages
    where:   `file:line` of a row
    spare:   how many of them may fail and be left out
    trouble: what is known of the shard; None for a target
    watched: note there what is tried before it is tried: this process may end over it
    reasons: rows that failed alone, and why
    halved:  batches that were made in halves and not whole after that
    """

    name: str = "these rows"
    where: Callable[[int], str] = str
    spare: int = 0
    told: Told = lambda event, **details: None
    trouble: Trouble | None = None
    watched: bool = False
    reasons: dict[int, str] = field(default_factory=dict[int, str])
    halved: int = 0

    def notes(self) -> dict[str, Any]:
        """What the shard's side-car says of it: nothing, where nothing happened."""
        ended = self.trouble.ended if self.trouble else {}
        notes = {"batches_halved": self.halved, "ended_processes": ended}
        return {name: value for name, value in notes.items() if value}

    def fill(
        self,
        work: Work[Item],
        batches: Sequence[list[int]],
        on_rows: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """Make all batches (lists of item numbers); raises SiftuneError where it isn't a few rows that fail."""
        known = self.trouble.ended if self.trouble else {}
        try:
            # What ended a process first: what comes before it would be made again by every process
            for batch in sorted(batches, key=lambda batch: _named(work, batch) not in known):
                whole = self._fill(work, batch)
                lost = [i for i in batch if work.row_N[i] in self.reasons]
                if not whole and 0 < len(lost) < len(batch):
                    whole = self._attempt(work, batch, lost) is None
                self.halved += not whole
                on_rows(len(batch))
            if len(self.reasons) == len(work.items) > 1:
                raise self._no_fault_of_rows(f"all rows of {self.name}", next(iter(self.reasons)))
            for row, reason in self.reasons.items():
                self.told("row left out", shard=self.name, row=row, where=self.where(row), reason=reason)
        finally:
            if self.watched and self.trouble and self.trouble.trying:
                self.trouble.trying = None
                self.trouble.write()

    def _fill(self, work: Work[Item], batch: list[int]) -> bool:
        """Make a batch, in halves where it can't be had whole; was it?"""
        failure = self._attempt(work, batch)
        if failure is None:
            return True
        rows = [int(work.row_N[i]) for i in batch]
        if len(batch) == 1:
            self._lose(rows[0], failure)
            return True
        event = "batch halved" if _out_of_memory(failure) else "batch failed"
        self.told(event, shard=self.name, rows=rows, error=type(failure).__name__)
        middle = len(batch) // 2
        self._fill(work, batch[:middle])
        self._fill(work, batch[middle:])
        return False

    def _attempt(self, work: Work[Item], batch: list[int], lost: Collection[int] = ()) -> Exception | None:
        """Make a batch whole, stand-ins at the places of its `lost` rows; what came instead, after some tries."""
        kept = [i for i in batch if i not in lost]
        items = [
            work.stand_in(work.items[i], work.items[kept[0]]) if i in lost else work.items[i] for i in batch
        ]
        if self.trouble and (ended := self._noted(self.trouble, _named(work, kept, lost), len(batch))):
            return ended
        failure: Exception | None = None
        for _ in range(TRIES):
            try:
                made = work.make(items)
            except SiftuneError:
                raise
            except Exception as error:
                failure = error
            else:
                for whole, part in zip(work.whole, made, strict=True):
                    whole[kept] = part[[i not in lost for i in batch]]
                return None
            traceback.clear_frames(failure.__traceback__)  # they hold the tensors that were being made
            if _out_of_memory(failure):
                if torch.cuda.is_initialized():
                    torch.cuda.empty_cache()
                break
            if _device_lost(failure):
                raise self._leave(failure) from failure
        return failure

    def _noted(self, trouble: Trouble, name: str, n_rows: int) -> ProcessEndedError | None:
        """Note what is about to be tried, where this process may end over it; not where others did, often enough."""
        ends = trouble.ended.get(name, [])
        if len(ends) >= (2 if n_rows == 1 else 1):
            return ProcessEndedError(", ".join(ends))
        if self.watched:
            trouble.trying = name
            trouble.write()
        return None

    def _lose(self, row: int, failure: Exception) -> None:
        """A row that fails alone."""
        if _out_of_memory(failure):
            raise SiftuneError(
                f"this row alone, without any other, doesn't fit the memory ({_said(failure)})",
                where=self.where(row),
                todo="Let a 'siftune worker' with more memory make it, or start a new run with --gradient-checkpointing or a smaller --max-length",
            ) from failure
        if isinstance(failure, ProcessEndedError):
            self.reasons[row] = f"the process that computes it ends ({failure})"
        else:
            self.reasons[row] = f"it can't be computed ({type(failure).__name__}: {_said(failure)})"
        if len(self.reasons) > self.spare:
            raise self._no_fault_of_rows(f"more than {self.spare} rows of {self.name}", row) from failure

    def _no_fault_of_rows(self, which: str, row: int) -> SiftuneError:
        """Too many rows fail, this one among them."""
        told = f"{which} fail, each by itself, so it isn't a row's fault: {self.reasons[row]}"
        if not self.spare:
            told = f"this row of {self.name} is needed, and {self.reasons[row]}"
        return SiftuneError(
            told,
            where=self.where(row),
            todo="Put right what that says and run the same command again (--debug shows where it happened); no row was left out",
        )

    def _leave(self, failure: Exception) -> SiftuneError:
        """After an error of this kind the device answers this process no more: to others, it is as if it had ended."""
        if self.trouble and self.watched:
            self.trouble.ended_by(_said(failure))
        elif self.trouble:
            self.trouble.deaths = DEATHS
            self.trouble.write()
        return SiftuneError(
            f"the device failed and answers no more ({_said(failure)})",
            where=self.name,
            todo="Run the same command again: where a row does it, that is found and left out",
        )


def target_care(target: Target, told: Told) -> Care:
    """Of a target no row may fail: a handful of rows must all count."""
    return Care(f"the target {target.name!r}", lambda row: f"{target.source}, row {row + 1}", told=told)


def fill_tokens(
    care: Care,
    whole: Sequence[np.ndarray],
    rows: TokenRows,
    make: Callable[[np.ndarray, np.ndarray, np.ndarray], Sequence[np.ndarray]],
    batch_tokens: int,
    on_rows: Callable[[int], None],
) -> None:
    """Fill arrays from token rows in batches of like lengths. `make` gets token ids, trained tokens and lengths of a padded batch."""
    items = list(zip(rows.token_ids, rows.trained, strict=True))
    work = Work(whole, rows.row_N, items, lambda batch: make(*pad_batch(batch, pad_id=0)), _like)
    care.fill(work, token_batches([len(ids) for ids in rows.token_ids], batch_tokens), on_rows)


def _like(
    row: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Another row's tokens, repeated or cut to this one's length, trained where this one's are."""
    return np.resize(other[0], len(row[0])), row[1]


def _named(work: Work[Any], batch: Collection[int], lost: Collection[int] = ()) -> str:
    rows = " ".join(str(work.row_N[i]) for i in batch)
    return rows + "".join(f" -{work.row_N[i]}" for i in lost)


def _out_of_memory(error: Exception) -> bool:
    """By its type; torch's allocator for CPUs and the libraries of CUDA tell it in words alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("not enough memory", "can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in words)


def _device_lost(error: Exception) -> bool:
    """A fault on a GPU leaves its context broken: whatever is asked of it next fails the same way."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
