"""The last stage: scores to a selection. Needs no model, so it takes seconds."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from siftune.datastore.index import read_index, usable_rows
from siftune.datastore.targets import Target
from siftune.methods.less import WeightedStore
from siftune.pipeline.scoring import (
    GRADED,
    RULED,
    SEEDED,
    TARGETED,
    VECTORED,
    answer_of,
    parse_family,
    stores_of,
    vector_store,
)
from siftune.pipeline.session import Session
from siftune.records.budget import Budget
from siftune.records.errors import SiftuneError
from siftune.records.files import digest_of
from siftune.records.recipe import Method, Recipe
from siftune.selection.limits import Admitted, admit, parse_per_source
from siftune.selection.rules import Scores, order_of
from siftune.selection.selection import Choice, Selection, check_same, may_be_chosen, write_selection


def choose(session: Session, name: str, *, keep_old: bool = False) -> Selection:
    """Make the selection for the target `name` as the recipe says, or return the one that was made so before.

    keep_old: where only the pool has grown since it was made, say so and return it, rather than refuse
    """
    recipe, pool = session.recipe, session.pool
    path = session.path / "selections" / (recipe.name or name)
    settings = settings_of(session, name)
    if (path / "selection.json").exists():
        before = Selection.open(path).settings
        grown = pool.plan.n_rows - before["pool_rows"]
        if keep_old and grown:
            session.reporter.warn(
                f"{grown:,} rows were appended since {path.name!r} was chosen; choose again:"
                f" {_again(session, name)} --name NEW"
            )
            settings |= {key: before[key] for key in ("pool_rows", "pool")}
        return check_same(path, settings)
    with session.log.stage(f"selection {path.name}") as details:
        choice = decide(session, name)
        columns = _loss_and_norm(stores_of(session) if recipe.method in GRADED else [], pool.plan.n_rows)
        selection = write_selection(
            path, settings, choice, pool=pool, index=read_index(session.path), columns=columns
        )
        details |= {"selected": selection.summary["n_selected"], "settings": settings}
    return selection


def check_budget(session: Session) -> None:
    """Refuse a budget of more rows than the pool has to choose from, before a model is loaded; what caps leave out is known later."""
    index, budget = read_index(session.path), Budget.parse(str(session.recipe.keep))
    if budget.kind == "rows":
        may_N = may_be_chosen(
            index, np.where(usable_rows(index), 0.0, np.nan), repeats=session.recipe.repeats
        )
        n_rows = int(may_N.sum())
        budget.rows([1] * n_rows, n_rows)


def _again(session: Session, name: str) -> str:
    """The command that chooses for this target again."""
    which = ["--target", name] if session.recipe.method in TARGETED else ["--method", session.recipe.method]
    return shlex.join(["siftune", "select", str(session.path), *which])


def settings_of(session: Session, name: str) -> dict[str, Any]:
    """Everything that a choice for the target `name` depends on; what the method doesn't use is None."""
    recipe, pool = session.recipe, session.pool
    method = recipe.method
    target = session.target(name) if method in TARGETED else None
    ruled, ltd = method in RULED, method == "ltd"
    return {
        "method": method,
        "target": name if target else None,
        "rule": ("mean" if recipe.drop_worst else recipe.rule) if ruled else None,
        "centre": recipe.centre if method in GRADED else None,
        "keep": None if recipe.drop_worst else recipe.keep,
        "drop_worst": recipe.drop_worst,
        "repeats": recipe.repeats,
        "near_duplicates": recipe.near_duplicates,
        "per_source": recipe.per_source,
        "seed": recipe.seed if method in SEEDED else None,
        "target_rows": target.digest if target else None,
        "pool_rows": pool.plan.n_rows,
        "pool": digest_of([shard.digest for shard in pool.plan.shards])[:32],
        "checkpoints": [[s.checkpoint, s.weight] for s in stores_of(session)] if method in GRADED else [],
        "vectors": vector_store(session).digest if method in VECTORED else None,
        "family": recipe.family if ltd else None,
        "clusters": recipe.clusters if ltd else None,
        "templates": recipe.templates if ltd else None,
        "template_column": recipe.template_column if ltd and recipe.templates else None,
    }


