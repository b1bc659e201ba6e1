"""One shard at a time, for a scheduler that says which: the model stays loaded between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from siftune.datastore.shards import shard_notes
from siftune.model.checkpoint import list_checkpoints
from siftune.pipeline.progress import Reporter
from siftune.pipeline.rundir import read_run_recipe
from siftune.pipeline.scoring import GRADED, VECTORED
from siftune.pipeline.session import Session
from siftune.pipeline.stages import gradients_title, vectors_title
from siftune.pipeline.training import feature_extractor, make_pool_features, memory_told
from siftune.pipeline.vectors import embedder, make_pool_vectors


class Store(NamedTuple):
    """Shards of one kind: the number of their checkpoint, 0 for vectors; their folder; names of stage and bar."""

    checkpoint: int
    folder: Path
    stage: str
    title: str


def unfinished_stores(session: Session) -> list[Store]:
    """The stores of the recipe's method that lack shards, in the order in which they are made."""
    recipe, stores = session.recipe, list[Store]()
    if recipe.method in GRADED:
        numbers = [checkpoint.number for checkpoint in list_checkpoints(session.path)]
        stores += [
            Store(n, session.store_path(n), f"datastore {n}", gradients_title(n, len(numbers)))
            for n in numbers
        ]
    if recipe.method in VECTORED:
        name = session.vectors_name()
        stores.append(Store(0, session.vectors_path(), f"vectors {name}", vectors_title(name)))
    shards = session.pool.plan.shards
    return [store for store in stores if any(shard_notes(store.folder, shard) is None for shard in shards)]


class ShardMaker:
    """Makes shards of a run. It holds what one store needs, until it is asked for a shard of another.

    run: the run directory; choice: as `Session.choice` says. Raises SiftuneError where this machine doesn't see it.
    """

    def __init__(self, run: str, choice: dict[str, str]):
        recipe = read_run_recipe(Path(run)).with_settings(choice)
        if recipe.device and recipe.device.startswith("cuda:"):
            recipe = recipe.with_settings({"device": "cuda"})  # whoever schedules says which one is visible
        self.session = Session(Path(run), recipe, Reporter(quiet=True), recipe)
        self.checkpoint: int | None = None
        self.held = ExitStack()

    def load(self, checkpoint: int) -> None:
        """Make ready for shards under a checkpoint; 0: for vectors."""
        if checkpoint != self.checkpoint:
            self.held.close()
            self.checkpoint = None
            self.make_numbered = self.held.enter_context(_making(self.session, checkpoint))
            self.checkpoint = checkpoint

    def make(self, checkpoint: int, number: int) -> None:
        """Make the shard of that number, unless it is there; one that another process holds is waited for."""
        self.load(checkpoint)
        with memory_told(self.session):
            self.make_numbered(number)


@contextmanager
def _making(session: Session, checkpoint: int) -> Iterator[Callable[[int], object]]:
    """What makes the shard of a number."""
    pool = session.pool
    if checkpoint:
        [found] = [each for each in list_checkpoints(session.path) if each.number == checkpoint]
        with feature_extractor(session, found) as extractor:
            yield lambda number: make_pool_features(
                session, checkpoint, extractor, lambda rows: None, plan=pool.plan.only(number)
            )
    else:
        with embedder(session) as embed:
            yield lambda number: make_pool_vectors(
                session, embed, lambda rows: None, plan=pool.plan.only(number)
            )
