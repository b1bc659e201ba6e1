"""What a person sees while long work runs: bars in a terminal, plain lines elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from siftune.records.secrets import without_secrets
from siftune.records.stopping import check_stop
from siftune.records.text import duration, shown

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BEFORE_GUESSING = 3.0
"""The first batches also make what later ones find made: a rate from them alone would be wrong."""


class Reporter:
    """Notes and progress, to standard error, so that standard output stays for results.

    bars: titles of the bars that the command may show, in order; one of them is told with its number
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None):
        self.quiet = quiet
        self.console = console or Console(stderr=True, highlight=False)
        self.bars: Sequence[str] = ()

    def note(self, text: str) -> None:
        """One line the person should see."""
        check_stop()
        if not self.quiet:
            style = "dim" if self.console.is_terminal else None
            self.console.print(escape(_said(text)), style=style, soft_wrap=not self.console.is_terminal)

    def warn(self, text: str) -> None:
        """One line the person should act on; said even when quiet."""
        told = f"[yellow]warning:[/yellow] {escape(_said(text))}"
        self.console.print(told, soft_wrap=not self.console.is_terminal)

    @contextmanager
    def bar(self, title: str, total: int | None, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
        """A stage of long work; call what is yielded with the number of units just finished.

        total: units in all, None where not known; done: those that an earlier run finished (they don't count for the rate)
        """
        title = shown(title)
        if title in self.bars:
            title = f"{self.bars.index(title) + 1}/{len(self.bars)} {title}"
        pace = Pace(total, done)
        if self.quiet:
            yield lambda n: check_stop()
        elif self.console.is_terminal:
            wide = self.console.width >= 100
            columns = (
                TextColumn("{task.description}"),
                BarColumn(24 if wide else 10),
                _Facts(pace, unit, wide),
            )
            with Progress(*columns, console=self.console) as progress:
                task = progress.add_task(escape(title), total=total, completed=done)

                def advance(n: int) -> None:
                    check_stop()
                    pace.advance(n)
                    progress.advance(task, n)

                yield advance
                pace.end()
                if total is None:  # what was of unknown length is whole now
                    progress.update(task, total=pace.done)
        else:
            lines = _Lines(self.console, title, pace, unit)
            yield lines.advance
            lines.end()


def _said(text: str) -> str:
    """Nothing of what was read may act on the terminal, and no secret is said."""
    return shown(without_secrets(text), keep="\n")


class Pace:
    """How fast work goes, and when it will be over.

    The rate is that since the start. The moment of the end is moved by a part of what each step would move it, so the time left
    counts down and doesn't jump with every batch that is longer or shorter than those before.
    """

    MOVED = 0.3

    def __init__(self, total: int | None, done: int = 0, clock: Callable[[], float] = time.monotonic):
        self.total, self.before, self.done, self.clock = total, done, done, clock
        self.began = clock()
        self.ended: float | None = None
        self._over_at: float | None = None

    def advance(self, n: int) -> None:
        """`n` units more are done."""
        self.done += n
        if self.total is not None and n and self.elapsed >= SECONDS_BEFORE_GUESSING:
            over_at = self.clock() + (self.total - self.done) / self.rate
            if self._over_at is None:
                self._over_at = over_at
            else:
                self._over_at += self.MOVED * (over_at - self._over_at)

    def end(self) -> None:
        """All is done; time stands still."""
        self.ended = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return (self.ended or self.clock()) - self.began

    @property
    def rate(self) -> float:
        """Units a second, 0 before the first."""
        return (self.done - self.before) / max(self.elapsed, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds left; None where it can't be said (yet) or nothing is left."""
        if self._over_at is None or self.ended is not None or self.done == self.total:
            return None
        return max(0.0, self._over_at - self.clock())

    def facts(self, unit: str, gap: str = ", ") -> str:
        """Count, rate, time so far and time left."""
        parts = [f"{self.done:,}" + (f"/{self.total:,}" if self.total else "") + f" {unit}"]
        if self.done > self.before:
            parts.append(_rate(self.rate))
        if self.elapsed >= 1:
            parts.append(duration(self.elapsed))
        if (left := self.left) is not None:
            parts.append(f"{duration(left)} left")
        return gap.join(parts)


class _Facts(ProgressColumn):
    def __init__(self, pace: Pace, unit: str, wide: bool):
        super().__init__()
        self.pace, self.unit, self.gap = pace, unit, "  " if wide else " "

    def render(self, task: Task) -> Text:
        return Text(self.pace.facts(self.unit, self.gap), no_wrap=True)


class _Lines:
    def __init__(self, console: Console, title: str, pace: Pace, unit: str):
        self.console, self.title, self.pace, self.unit = console, title, pace, unit
        self.said = pace.began

    def advance(self, n: int) -> None:
        check_stop()
        self.pace.advance(n)
        if time.monotonic() - self.said >= SECONDS_BETWEEN_LINES and self.pace.done != self.pace.total:
            self.say()

    def say(self) -> None:
        self.said = time.monotonic()
        self.console.print(escape(f"{self.title}: {self.pace.facts(self.unit)}"), soft_wrap=True)

    def end(self) -> None:
        self.pace.end()
        self.say()


def _rate(per_second: float) -> str:
    if per_second >= 10:
        return f"{per_second:,.0f}/s"
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{per_second * 60:.0f}/min"
