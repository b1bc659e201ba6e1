"""The shard plan: which pool rows belong to which shard, fixed when the pool is read.

One plan serves the pool, the features and the influence. A shard is a range of rows and a digest of their content; adding rows
adds shards and never moves one. It does not depend on who does the work or how many they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from siftune.records.errors import SiftuneError
from siftune.records.files import read_sealed, write_sealed

MOST_ROWS = 100_000
"""Rows that a shard may have, as the setting shard_rows says."""


@dataclass(frozen=True)
class Shard:
    """Rows `start` up to but not including `stop`; `digest` is that of their content and encoding."""

    number: int
    start: int
    stop: int
    digest: str

    @property
    def name(self) -> str:
        return f"shard-{self.number:05d}"

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class ShardPlan:
    """All shards in pool order, and what was chosen by looking at the machine and then stays.

    batch_tokens: padded tokens in a batch of gradients, which are formed inside a shard
    encoder:      fingerprint of the tokenizer, template and mask that encoded the rows
    sources:      the files, folders and hub ids that were read, in order
    """

    shards: tuple[Shard, ...]
    batch_tokens: int
    encoder: str
    sources: tuple[str, ...]

    @property
    def n_rows(self) -> int:
        return self.shards[-1].stop if self.shards else 0

    def only(self, number: int) -> ShardPlan:
        """The plan of one shard alone."""
        return replace(self, shards=(self.shards[number],))

    def write(self, path: Path) -> None:
        shards = [
            {key: value for key, value in asdict(shard).items() if key != "number"} for shard in self.shards
        ]
        write_sealed(
            path,
            {
                "batch_tokens": self.batch_tokens,
                "encoder": self.encoder,
                "sources": list(self.sources),
                "shards": shards,
            },
        )

    @classmethod
    def read(cls, path: Path) -> ShardPlan:
        """Raises SiftuneError where the file is not a shard plan whose ranges follow one another."""
        if not path.exists():
            raise SiftuneError(
                "is missing", where=str(path), todo="Run the same 'siftune run' again: the pool is read anew"
            )
        found = read_sealed(
            path, todo="Remove it and run the same 'siftune run' again: the pool is read anew"
        )
        try:
            shards = tuple(
                Shard(number, int(s["start"]), int(s["stop"]), str(s["digest"]))
                for number, s in enumerate(found["shards"])
            )
            plan = cls(
                shards, int(found["batch_tokens"]), str(found["encoder"]), tuple(map(str, found["sources"]))
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise SiftuneError("is not a shard plan", where=str(path), todo="Make the run again") from error
        starts = [0, *(shard.stop for shard in shards)]
        if any(
            shard.start != start or shard.stop <= start for shard, start in zip(shards, starts, strict=False)
        ):
            raise SiftuneError(
                "has shards that don't follow one another", where=str(path), todo="Make the run again"
            )
        if any(len(shard) > MOST_ROWS for shard in shards) or plan.batch_tokens < 1:
            raise SiftuneError("has numbers that no run has", where=str(path), todo="Make the run again")
        return plan
