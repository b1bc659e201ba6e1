"""What a person sees while long work runs: bars in a terminal, plain lines elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from siftune.records.text import shown

SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """Notes and progress, to standard error, so that standard output stays for results."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None):
        self.quiet = quiet
        self.console = console or Console(stderr=True, highlight=False)

    def note(self, text: str) -> None:
        """One line the person should see."""
        if not self.quiet:
            self.console.print(
                escape(text), style="dim" if self.console.is_terminal else None, soft_wrap=True
            )

    def warn(self, text: str) -> None:
        """One line the person should act on; said even when quiet."""
        self.console.print(f"[yellow]warning:[/yellow] {escape(shown(text))}", soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: int | None, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
        """A stage of long work; call what is yielded with the number of units just finished.

        total: units in all, None where not known; done: those that an earlier run finished (they don't count for the rate)
        """
        if self.quiet:
            yield lambda n: None
        elif self.console.is_terminal:
            columns = [
                TextColumn("{task.description}"),
                BarColumn(24),
                MofNCompleteColumn(),
                _Rate(unit),
                TimeRemainingColumn(),
            ]
            with Progress(*columns, console=self.console) as progress:
                task = progress.add_task(title, total=total, completed=done)
                yield lambda n: progress.advance(task, n)
        else:
            lines = _Lines(self.console, title, total, unit, done)
            yield lines.advance
            lines.end()


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{self.unit}, {_rate(speed)}" if speed else self.unit)


class _Lines:
    def __init__(self, console: Console, title: str, total: int | None, unit: str, done: int):
        self.console, self.title, self.total, self.unit = console, title, total, unit
        self.before = self.now = done
        self.began = self.said = time.monotonic()

    def advance(self, n: int) -> None:
        self.now += n
        if time.monotonic() - self.said >= SECONDS_BETWEEN_LINES and self.now != self.total:
            self.say()

    def say(self) -> None:
        self.said = time.monotonic()
        speed = (self.now - self.before) / max(self.said - self.began, 1e-9)
        text = f"{self.title}: {self.now:,}" + (f" of {self.total:,}" if self.total else "") + f" {self.unit}"
        if self.now > self.before:
            text += f", {_rate(speed)}"
            if self.total and self.now < self.total:
                text += f", {_duration((self.total - self.now) / speed)} left"
        self.console.print(escape(text), soft_wrap=True)

    def end(self) -> None:
        self.say()


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second * 60:,.0f}/min"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
