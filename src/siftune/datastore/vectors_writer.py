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

from siftune.chat.batches import pad_batch, token_batches
from siftune.datastore.claims import shards_to_make
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
Embed = Callable[[Shard, OnRows], ShardVectors]
"""Makes a shard's vectors and tells how many rows each step finished."""


def build_vectors(
    path: Path,
    pool: Pool,
    embed: Embed,
    on_rows: OnRows = lambda rows: None,
    on_wait: Callable[[str], None] = lambda what: None,
    plan: ShardPlan | None = None,
) -> Datastore:
    """Make what is missing of a method's vectors; `plan` has the shards that are wanted, where it isn't all of the pool's.

    The manifest has been claimed before (`siftune.datastore.manifest.claim`).
    """
    for shard in shards_to_make(path, plan or pool.plan, on_rows, on_wait):
        row_N, vectors_N_H = embed(shard, on_rows)
        on_rows(len(shard) - len(row_N))
        features_N_H = np.full((len(shard), vectors_N_H.shape[1]), np.nan, np.float32)
        features_N_H[row_N - shard.start] = vectors_N_H
        without = row_N[~np.isfinite(vectors_N_H).all(axis=1)].tolist()
        tensors = {
            "features": torch.from_numpy(features_N_H),
            "row": torch.arange(shard.start, shard.stop),
        }
        write_shard(
            path, shard, tensors, {"without_feature": {str(r): "the vector is not finite" for r in without}}
        )
    return Datastore(path, pool.plan)


def embed_states(pool: Pool, model: PreTrainedModel, weighting: Weighting) -> Embed:
    """Vectors of pool rows from a causal model's hidden states, over the tokens that the pool holds."""

    def embed(shard: Shard, on_rows: OnRows) -> ShardVectors:
        rows = pool.token_rows(shard)
        return ShardVectors(rows.row_N, states_of(rows, model, weighting, pool.plan.batch_tokens, on_rows))

    return embed


def embed_texts(pool: Pool, encoder: Encoder) -> Embed:
    """Vectors of pool rows from a sentence encoder, over the text of all turns."""

    def embed(shard: Shard, on_rows: OnRows) -> ShardVectors:
        texts = pool.texts(shard)
        row_N = np.array([row for row, text in enumerate(texts, shard.start) if text is not None], np.int64)
        return ShardVectors(row_N, encoder([text for text in texts if text is not None], on_rows))

    return embed


def states_of(
    rows: TokenRows,
    model: PreTrainedModel,
    weighting: Weighting,
    batch_tokens: int,
    on_rows: OnRows = lambda rows: None,
) -> np.ndarray:
    """Unit vectors [n, H] of token rows in their order, made in batches of like lengths."""
    vectors_N_H = np.empty((len(rows.row_N), state_size(model)), np.float32)
    for batch in token_batches([len(ids) for ids in rows.token_ids], batch_tokens):
        ids_B_T, _, lengths_B = pad_batch([(rows.token_ids[i], rows.trained[i]) for i in batch], pad_id=0)
        vectors_N_H[batch] = pooled_states(model, ids_B_T, lengths_B, weighting)
        on_rows(len(batch))
    return vectors_N_H
