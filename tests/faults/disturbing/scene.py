"""The run that faults are put into, undisturbed copies of it to compare with, and what counts as an outcome."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import yaml

from disturbing.forks import Command, Ended, Forks
from pipeline_helpers import LASTING, digests, pool_rows, target_rows, write_inputs, write_rows

SELECT = ("--method", "less", "--keep", "10%", "--name", "again", "--quiet")


class Outcome(NamedTuple):
    """What one try came to.

    fault, case: which fault, which try of it
    happened:    did the fault come before the command had ended?
    told:        was what the person saw as documented: an error as a sentence, the exit code, nothing at all of a kill?
    identical:   once the command had been run again, were all lasting files those of an undisturbed run?
    lost:        pool rows that then are neither scored nor in quarantine
    where:       the stage that it fell into
    """

    fault: str
    case: str
    happened: bool
    told: bool
    identical: bool
    lost: int
    where: str = ""
    note: str = ""

    @property
    def good(self) -> bool:
        """Nothing lost, nothing else than without the fault, and told as documented."""
        return self.told and self.identical and not self.lost


Try = Callable[[], Outcome]


@dataclass
class Scene:
    """Inputs in `folder`, a server to start commands, and undisturbed runs, each made when first asked for."""

    folder: Path
    forks: Forks

    @cached_property
    def recipe(self) -> Path:
        given = write_inputs(self.folder / "inputs")
        changes = {"method": "blend", "features": 4096, "warmup_fraction": 0.3, "batch": 12}
        file = self.folder / "recipe.yaml"
        recipe = {**given, **changes, "shard_rows": 30, "workers": 1}
        file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return file

    @cached_property
    def more(self) -> Path:
        """Rows to append."""
        return write_rows(self.folder / "more.jsonl", pool_rows(60, 4, seed=7))

    @cached_property
    def test(self) -> Path:
        """Rows to measure with."""
        return write_rows(self.folder / "test.jsonl", target_rows(4, seed=5))

    def run(self, out: Path) -> list[object]:
        """The command that makes a run."""
        return ["run", "--recipe", self.recipe, "--out", out, "--quiet"]

    def append(self, out: Path) -> list[object]:
        return ["append", out, "--pool", self.more, "--quiet"]

    def select(self, out: Path) -> list[object]:
        return ["select", out, *SELECT]

    def score(self, out: Path) -> list[object]:
        """A new question, for which the model is loaded."""
        return [
            "score",
            out,
            "--target",
            f"other={self.test}",
            "--method",
            "less",
            "--keep",
            "10%",
            "--quiet",
        ]

    def compare(self, out: Path) -> list[object]:
        return ["compare", out, "--test", f"sums={self.test}", "--methods", "bm25", "--seeds", "1", "--quiet"]

    @cached_property
    def finished(self) -> Undisturbed:
        """A run from start to end."""
        return self._undisturbed("finished", self.run)

    @cached_property
    def warm(self) -> Path:
        """A run whose warm-up is done, for workers to join."""
        out = self.folder / "warm"
        if not (out / "checkpoints" / "2").exists():
            self.forks.must(*self.run(out), "--until", "warmup")
        return out

    @cached_property
    def carried_on(self) -> Undisturbed:
        """The same from after the warm-up."""
        return self._undisturbed("carried-on", self.run, self.warm)

    @cached_property
    def shared_seconds(self) -> float:
        """What a run and two workers take from there."""
        begun = time.monotonic()
        with self.place(self.warm) as out:
            processes = [self.forks.start("worker", out, "--quiet") for _ in range(2)]
            self.forks.must(*self.run(out))
            assert all(process.finished().status == 0 for process in processes)
        return time.monotonic() - begun

    @cached_property
    def appended(self) -> Undisturbed:
        return self._undisturbed("appended", self.append, self.finished.path)

    @cached_property
    def selected(self) -> Undisturbed:
        return self._undisturbed("selected", self.select, self.finished.path)

    @cached_property
    def scored(self) -> Undisturbed:
        return self._undisturbed("scored", self.score, self.finished.path)

    @cached_property
    def compared(self) -> Undisturbed:
        return self._undisturbed("compared", self.compare, self.finished.path)

    def _undisturbed(
        self, name: str, command: Callable[[Path], list[object]], before: Path | None = None
    ) -> Undisturbed:
        """Made once in a folder, twice as fast the second time it is asked for: what it took is kept beside it."""
        out, notes = self.folder / name, self.folder / f"{name}.json"
        if not notes.exists():
            shutil.rmtree(out, ignore_errors=True)
            if before:
                shutil.copytree(before, out)
            tally = self.folder / f"{name}.calls"
            process = self.forks.start(*command(out), tally=str(tally))
            seconds = _seconds_of(process)
            calls = json.loads(tally.read_text(encoding="utf-8"))
            notes.write_text(json.dumps({"seconds": seconds, "calls": calls}), encoding="utf-8")
        found = json.loads(notes.read_text(encoding="utf-8"))
        return Undisturbed(out, found["seconds"], found["calls"])

    @contextmanager
    def place(self, before: Path | None = None) -> Iterator[Path]:
        """A folder for a run, a copy of another where one is given; gone afterwards."""
        out = self.folder / "disturbed"
        shutil.rmtree(out, ignore_errors=True)
        if before:
            shutil.copytree(before, out)
        yield out
        shutil.rmtree(out, ignore_errors=True)


class Undisturbed(NamedTuple):
    """A run that nobody disturbed; the seconds and the calls (`os.replace`, `os.fsync`) that its last command took."""

    path: Path
    seconds: float
    calls: dict[str, int]

    def same(self, out: Path) -> bool:
        """Is every lasting file of `out` that of this run, and nothing left aside?"""
        return not self.differing(out) and not list(out.rglob("*.part"))

    def differing(self, out: Path, part: str | None = None) -> list[str]:
        """Files (those below `part`) that differ, lack or are too many."""
        of = [digests(run, part) if part else _lasting(run) for run in (self.path, out)]
        return sorted({name for name, _ in of[0].items() ^ of[1].items()})

    def lost(self, out: Path) -> int:
        """Pool rows of this run that are neither scored nor in quarantine in `out`."""
        return len(_accounted(self.path) - _accounted(out))


def _lasting(run: Path) -> dict[str, str]:
    trained = digests(run, "proof/trained")
    adapters = {name: digest for name, digest in trained.items() if "/adapter/" in name}
    figures = digests(run, "proof/sums")
    return {**digests(run, *LASTING), **adapters, **figures}


def _accounted(run: Path) -> set[int]:
    scores = pq.read_table(
        run / "selections" / "sums" / "scores.parquet", columns=["row", "score"]
    ).to_pydict()
    scored = {row for row, score in zip(*scores.values(), strict=True) if score is not None}
    held = pq.read_table(run / "pool" / "index.parquet", columns=["row", "status"]).to_pydict()
    rows = set(held["row"])
    out = {row for row, status in zip(*held.values(), strict=True) if status == "quarantined"}
    appended = {row for row in rows if row >= len(scores["row"])}  # came after that choice
    return (scored & rows) | out | appended


def _seconds_of(process: Command) -> float:
    begun = time.monotonic()
    found = process.finished()
    assert found.status == 0, found.text
    return time.monotonic() - begun


def stage_of(out: Path) -> str:
    """The stage that a run is in, by its log: the last that was begun."""
    file = out / "log.jsonl"
    stage = "start"
    if file.exists():
        for line in file.read_bytes().splitlines():
            try:
                event: dict[str, Any] = json.loads(line)
            except ValueError:
                continue  # the line that was being written
            stage = str(event.get("stage") or stage)
    return stage.rstrip("0123456789 ")


def again(scene: Scene, like: Undisturbed, out: Path, command: list[object]) -> tuple[bool, int, str]:
    """The same command once more: identical, lost rows, and what is to be said of it."""
    ended: Ended = scene.forks.run(*command)
    if ended.status != 0:
        return (
            False,
            like.lost(out) if (out / "selections/sums/scores.parquet").exists() else -1,
            ended.text[-600:],
        )
    differing = like.differing(out)
    return like.same(out), like.lost(out), ", ".join(differing[:5])


def draw(seed: int, *names: object) -> random.Random:
    """A generator of its own for every case, so that the order of cases changes none of them."""
    return random.Random(f"{seed} {' '.join(map(str, names))}")
