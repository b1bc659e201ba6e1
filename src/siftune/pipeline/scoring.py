"""What each method says of the pool: influence on every target row, or a score. Reads what is stored; the model isn't needed."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from siftune.datastore.index import read_index, usable_rows
from siftune.datastore.store import Datastore, checkpoint_weight
from siftune.datastore.targets import Target, kept_rows, missing_influence
from siftune.methods.blend import blended_influence
from siftune.methods.bm25 import bm25_influence
from siftune.methods.length import length_scores
from siftune.methods.less import WeightedStore, less_influence
from siftune.methods.ltd import ltd_scores
from siftune.methods.random import random_scores
from siftune.methods.vectors import vector_influence
from siftune.pipeline.session import Session
from siftune.records.budget import Budget
from siftune.records.errors import SiftuneError
from siftune.records.plain import text_of
from siftune.records.recipe import Method
from siftune.selection.rules import Scores, scores_alone, scores_of
from siftune.selection.selection import may_be_chosen

GRADED: tuple[Method, ...] = ("less", "blend")
"""Methods that need gradients: checkpoints and features."""
BLENDED: tuple[Method, ...] = ("less", "rds+", "bm25")
"""What `blend` adds up."""
TARGETED: tuple[Method, ...] = ("less", "blend", "rds+", "embed", "bm25", "ltd")
"""Methods that ask about a target; the others score the pool alone."""
RULED: tuple[Method, ...] = ("less", "blend", "rds+", "embed", "bm25")
"""Methods that give an influence on every target row, which a rule turns into an order; the others order by score."""
VECTORED: tuple[Method, ...] = ("blend", "rds+", "embed", "ltd")
"""Methods that compare vectors: hidden states of the base model, or a sentence encoder's."""
SEEDED: tuple[Method, ...] = ("random", "ltd")


class Answer(NamedTuple):
    """A method's scores, NaN where a row has none, and its `influence_N_V` where the rule needs it."""

    scores: Scores
    influence_N_V: np.ndarray | None


def answer_of(session: Session, target: Target | None) -> Answer:
    """Ask the recipe's method. Raises SiftuneError where what it needs isn't there."""
    recipe = session.recipe
    index = read_index(session.path)
    usable_N = usable_rows(index)
    if recipe.method in RULED:
        assert target is not None
        influence_N_V = _influence(session, target)
        influence_N_V[~usable_N] = np.nan
        rule = "mean" if recipe.drop_worst else recipe.rule
        return Answer(scores_of(influence_N_V, target.subtask_V, rule), influence_N_V)
    if recipe.method == "ltd":
        assert target is not None
        score_N = _ltd(session, target, index, usable_N)
    elif recipe.method == "length":
        score_N = length_scores(index["n_trained"].to_numpy())
    else:
        score_N = random_scores(index.num_rows, recipe.seed)
    scores_N = np.where(usable_N, score_N, np.float32(np.nan))
    return Answer(scores_alone(scores_N), None)


def stores_of(session: Session) -> list[WeightedStore]:
    """Every checkpoint's features with its weight; SiftuneError where some are not made yet."""
    stores = []
    for folder in sorted((session.path / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name)):
        number = int(folder.name)
        store = session.store(number)
        if missing := store.missing():
            raise _unmade(
                session,
                f"the datastore lacks {len(missing)} shards at checkpoint {number}, {missing[0].name} among them",
            )
        stores.append(WeightedStore(number, checkpoint_weight(folder), store))
    if not stores:
        raise _unmade(session, "this run has no checkpoints")
    return stores


def vector_store(session: Session) -> Datastore:
    """The vectors that the recipe's method compares, whole; SiftuneError where some are not made yet."""
    store = Datastore(session.vectors_path(), session.pool.plan)
    if missing := store.missing():
        raise _unmade(
            session,
            f"the vectors of {session.vectors_name()} lack {len(missing)} shards, {missing[0].name} among them",
        )
    return store


