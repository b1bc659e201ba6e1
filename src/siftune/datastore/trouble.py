"""`shard-00012.trouble.json`: what is known of a shard over which processes died. It lies beside the shard until that is made.

An exception can be caught; what kills the process (a fault in native code, a system out of memory) can't. So whoever takes a dead
process's claim over counts that, and a process that makes such a shard apart notes what it is at. Only who holds the shard's
claim, or was started by them, writes here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from siftune.datastore.plan import Shard
from siftune.records.errors import SiftuneError
from siftune.records.files import read_json, write_json

DEATHS = 3
"""Processes that died over a shard, one after another, before a row of it is looked for: most were stopped by somebody."""


@dataclass
class Trouble:
    """What is known of one shard.

    deaths: processes that were gone while they held it, since it is being made
    trying: what a process apart is at: rows, as `siftune.datastore.careful` names them; None between them
    ended:  what such processes were at when they ended, and how each did (`SIGSEGV`)
    """

    file: Path
    deaths: int = 0
    trying: str | None = None
    ended: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    @classmethod
    def of(cls, folder: Path, shard: Shard) -> Trouble:
        """What is known of a shard; mostly nothing."""
        file = folder / f"{shard.name}.trouble.json"
        if not file.exists():
            return cls(file)
        try:
            found = read_json(file)
            ended = {str(rows): list(map(str, ends)) for rows, ends in found["ended"].items()}
            return cls(file, int(found["deaths"]), found["trying"], ended)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SiftuneError(
                "is not what siftune wrote", where=str(file), todo="Remove it and run the same command again"
            ) from error

    def write(self) -> None:
        write_json(self.file, {"deaths": self.deaths, "trying": self.trying, "ended": self.ended})

    def died(self) -> None:
        """One more process is gone that held the shard."""
        self.deaths += 1
        self.write()

    def ended_by(self, how: str) -> None:
        """The process that was at `trying` has ended."""
        assert self.trying is not None
        self.ended.setdefault(self.trying, []).append(how)
        self.trying = None
        self.write()

    def over(self) -> None:
        """The shard is made: forget it all."""
        if self.file.exists():
            self.file.unlink()
