"""The last stage: influence or scores to a selection. Needs no model, so it takes seconds."""

from __future__ import annotations

from typing import Any

import numpy as np

from siftune.datastore.index import read_index, usable_rows
from siftune.methods.less import WeightedStore, less_influence
from siftune.methods.random import random_scores
from siftune.pipeline.session import Session
from siftune.records.errors import SiftuneError
from siftune.records.files import digest_of, read_json
from siftune.selection.rules import Scores, order_of, scores_of
from siftune.selection.selection import Selection, check_same, may_be_chosen, write_selection


def choose(session: Session, name: str, *, keep_old: bool = False) -> Selection:
    """Make the selection for the target `name` as the recipe says, or return the one that was made so before.

    keep_old: where only the pool has grown since it was made, say so and return it, rather than refuse
    """
    recipe, pool = session.recipe, session.pool
    path = session.path / "selections" / (recipe.name or name)
    target = session.target(name) if recipe.method == "less" else None
    stores = _stores(session) if target else []
    settings: dict[str, Any] = {
        "method": recipe.method,
        "target": name if target else None,
        "rule": recipe.rule if target else None,
        "centre": recipe.centre if target else None,
        "keep": recipe.keep,
        "repeats": recipe.repeats,
        "seed": None if target else recipe.seed,
        "target_rows": target.digest if target else None,
        "pool_rows": pool.plan.n_rows,
        "pool": digest_of([shard.digest for shard in pool.plan.shards])[:32],
        "checkpoints": [[s.checkpoint, s.weight] for s in stores],
    }
    if (path / "selection.json").exists():
        before = Selection.open(path).settings
        grown = pool.plan.n_rows - before["pool_rows"]
        if keep_old and grown:
            session.reporter.warn(
                f"{grown:,} rows were appended since {path.name!r} was chosen; choose again:"
                f" siftune select {session.path} --name NEW"
            )
            settings |= {key: before[key] for key in ("pool_rows", "pool")}
        return check_same(path, settings)
    with session.log.stage(f"selection {path.name}") as details:
        index = read_index(session.path)
        usable_N = usable_rows(index)
        influence_N_V: np.ndarray | None = None
        if target:
            influence_N_V = less_influence(target, stores, centre=recipe.centre)
            influence_N_V[~usable_N] = np.nan
            scores = scores_of(influence_N_V, target.subtask_V, recipe.rule)
        else:
            drawn_N = random_scores(index.num_rows, recipe.seed)
            scores = Scores(
                np.where(usable_N, drawn_N, np.float32(np.nan)), [], np.empty((index.num_rows, 0))
            )
        _check_counts(scores, usable_N, session)
        may_N = may_be_chosen(index, scores.score_N, repeats=recipe.repeats)
        selection = write_selection(
            path,
            settings,
            pool=pool,
            index=index,
            scores=scores,
            order=order_of(scores, influence_N_V, recipe.rule, may_N),
            may_N=may_N,
            columns=_loss_and_norm(stores, index.num_rows),
        )
        details |= {"selected": selection.summary["n_selected"], "settings": settings}
    return selection


def _stores(session: Session) -> list[WeightedStore]:
    """Every checkpoint's features with its weight; SiftuneError where some are not made yet."""
    stores = []
    for folder in sorted((session.path / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name)):
        number = int(folder.name)
        store = session.store(number)
        if store.missing():
            raise SiftuneError(
                f"the datastore lacks {len(store.missing())} shards at checkpoint {number}",
                where=str(session.path),
                todo=f"Run 'siftune run --out {session.path}' to finish it",
            )
        stores.append(WeightedStore(number, float(read_json(folder / "checkpoint.json")["weight"]), store))
    if not stores:
        raise SiftuneError(
            "this run has no checkpoints",
            where=str(session.path),
            todo=f"Run 'siftune run --out {session.path}' first",
        )
    return stores


def _check_counts(scores: Scores, usable_N: np.ndarray, session: Session) -> None:
    """Every row is scored or in quarantine."""
    scored_N = ~np.isnan(scores.score_N)
    if (scored_N != usable_N).any():
        row = int(np.flatnonzero(scored_N != usable_N)[0])
        raise SiftuneError(
            f"pool row {row} is neither scored nor in quarantine",
            where=str(session.path),
            todo="Please report this: it is a fault of siftune",
        )


def _loss_and_norm(stores: list[WeightedStore], n_rows: int) -> dict[str, np.ndarray]:
    """Each pool row's loss and gradient norm, means over checkpoints by their weights; NaN where not known."""
    total = {"loss": np.full(n_rows, np.nan, np.float32), "grad_norm": np.full(n_rows, np.nan, np.float32)}
    if stores:
        for name, values_N in total.items():
            values_N[:] = 0
            for _, weight, store in stores:
                values_N += np.float32(weight) * store.numbers(name)
    return total
