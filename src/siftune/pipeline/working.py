"""`siftune worker RUN`: one more process on the features of a run that another one leads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from siftune.datastore.store import Datastore
from siftune.model.checkpoint import list_checkpoints
from siftune.pipeline.machine import on_own_device
from siftune.pipeline.progress import Reporter
from siftune.pipeline.rundir import read_run_recipe
from siftune.pipeline.scoring import GRADED, VECTORED
from siftune.pipeline.session import Session
from siftune.pipeline.stages import gradients_title, vectors_title
from siftune.pipeline.training import feature_extractor, make_pool_features
from siftune.pipeline.vectors import embedder, make_pool_vectors
from siftune.records.errors import SiftuneError


class LeaderGoneError(BaseException):
    """The process that started this one has ended before its time. As Ctrl-C, it is no failure of the work that it ends."""


def work(
    path: Path,
    reporter: Reporter | None = None,
    only: Path | None = None,
    choice: Mapping[str, Any] | None = None,
) -> None:
    """Make shards of features, and of vectors where the method compares them, until none of the run is missing.

    Any number of processes and machines that see the directory may do so at once; which of them makes a shard changes nothing
    in it. Raises SiftuneError where the run has no checkpoints yet.

    only: `datastore/less/2/shard-00012`: that shard alone, for the process that holds it and started this one
    choice: method and encoder, where another choice than that of the run's recipe is being made
    """
    recipe = on_own_device(read_run_recipe(path).with_settings(dict(choice or {})))
    session = Session(path, recipe, reporter or Reporter(), recipe)
    if not (path / "pool" / "plan.json").exists():
        raise SiftuneError("has not read its pool yet", where=str(path), todo="Start it: siftune run")
    n_rows, shard = session.pool.plan.n_rows, only.name if only else None
    if recipe.method in GRADED:
        checkpoints = list_checkpoints(path)
        if not checkpoints:
            raise SiftuneError(
                "has no checkpoints yet, so there is nothing to share",
                where=str(path),
                todo="Wait for its warm-up",
            )
        for checkpoint in checkpoints:
            if missing := _missing(session, session.store_path(checkpoint.number), only):
                title = gradients_title(checkpoint.number, len(checkpoints))
                with (
                    feature_extractor(session, checkpoint) as extractor,
                    session.reporter.bar(title, n_rows, "rows", n_rows - missing) as advance,
                ):
                    make_pool_features(session, checkpoint.number, extractor, _led(advance), shard)
    if recipe.method in VECTORED and (missing := _missing(session, session.vectors_path(), only)):
        title = vectors_title(session.vectors_name())
        with (
            embedder(session) as embed,
            session.reporter.bar(title, n_rows, "rows", n_rows - missing) as advance,
        ):
            make_pool_vectors(session, embed, _led(advance), shard)


def _missing(session: Session, folder: Path, only: Path | None) -> int:
    """Rows of shards that aren't there yet and are wanted here."""
    if only and session.path / only.parent != folder:
        return 0
    if not (folder / "manifest.json").exists():
        return session.pool.plan.n_rows
    return sum(len(shard) for shard in Datastore(folder, session.pool.plan).missing())


def _led(advance: Callable[[int], None]) -> Callable[[int], None]:
    """`advance`, which ends the work where the process that started this one is gone."""
    leader = os.environ.get("SIFTUNE_STARTED_BY")

    def told(rows: int) -> None:
        advance(rows)
        if leader is not None and os.getppid() != int(leader):
            raise LeaderGoneError

    return told
