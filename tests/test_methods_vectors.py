"""Vectors of a pool at rest: whatever the shards, batches and restarts, each row has its own; and the cosines made of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from model_helpers import tiny_model, tiny_tokenizer
from pipeline_helpers import pool_rows
from siftune.chat.encoder import ChatEncoder
from siftune.datastore.careful import Care
from siftune.datastore.features_writer import encode_target
from siftune.datastore.manifest import claim
from siftune.datastore.plan import Shard
from siftune.datastore.pool import Pool
from siftune.datastore.pool_writer import build_pool
from siftune.datastore.store import Datastore
from siftune.datastore.targets import Target, target_vectors, vectors_file, write_target, write_target_vectors
from siftune.datastore.vectors_writer import (
    Embed,
    OnRows,
    ShardVectors,
    build_vectors,
    embed_states,
    embed_texts,
    states_of,
)
from siftune.methods.vectors import vector_influence
from siftune.records.errors import SiftuneError
from siftune.records.example import Example, LeftOut
from siftune.records.readers import TargetRow
from test_methods_hidden import on_paper

N = 23
BROKEN = 5


def pool_of(folder: Path, shard_rows: int, batch_tokens: int = 300) -> Pool:
    """A pool whose row BROKEN is in quarantine."""
    items: list[Example | LeftOut] = [
        Example(row["id"], row["source"], row["messages"], f"pool:{i + 1}", row)
        for i, row in enumerate(pool_rows(N))
    ]
    items[BROKEN] = LeftOut("pool:6", "is not JSON", "broken", "pool")
    encoder = ChatEncoder(tiny_tokenizer(), max_length=200, too_long="truncate", mask="auto")
    return build_pool(folder, ["pool"], items, encoder, shard_rows=shard_rows, batch_tokens=batch_tokens)


def built(folder: Path, shard_rows: int, batch_tokens: int = 300) -> Datastore:
    pool = pool_of(folder / "pool", shard_rows, batch_tokens)
    return stored(folder / "vectors", pool, embed_states(pool, tiny_model("llama"), "position"))


def stored(path: Path, pool: Pool, embed: Embed, on_rows: OnRows = lambda rows: None) -> Datastore:
    claim(path / "manifest.json", {"method": "rds+"}, "the vectors", {})
    return build_vectors(path, pool, embed, on_rows)


def all_features(store: Datastore) -> np.ndarray:
    return np.concatenate([store.features(shard) for shard in store.plan.shards])


def test_each_row_has_the_vector_it_has_alone(tmp_path: Path) -> None:
    store = built(tmp_path, shard_rows=10)
    found = all_features(store)
    pool = Pool(tmp_path / "pool")
    assert np.isnan(found[BROKEN]).all()
    usable = [row for row in range(N) if row != BROKEN]
    for row, (ids, _) in zip(usable, pool.tokens_of(usable), strict=True):
        np.testing.assert_allclose(found[row], on_paper(tiny_model("llama"), ids, "position"), atol=2e-6)
    assert np.concatenate([store.tensors(s)["row"] for s in store.plan.shards]).tolist() == list(range(N))
    assert list(store.without_feature()) == []  # the quarantined row has its reason already


def test_shards_and_batches_change_rounding_only(tmp_path: Path) -> None:
    few, many = built(tmp_path / "few", shard_rows=N), built(tmp_path / "many", shard_rows=4, batch_tokens=70)
    np.testing.assert_allclose(all_features(few), all_features(many), atol=1e-6)
    target = all_features(few)[:3]
    np.testing.assert_allclose(vector_influence(few, target), vector_influence(many, target), atol=1e-6)


def test_a_restart_makes_only_what_is_missing_and_the_same_bytes(tmp_path: Path) -> None:
    store = built(tmp_path, shard_rows=6)

    def digests() -> dict[str, str]:
        files = sorted(store.path.iterdir())
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    before = digests()
    (store.path / "shard-00002.safetensors").unlink()
    (store.path / "shard-00003.json").unlink()
    pool, done = Pool(tmp_path / "pool"), [0]
    embed = embed_states(pool, tiny_model("llama"), "position")
    asked: list[int] = []

    def counted(shard: Shard, care: Care, on_rows: OnRows) -> ShardVectors:
        asked.append(shard.number)
        return embed(shard, care, on_rows)

    def add(rows: int) -> None:
        done[0] += rows

    stored(store.path, pool, counted, add)
    assert asked == [2, 3]
    assert done[0] == 6 + 5
    assert digests() == before


def test_rows_without_a_vector_are_told_with_their_reason(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", shard_rows=10)

    def embed(shard: Shard, care: Care, on_rows: OnRows) -> ShardVectors:
        rows = pool.token_rows(shard).row_N
        return ShardVectors(rows, np.where(rows[:, None] == 12, np.nan, np.ones((1, 4), np.float32)))

    store = stored(tmp_path / "vectors", pool, embed)
    assert list(store.without_feature()) == [(12, "the vector is not finite")]
    assert np.flatnonzero(np.isnan(all_features(store)[:, 0])).tolist() == [BROKEN, 12]


def test_texts_go_to_the_encoder_in_pool_order(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", shard_rows=10)
    given: list[str] = []

    class Encoder:
        def __call__(self, texts: list[str], on_rows: OnRows) -> np.ndarray:
            given.extend(texts)
            on_rows(len(texts))
            return np.array([[len(text), 1] for text in texts], np.float32).reshape(-1, 2)

    store = stored(tmp_path / "vectors", pool, embed_texts(pool, Encoder()))
    said = ["\n\n".join(turn["content"] for turn in row["messages"]) for row in pool_rows(N)]
    assert given == said[:BROKEN] + said[BROKEN + 1 :]
    texts = [text for shard in pool.plan.shards for text in pool.texts(shard)]
    assert texts == [*said[:BROKEN], None, *said[BROKEN + 1 :]]
    assert all_features(store)[BROKEN + 1, 0] == len(said[BROKEN + 1])


def test_a_shard_without_usable_rows_is_a_shard(tmp_path: Path) -> None:
    store = built(tmp_path, shard_rows=1)
    assert store.features(store.plan.shards[BROKEN]).shape == (1, 32)


def test_influence_is_the_cosine_and_equal_rows_tie(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", shard_rows=7)
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(N, 96))
    vectors[[3, 20]] = vectors[11]  # in three shards, at other places
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    vectors[8] = np.nan

    def embed(shard: Shard, care: Care, on_rows: OnRows) -> ShardVectors:
        return ShardVectors(np.arange(shard.start, shard.stop), vectors[shard.start : shard.stop])

    target = vectors[[0, 11, 14]]
    found = vector_influence(stored(tmp_path / "vectors", pool, embed), target)
    expected = [
        [sum(float(x) * float(y) for x, y in zip(n, v, strict=True)) for v in target] for n in vectors
    ]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert np.isnan(found[8]).all()
    np.testing.assert_array_equal(found[3], found[11])
    np.testing.assert_array_equal(found[20], found[11])


def target_of(folder: Path) -> tuple[Target, np.ndarray]:
    rows = [
        TargetRow(Example(row["id"], "sums", row["messages"], f"target:{i + 1}"), "all")
        for i, row in enumerate(pool_rows(4))
    ]
    encoder = ChatEncoder(tiny_tokenizer(), max_length=200, too_long="truncate", mask="auto")
    tokens = encode_target(rows, encoder)
    vectors_V_H = states_of(tokens, tiny_model("llama"), "mean", batch_tokens=100)
    for found, ids in zip(vectors_V_H, tokens.token_ids, strict=True):
        np.testing.assert_allclose(found, on_paper(tiny_model("llama"), ids, "mean"), atol=2e-6)
    return write_target(folder / "sums", "target.jsonl", rows, tokens), vectors_V_H


def test_vectors_of_a_target_are_kept_by_method_and_none_may_lack(tmp_path: Path) -> None:
    target, vectors_V_H = target_of(tmp_path)
    write_target_vectors(target, "rds+", vectors_V_H, "a store")
    write_target_vectors(target, "embed", -vectors_V_H, "a store")
    np.testing.assert_array_equal(target_vectors(target, "rds+"), vectors_V_H)
    np.testing.assert_array_equal(target_vectors(target, "embed"), -vectors_V_H)
    vectors_V_H[2] = np.nan
    with pytest.raises(
        SiftuneError, match="row 3 of the target 'sums' has no finite vector for ltd"
    ) as raised:
        write_target_vectors(target, "ltd", vectors_V_H, "a store")
    assert raised.value.where == "target.jsonl"
    assert not vectors_file(target, "ltd").exists()