def decide(session: Session, name: str) -> Choice:
    """The choice for the target `name`, nothing written. Raises SiftuneError where no row has a score."""
    recipe = session.recipe
    check_settings(recipe)
    target: Target | None = session.target(name) if recipe.method in TARGETED else None
    index = read_index(session.path)
    scores, influence_N_V = answer_of(session, target)
    _check_counts(scores, usable_rows(index), session)
    may_N = may_be_chosen(index, scores.score_N, repeats=recipe.repeats)
    rule = "mean" if recipe.drop_worst else recipe.rule
    order = order_of(scores, influence_N_V, rule, may_N)
    choosable = order[may_N[order]]
    if not len(choosable):
        raise SiftuneError(
            "no row of the pool has a score",
            where=str(session.path / "pool"),
            todo="See RUN/quarantine.jsonl for the reasons",
        )
    passed_over: dict[str, int] = {}
    if recipe.drop_worst:
        by_score = order[np.argsort(-scores.score_N[order], kind="stable")]
        kept = by_score[: len(order) - int(len(order) * Budget.parse(recipe.drop_worst).amount / 100)]
        chosen = kept[may_N[kept]]
    else:
        assert recipe.keep is not None
        admitted = admit(
            choosable,
            budget=Budget.parse(recipe.keep),
            n_scorable=len(order),
            n_tokens_N=index["n_tokens"].to_numpy(),
            source_N=index["source"].to_numpy(zero_copy_only=False),
            text_of=session.pool.texts_of,
            near_duplicates=recipe.near_duplicates,
            per_source=recipe.per_source,
        )
        chosen, passed_over = admitted.chosen, admitted.passed_over
        _tell_short(session, admitted)
    rest = order[~np.isin(order, chosen)]
    return Choice(
        scores,
        np.concatenate([chosen, rest]),
        chosen,
        len(order) - len(choosable),
        passed_over,
    )


def check_settings(recipe: Recipe) -> None:
    """Settings of a choice that can't be read, or contradict each other or the method: SiftuneError, before any work."""
    if recipe.per_source is not None:
        parse_per_source(recipe.per_source)
    if recipe.family is not None:
        parse_family(recipe.family)
    if recipe.drop_worst and recipe.method not in RULED:
        raise SiftuneError(
            f"the method {recipe.method} does not say which rows are against a target",
            where="drop_worst",
            todo=f"Use one of {', '.join(RULED)}",
        )
    if recipe.drop_worst and (recipe.near_duplicates or recipe.per_source):
        raise SiftuneError(
            "near_duplicates and per_source limit what is chosen; drop_worst keeps all but the worst",
            where="drop_worst",
            todo="Leave them out, or use keep instead of drop_worst",
        )


USED_BY: Mapping[str, Sequence[Method]] = {
    "rule": RULED,
    "centre": GRADED,
    "encoder": ("embed", "ltd"),
    "family": ("ltd",),
    "clusters": ("ltd",),
    "templates": ("ltd",),
    "template_column": ("ltd",),
}
"""Settings of a choice that some methods alone look at."""


def check_used(method: Method, settings: Iterable[str]) -> None:
    """Refuse settings that were asked for and that the method would not look at."""
    for name in settings:
        if method not in USED_BY.get(name, (method,)):
            raise SiftuneError(
                f"the method {method} does not look at {name}",
                where=name,
                todo=f"Leave it out; it belongs to {', '.join(USED_BY[name])}",
            )


def _tell_short(session: Session, admitted: Admitted) -> None:
    if admitted.short:
        unit = "tokens" if admitted.wanted is None else "rows"
        why = ", ".join(f"{n:,} by {what}" for what, n in admitted.passed_over.items())
        session.reporter.warn(
            f"the choice lacks {admitted.short:,} {unit} of its budget; rows passed over: {why}"
        )


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
