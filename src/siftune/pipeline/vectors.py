"""The stage of methods that compare vectors: those of the pool and of the targets, from the base model or a sentence encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from siftune.datastore.careful import target_care
from siftune.datastore.manifest import claim, versions
from siftune.datastore.plan import ShardPlan
from siftune.datastore.pool import TokenRows
from siftune.datastore.shards import shard_notes
from siftune.datastore.store import Datastore
from siftune.datastore.targets import Target, has_numbers, kept_rows, vectors_file, write_target_vectors
from siftune.datastore.vectors_writer import Embed, build_vectors, embed_states, embed_texts, states_of
from siftune.model.load import quiet_transformers
from siftune.model.sentence import SentenceEncoder
from siftune.pipeline.apart import on_failure
from siftune.pipeline.crew import Crew
from siftune.pipeline.machine import device_of, threads_of_shards
from siftune.pipeline.session import Session
from siftune.pipeline.stages import vectors_title
from siftune.pipeline.training import base_model
from siftune.records.plain import text_of

OfTarget = Callable[[Target, TokenRows], np.ndarray]


def make_vectors(session: Session, targets: Mapping[str, tuple[Target, TokenRows]], crew: Crew) -> None:
    """Make what is missing of the vectors of the recipe's method.

    A sentence encoder is looked at even if nothing is missing: two folders of one name would share their vectors.
    """
    name, path, pool = session.vectors_name(), session.vectors_path(), session.pool
    rows = sum(len(shard) for shard in pool.plan.shards if shard_notes(path, shard) is None)
    new = [item for item in targets.values() if not has_numbers(item[0], vectors_file(item[0], name), path)]
    if not rows and not new and session.encoder_folder() is None:
        return
    with session.log.stage(f"vectors {name}") as details, _way(session) as (embed, of_target, cut):
        if rows:
            done = pool.plan.n_rows - rows
            with session.reporter.bar(vectors_title(name), pool.plan.n_rows, "rows", done) as advance:
                told = crew.watching(advance, rows)
                build_vectors(path, pool, embed, told, session.reporter.note, on_failure(session))
        made_with = Datastore(path, pool.plan).digest
        for target, tokens in new:
            write_target_vectors(target, name, of_target(target, tokens), made_with)
        if cut():
            session.reporter.warn(
                f"{cut():,} texts were longer than the encoder reads; only their beginnings count"
            )
        details |= {"rows": rows, "targets": [target.name for target, _ in new]}
    session.update_index()


def make_pool_vectors(
    session: Session,
    embed: Embed,
    on_rows: Callable[[int], None],
    only: str | None = None,
    plan: ShardPlan | None = None,
) -> None:
    """Make what is missing of the pool's vectors, or of those shards in `plan`, beside other workers.

    only: that shard, for a process apart: who started it holds its claim
    """
    path, note = session.vectors_path(), session.reporter.note
    build_vectors(path, session.pool, embed, on_rows, note, on_failure(session, only), plan)


@contextmanager
def embedder(session: Session) -> Iterator[Embed]:
    """What makes vectors of shards; the manifest is claimed first."""
    with _way(session) as (embed, *_):
        yield embed


@contextmanager
def _way(session: Session) -> Iterator[tuple[Embed, OfTarget, Callable[[], int]]]:
    """How vectors are made; the manifest is claimed first."""
    base = None if _encoder(session) else base_model(session)
    with threads_of_shards(session.recipe), quiet_transformers():
        embed, of_target, made_with, cut = _by_encoder(session) if base is None else _by_states(session, base)
        made_by = {**versions(), "device": device_of(session.recipe).type}
        manifest = session.vectors_path() / "manifest.json"
        for what, change in claim(manifest, made_with, "these vectors", made_by).items():
            session.reporter.warn(
                f"the vectors were begun with {what} {change}: they may differ in their last digits"
            )
        yield embed, of_target, cut


def _encoder(session: Session) -> Path | None:
    recipe = session.recipe
    return Path(recipe.encoder) if recipe.encoder and not session.by_position() else None


def _by_states(
    session: Session, base: PreTrainedModel
) -> tuple[Embed, OfTarget, dict[str, Any], Callable[[], int]]:
    """From the hidden states of the run's base model."""
    pool, recipe = session.pool, session.recipe
    weighting = "position" if session.by_position() else "mean"
    made_with = {
        "method": session.vectors_name(),
        "weighting": weighting,
        "model": session.base_digest,
        "encoder": pool.plan.encoder,
        "dtype": recipe.dtype,
        "attn": base.config._attn_implementation,
        "quantize": recipe.quantize,
        "batch_tokens": pool.plan.batch_tokens,
    }

    def of_target(target: Target, tokens: TokenRows) -> np.ndarray:
        care = target_care(target, on_failure(session).told)
        return states_of(tokens, base, weighting, pool.plan.batch_tokens, care=care)

    return embed_states(pool, base, weighting), of_target, made_with, lambda: 0


def _by_encoder(session: Session) -> tuple[Embed, OfTarget, dict[str, Any], Callable[[], int]]:
    """From a sentence encoder, which reads the rows' text."""
    folder = _encoder(session)
    assert folder is not None
    encoder = SentenceEncoder(folder, device_of(session.recipe))

    def of_target(target: Target, tokens: TokenRows) -> np.ndarray:
        return encoder([text_of(row.example.messages) for row in kept_rows(target)])

    made_with = {"method": session.vectors_name(), "encoder": encoder.digest}
    return embed_texts(session.pool, encoder), of_target, made_with, lambda: encoder.n_cut