def _influence(session: Session, target: Target) -> np.ndarray:
    recipe = session.recipe
    if recipe.method in GRADED:
        stores = stores_of(session)
        for number, _, store in stores:
            if missing := missing_influence(target, number, store):
                raise _unmade(
                    session,
                    f"the influence on the target {target.name!r} lacks {len(missing)} shards at checkpoint {number}, {missing[0].name} among them",
                )
        less_N_V = less_influence(target, stores, centre=recipe.centre)
        if recipe.method == "less":
            return less_N_V
        return blended_influence([less_N_V, _likeness(session, target), _shared_words(session, target)])
    if recipe.method == "bm25":
        return _shared_words(session, target)
    return _likeness(session, target)


def _shared_words(session: Session, target: Target) -> np.ndarray:
    questions = [text_of(row.example.messages) for row in kept_rows(target)]
    pool = session.pool
    return bm25_influence((text for shard in pool.plan.shards for text in pool.texts(shard)), questions)


def _likeness(session: Session, target: Target) -> np.ndarray:
    return vector_influence(vector_store(session), session.target_vectors(target))


def _ltd(session: Session, target: Target, index: pa.Table, usable_N: np.ndarray) -> np.ndarray:
    """An exact duplicate that can't be chosen must not cover what it repeats: it isn't looked at and scores as that does."""
    recipe, n_tokens_N = session.recipe, index["n_tokens"].to_numpy()
    may_N = may_be_chosen(index, np.where(usable_N, 0.0, np.nan), repeats=recipe.repeats)
    store = vector_store(session)
    vectors_N_D = np.concatenate([store.features(shard) for shard in store.plan.shards])
    vectors_N_D[~may_N] = np.nan
    shortest_first = np.sort(n_tokens_N[usable_N]).tolist()
    assert recipe.keep is not None
    score_N = ltd_scores(
        vectors_N_D,
        session.target_vectors(target),
        family_N=_family(session, recipe.family) if recipe.family else None,
        template_N=_values(session, recipe.template_column) if recipe.templates else None,
        clusters=recipe.clusters,
        templates=recipe.templates,
        count=Budget.parse(recipe.keep).rows(shortest_first, len(shortest_first)),
        seed=recipe.seed,
    ).score_N
    fingerprints, first = index["fingerprint"].to_pylist(), {}
    for row in np.flatnonzero(usable_N).tolist():
        original = first.setdefault(fingerprints[row], row)
        if not may_N[row]:
            score_N[row] = score_N[original]
    return score_N


def parse_family(text: str) -> tuple[str, str]:
    """`COLUMN=VALUE` as (column, value); SiftuneError for anything else."""
    column, equals, value = text.partition("=")
    if not column or not equals:
        raise SiftuneError(
            f"{text!r} is not COLUMN=VALUE", where="family", todo="Write for example --family skill=maths"
        )
    return column, value


def _family(session: Session, family: str) -> np.ndarray:
    column, value = parse_family(family)
    found = _values(session, column)
    if all(one is None for one in found):
        raise SiftuneError(
            f"no row of the pool has a column {column!r}",
            where=f"family: {family}",
            todo="Name a column of the pool's rows, or leave the family out: clusters take its place",
        )
    return np.array([one == value for one in found])


def _values(session: Session, column: str) -> list[str | None]:
    """A column of the person's rows as text, None where a row has none; `source` is the pool's own."""
    values: list[str | None] = []
    for shard in session.pool.plan.shards:
        table = session.pool.table(shard, ["source", "columns"])
        for source, columns in zip(*(column.to_pylist() for column in table.columns), strict=True):
            row = json.loads(columns) if columns else {}  # of a row that can't be read: its text
            found = source if column == "source" else row.get(column) if isinstance(row, dict) else None
            values.append(None if found is None else str(found))
    return values


def _unmade(session: Session, what: str) -> SiftuneError:
    return SiftuneError(
        what,
        where=str(session.path),
        todo=f"Run 'siftune run --out {session.path} --method {session.recipe.method} --until influence' to make them",
    )
