"""Vectors of a pool and of target rows, for methods that compare rows by what a model makes of them rather than by gradients.

They are kept as features are: `RUN/datastore/METHOD/0/` in shards of the plan, checkpoint 0 being the base model, with the tensors

    features [n, H] fp32, unit length, NaN where the row has none        row [n] int64

and `RUN/targets/NAME/vectors/METHOD.safetensors` with features [V, H]. Shard by shard; what is done stays.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from siftune.datastore.careful import Care, Work, fill_tokens
from siftune.datastore.making import OnFailure, make_shards
from siftune.datastore.plan import Shard, ShardPlan
from siftune.datastore.pool import Pool, TokenRows
from siftune.datastore.shards import write_shard
from siftune.datastore.store import Datastore
from siftune.model.hidden import Weighting, pooled_states, state_size

OnRows = Callable[[int], None]


class ShardVectors(NamedTuple):
    """Vectors of the usable rows of a shard: row numbers [n] and unit vectors [n, H], NaN where a row has none."""

    row_N: np.ndarray
    vectors_N_H: np.ndarray


Encoder = Callable[[list[str], OnRows], np.ndarray]
"""Texts to unit vectors [n, H] (`siftune.model.sentence.SentenceEncoder`)."""
Embed = Callable[[Shard, Care, OnRows], ShardVectors]
"""Makes a shard's vectors, with care, and tells how many rows each step finished."""


def build_vectors(
    path: Path,
    pool: Pool,
    embed: Embed,
    on_rows: OnRows = lambda rows: None,
    on_wait: Callable[[str], None] = lambda what: None,
    failing: OnFailure | None = None,
    plan: ShardPlan | None = None,
) -> Datastore:
    """Make what is missing of a method's vectors; `plan` has the shards that are wanted, where it isn't all of the pool's.

    The manifest has been claimed before (`siftune.datastore.manifest.claim`).
    """

    def make(shard: Shard, care: Care) -> None:
        row_N, vectors_N_H = embed(shard, care, on_rows)
        on_rows(len(shard) - len(row_N))
        features_N_H = np.full((len(shard), vectors_N_H.shape[1]), np.nan, np.float32)
        features_N_H[row_N - shard.start] = vectors_N_H
        without = row_N[~np.isfinite(vectors_N_H).all(axis=1)].tolist()
        tensors = {
            "features": torch.from_numpy(features_N_H),
            "row": torch.arange(shard.start, shard.stop),
        }
        reasons = {str(row): care.reasons.get(row, "the vector is not finite") for row in without}
        write_shard(path, shard, tensors, {"without_feature": reasons, **care.notes()})

    make_shards(path, pool, make, failing or OnFailure(), on_rows, on_wait, plan)
    return Datastore(path, pool.plan)


def embed_states(pool: Pool, model: PreTrainedModel, weighting: Weighting) -> Embed:
    """Vectors of pool rows from a causal model's hidden states, over the tokens that the pool holds."""

    def embed(shard: Shard, care: Care, on_rows: OnRows) -> ShardVectors:
        rows = pool.token_rows(shard)
        vectors_N_H = states_of(rows, model, weighting, pool.plan.batch_tokens, on_rows, care)
        return ShardVectors(rows.row_N, vectors_N_H)

    return embed


def embed_texts(pool: Pool, encoder: Encoder) -> Embed:
    """Vectors of pool rows from a sentence encoder, over the text of all turns. It makes its own batches: a shard is one here."""

    def embed(shard: Shard, care: Care, on_rows: OnRows) -> ShardVectors:
        found = pool.texts(shard)
        row_N = np.array([row for row, text in enumerate(found, shard.start) if text is not None], np.int64)
        texts = [text for text in found if text is not None]
        vectors_N_H = np.full((len(texts), encoder([], on_rows).shape[1]), np.nan, np.float32)

        def make(some: list[str]) -> list[np.ndarray]:
            return [encoder(some, lambda rows: on_rows(0))]  # they count once the shard has them

        work = Work([vectors_N_H], row_N, texts, make, lambda text, other: other)
        care.fill(work, [list(range(len(texts)))] if texts else [], on_rows)
        return ShardVectors(row_N, vectors_N_H)

    return embed


def states_of(
    rows: TokenRows,
    model: PreTrainedModel,
    weighting: Weighting,
    batch_tokens: int,
    on_rows: OnRows = lambda rows: None,
    care: Care | None = None,
) -> np.ndarray:
    """Unit vectors [n, H] of token rows in their order, made in batches of like lengths; NaN for those that `care` left out."""
    vectors_N_H = np.full((len(rows.row_N), state_size(model)), np.nan, np.float32)

    def make(ids_B_T: np.ndarray, _: np.ndarray, lengths_B: np.ndarray) -> list[np.ndarray]:
        return [pooled_states(model, ids_B_T, lengths_B, weighting)]

    fill_tokens(care or Care(), [vectors_N_H], rows, make, batch_tokens, on_rows)
    return vectors_N_H
