"""What a report is made of: a run's files, each read once, whatever the number of selections.

Nothing here needs torch or the model. The tokenizer is needed to mark trained tokens; where it can't be had the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from siftune.datastore.index import read_index, usable_rows
from siftune.datastore.pool import Pool
from siftune.datastore.store import Datastore
from siftune.datastore.targets import Target, missing_influence, read_influence
from siftune.records.errors import SiftuneError
from siftune.records.files import read_sealed
from siftune.records.readers import TargetRow
from siftune.selection.rules import scores_of
from siftune.selection.selection import Selection

if TYPE_CHECKING:
    import pyarrow as pa

    from siftune.chat.encoder import ChatEncoder


@dataclass(frozen=True)
class TestFile:
    """Rows that measure what was learnt, to be looked for in the pool."""

    name: str
    file: str
    rows: list[TargetRow]


@dataclass
class Material:
    """A run as a report reads it.

    names:     the selections to report, all of the run's where empty
    tests:     held-out rows to look for in the pool; tests_gone: those that were measured on and whose files are gone
    encoder:   tokenizer and template of the run, None where they can't be had
    with_text: False leaves the text of every row out
    """

    path: Path
    recipe: Mapping[str, Any]
    names: tuple[str, ...] = ()
    tests: tuple[TestFile, ...] = ()
    tests_gone: tuple[str, ...] = ()
    encoder: ChatEncoder | None = None
    with_text: bool = True
    _targets: dict[str, Target] = field(default_factory=dict, init=False)
    _by_checkpoint: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = field(
        default_factory=dict, init=False
    )

    @cached_property
    def pool(self) -> Pool:
        return Pool(self.path / "pool")

    @cached_property
    def index(self) -> pa.Table:
        return read_index(self.path)

    @cached_property
    def usable_N(self) -> np.ndarray:
        return usable_rows(self.index)

    @cached_property
    def source_N(self) -> np.ndarray:
        return self.index["source"].to_numpy(zero_copy_only=False).astype(str)

    @cached_property
    def n_trained_N(self) -> np.ndarray:
        return self.index["n_trained"].to_numpy()

    @cached_property
    def selections(self) -> list[Selection]:
        """Raises SiftuneError where there is none, or none of a name."""
        found = {
            path.parent.name: path.parent for path in sorted(self.path.glob("selections/*/selection.json"))
        }
        if not found:
            raise SiftuneError(
                "this run has no selection yet",
                where=str(self.path),
                todo="Make one: 'siftune run --out RUN' goes on to it, 'siftune select RUN' chooses from what is stored",
            )
        for name in self.names:
            if name not in found:
                raise SiftuneError(
                    f"there is no selection {name!r}",
                    where=str(self.path / "selections"),
                    todo=f"There are: {', '.join(found)}",
                )
        return [
            Selection.open(folder) for name, folder in found.items() if not self.names or name in self.names
        ]

    def target(self, name: str) -> Target:
        if name not in self._targets:
            self._targets[name] = Target.open(self.path / "targets" / name)
        return self._targets[name]

    def scores_by_checkpoint(self, name: str) -> dict[int, np.ndarray]:
        """`score_N` of the rule `top` on a target under each checkpoint alone; empty where its influence isn't whole."""
        return {number: top_N for number, (top_N, _) in self._influence(name).items()}

    def mean_influence(self, name: str) -> np.ndarray | None:
        """`influence_N` of gradients, weighted over checkpoints, mean over a target's rows; None where it isn't whole."""
        found = self._influence(name)
        if not found or set(found) != set(self.weights):
            return None
        return np.sum([self.weights[number] * mean_N for number, (_, mean_N) in found.items()], axis=0)

    def _influence(self, name: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        if name not in self._by_checkpoint:
            target, found = self.target(name), dict[int, tuple[np.ndarray, np.ndarray]]()
            for folder in sorted(
                (self.path / "datastore" / "less").glob("[0-9]*"), key=lambda p: int(p.name)
            ):
                number = int(folder.name)
                store = Datastore(folder, self.pool.plan)
                if not missing_influence(target, number, store):
                    influence_N_V = read_influence(target, number, store)
                    top_N = scores_of(influence_N_V, target.subtask_V, "top").score_N
                    found[number] = top_N, influence_N_V.mean(axis=1)
            self._by_checkpoint[name] = found
        return self._by_checkpoint[name]

    @cached_property
    def weights(self) -> dict[int, float]:
        """A weight per checkpoint."""
        folders = (self.path / "checkpoints").glob("[0-9]*")
        return {int(p.name): float(read_sealed(p / "checkpoint.json")["weight"]) for p in folders}
