"""Features at rest: what is read is what was written to the dtype's rounding, and what was damaged is found and named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from model_helpers import tiny_tokenizer
from siftune.chat.encoder import ChatEncoder
from siftune.cli import app
from siftune.datastore.export import export
from siftune.datastore.features_writer import build_influence
from siftune.datastore.index import write_index
from siftune.datastore.manifest import claim
from siftune.datastore.plan import Shard
from siftune.datastore.pool import Pool, TokenRows
from siftune.datastore.pool_writer import build_pool
from siftune.datastore.quantise import BLOCK_ROWS, quantised, restored, row_bytes
from siftune.datastore.shards import read_shard, shard_file, write_shard
from siftune.datastore.store import Datastore
from siftune.datastore.targets import (
    Target,
    features_file,
    has_numbers,
    missing_influence,
    read_influence,
    target_features,
    write_numbers,
    write_target,
)
from siftune.datastore.verify import verify
from siftune.pipeline.rundir import write_run_recipe
from siftune.records.errors import SiftuneError
from siftune.records.example import Example
from siftune.records.files import read_sealed, sha256_of, write_json, write_sealed
from siftune.records.readers import TargetRow
from siftune.records.recipe import StoreDtype, make_recipe

DTYPES: tuple[StoreDtype, ...] = get_args(StoreDtype)
N, D, V = 700, 24, 5
WITHOUT = [3, 300, 699]
"""Rows that have no feature."""
WIDTH = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8}
"""Rounding of a number, by its size."""


def unit_rows(n: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


FEATURES = unit_rows(N)
FEATURES[WITHOUT] = np.nan


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [Example(f"id-{i}", "s", turns, f"p:{i + 1}", {"messages": turns, "i": i}) for i in range(N)]
    encoder = ChatEncoder(tiny_tokenizer(), max_length=50, too_long="truncate", mask="auto")
    folder = tmp_path_factory.mktemp("run") / "pool"
    return build_pool(folder, ["p"], rows, encoder, shard_rows=600, batch_tokens=100)


def store_in(path: Path, pool: Pool, dtype: StoreDtype) -> Datastore:
    claim(path / "manifest.json", {"method": "less"}, "the store", {})
    for shard in pool.plan.shards:
        kept = quantised(torch.from_numpy(FEATURES[shard.start : shard.stop]), dtype)
        write_shard(path, shard, kept | {"row": torch.arange(shard.start, shard.stop)}, {})
    return Datastore(path, pool.plan)


def run_of(folder: Path, pool: Pool, dtype: StoreDtype = "fp16") -> Path:
    """A run with a pool, one store and the influence on one target."""
    shutil.copytree(pool.path, folder / "pool")
    write_index(folder, pool, warmup_rows=[], without_feature={})
    made_with = {"versions": {}, "checkpoints": []}
    write_run_recipe(folder, make_recipe({}), made_with)
    store = store_in(folder / "datastore" / "less" / "1", Pool(folder / "pool"), dtype)
    build_influence(target_in(folder / "targets" / "t"), 1, store)
    return folder


def target_in(path: Path) -> Target:
    examples = [Example(f"t-{v}", "t", [{"role": "user", "content": str(v)}], f"t:{v}") for v in range(V)]
    tokens = TokenRows(np.arange(V), [np.ones(1, np.int32)] * V, [np.ones(1, bool)] * V)
    target = write_target(path, "t", [TargetRow(example, "a") for example in examples], tokens)
    write_numbers(target, features_file(target, 1), {"features": unit_rows(V, seed=1)}, "a store")
    return target


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_read_is_what_was_kept_to_its_rounding(tmp_path: Path, pool: Pool, dtype: StoreDtype) -> None:
    store = store_in(tmp_path, pool, dtype)
    found = np.concatenate([store.features(shard) for shard in pool.plan.shards])
    assert found.dtype == np.float32
    sound = np.setdiff1d(np.arange(N), WITHOUT)
    if dtype == "int8":
        bound = np.abs(FEATURES[sound]).max(1, keepdims=True) / 127 / 2 * 1.001
    else:
        bound = np.abs(FEATURES[sound]) * WIDTH[dtype] + 1e-7
    assert (np.abs(found - FEATURES)[sound] <= bound).all()
    assert np.isnan(found[WITHOUT]).all()
    kept = store.tensors(pool.plan.shards[0])
    per_row = sum(t.nbytes for name, t in kept.items() if name in ("features", "scale")) / len(
        pool.plan.shards[0]
    )
    assert per_row == row_bytes(dtype, D)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_are_the_features_and_never_more_than_a_block(
    tmp_path: Path, pool: Pool, dtype: StoreDtype
) -> None:
    store = store_in(tmp_path, pool, dtype)
    for shard in pool.plan.shards:
        blocks = list(store.blocks(shard))
        assert max(len(rows) for _, rows in blocks) <= BLOCK_ROWS
        assert [start for start, _ in blocks] == list(range(shard.start, shard.stop, BLOCK_ROWS))
        np.testing.assert_array_equal(np.concatenate([rows for _, rows in blocks]), store.features(shard))


@pytest.mark.parametrize("dtype", DTYPES)
def test_influence_is_the_product_of_what_is_read(tmp_path: Path, pool: Pool, dtype: StoreDtype) -> None:
    store, target = store_in(tmp_path / "store", pool, dtype), target_in(tmp_path / "t")
    build_influence(target, 1, store)
    read = np.concatenate([store.features(shard) for shard in pool.plan.shards]).astype(np.float64)
    found = read_influence(target, 1, store)
    np.testing.assert_allclose(found, read @ unit_rows(V, seed=1).T.astype(np.float64), atol=1e-6)
    assert np.flatnonzero(np.isnan(found[:, 0])).tolist() == WITHOUT


def test_int8_of_odd_rows() -> None:
    rows = torch.zeros(5, 4)
    rows[1] = torch.tensor([1e-30, -1e-30, 0, 5e-31])
    rows[2, 1], rows[3, 1] = torch.nan, torch.inf  # one number that is none spoils its row
    rows[4] = torch.tensor([3e38, -3e38, 0, 1e38])
    found = restored(quantised(rows, "int8"))
    assert (found[0] == 0).all()
    torch.testing.assert_close(found[1], rows[1], rtol=0, atol=1e-32)
    assert found[2].isnan().all()
    assert not found[3].isfinite().any()
    torch.testing.assert_close(found[4], rows[4], rtol=0, atol=3e38 / 254 * 1.001)


def test_a_flipped_byte_is_found_wherever_it_is(tmp_path: Path, pool: Pool) -> None:
    store, shard = store_in(tmp_path, pool, "int8"), pool.plan.shards[0]
    file = shard_file(store.path, shard)
    sound = file.read_bytes()
    for at in [0, 9, *range(100, len(sound), len(sound) // 40), len(sound) - 1]:
        broken = bytearray(sound)
        broken[at] ^= 0x10
        file.write_bytes(broken)
        with pytest.raises(SiftuneError, match="damaged"):
            store.features(shard)
    file.write_bytes(sound)
    store.features(shard)


def test_a_side_car_without_crc32_is_read_by_its_sha256(tmp_path: Path, pool: Pool) -> None:
    store, shard = store_in(tmp_path, pool, "fp16"), pool.plan.shards[1]
    side_car = shard_file(store.path, shard).with_suffix(".json")
    notes = json.loads(side_car.read_text())
    del notes["crc32"], notes["seal"]  # an older siftune wrote neither
    side_car.write_text(json.dumps(notes))
    assert len(store.features(shard)) == len(shard)
    side_car.write_text(json.dumps(notes | {"sha256": "0" * 64}))
    with pytest.raises(SiftuneError, match="damaged"):
        store.features(shard)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


FILES = [
    "pool/shard-00000.arrow",
    "datastore/less/1/shard-00001.safetensors",
    "targets/t/influence/1/shard-00000.safetensors",
    "targets/t/features/1.safetensors",
]
ROWS = {"shard-00000": (0, 600), "shard-00001": (600, 700), "1": (0, V)}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (flip, "is damaged: its SHA-256 is not that of what was written"),
        (cut, "is damaged: it has "),
        (Path.unlink, "is missing"),
    ],
)
def test_verify_names_file_and_rows(tmp_path: Path, pool: Pool, name: str, harm, what: str) -> None:
    run = run_of(tmp_path / "run", pool)
    found = verify(run)
    assert (found.faults, found.without_sum, found.n_files) == ([], [], 7)
    harm(run / name)
    (fault,) = verify(run).faults
    assert fault.file == run / name
    assert (fault.start, fault.stop) == ROWS[Path(name).stem]
    assert fault.what.startswith(what)


def test_damaged_features_of_a_target_are_refused_and_old_ones_are_read(tmp_path: Path) -> None:
    target = target_in(tmp_path / "t")
    file = features_file(target, 1)
    np.testing.assert_array_equal(target_features(target, 1), unit_rows(V, seed=1))
    flip(file)
    with pytest.raises(SiftuneError, match="damaged"):
        target_features(target, 1)
    flip(file)
    file.with_suffix(".json").unlink()
    with pytest.raises(SiftuneError, match="damaged"):
        target_features(target, 1)
    older = replace(target, sha256={})  # which kept no checksums
    assert target_features(older, 1).shape == (V, D)


def test_influence_of_another_store_or_other_rows_is_made_again(tmp_path: Path, pool: Pool) -> None:
    """A store that was removed and made anew, under other checkpoints say, has nothing to do with what was made of the old one."""
    run = run_of(tmp_path / "run", pool)
    path, target = run / "datastore/less/1", Target.open(run / "targets/t")
    assert not missing_influence(target, 1, Datastore(path, pool.plan))
    assert missing_influence(replace(target, digest="other rows"), 1, Datastore(path, pool.plan))
    (path / "manifest.json").unlink()
    write_json(path / "manifest.json", {"method": "less", "checkpoint": {"adapter": "another"}})
    store = Datastore(path, pool.plan)
    assert missing_influence(target, 1, store)
    assert not has_numbers(target, features_file(target, 1), path)
    write_numbers(target, features_file(target, 1), {"features": unit_rows(V, seed=2)}, store.digest)
    assert has_numbers(target, features_file(target, 1), path)
    build_influence(target, 1, store)
    assert not missing_influence(target, 1, store)
    read = np.concatenate([store.features(shard) for shard in pool.plan.shards])
    np.testing.assert_allclose(read_influence(target, 1, store), read @ unit_rows(V, seed=2).T, atol=1e-6)


def test_verify_finds_another_adapter_and_a_broken_manifest(tmp_path: Path, pool: Pool) -> None:
    run = run_of(tmp_path / "run", pool)
    manifest, adapter = (
        run / "datastore/less/1/manifest.json",
        run / "checkpoints/1/adapter_model.safetensors",
    )
    adapter.parent.mkdir(parents=True)
    adapter.write_bytes(b"adapter")
    write_json(manifest, {"checkpoint": {"number": 1, "adapter": sha256_of(adapter)[:32]}})
    assert verify(run).faults == []
    flip(adapter)
    assert [(f.file, f.what) for f in verify(run).faults] == [
        (adapter, "is not what this datastore was made with")
    ]
    adapter.unlink()
    assert [(f.file, f.what) for f in verify(run).faults] == [(adapter, "is missing")]
    manifest.write_text('{"a')
    assert [(f.file, f.what) for f in verify(run).faults] == [(manifest, "is damaged")]


def test_verify_looks_at_side_cars_and_manifests(tmp_path: Path, pool: Pool) -> None:
    run = run_of(tmp_path / "run", pool)
    folder = run / "datastore/less/1"
    (folder / "manifest.json").unlink()
    (folder / "shard-00000.json").write_text("{")
    (folder / "shard-00001.json").unlink()
    assert [(f.file.name, f.what.partition(":")[0]) for f in verify(run).faults] == [
        ("manifest.json", "is missing"),
        ("shard-00000.safetensors", "has a damaged side-car"),
        ("shard-00001.safetensors", "has no side-car"),
    ]
    (run / "pool/shard-00000.json").unlink()
    assert (run / "pool/shard-00000.arrow", "has no side-car") in [
        (f.file, f.what.partition(":")[0]) for f in verify(run).faults
    ]
    for side_car in (run / "pool").glob("shard-*.json"):  # as an older siftune left the pool
        side_car.unlink()
    assert verify(run).without_sum == sorted((run / "pool").glob("shard-*.arrow"))
    with pytest.raises(SiftuneError, match="holds no pool"):
        verify(tmp_path)


@pytest.mark.parametrize("name", ["../../../secret", "/etc/hostname", "a/b"])
def test_verify_opens_nothing_that_is_not_beside_a_file(tmp_path: Path, pool: Pool, name: str) -> None:
    run = run_of(tmp_path / "run", pool)
    file = run / "targets/t/target.json"
    write_sealed(file, {**read_sealed(file), "sha256": {name: "0" * 64}})
    assert [(f.file, f.what) for f in verify(run).faults] == [
        (file, "is damaged: it names files that are not beside it")
    ]


def test_verify_on_the_command_line(tmp_path: Path, pool: Pool) -> None:
    run = run_of(tmp_path / "run", pool)
    sound = CliRunner().invoke(app, ["datastore", "verify", str(run)])
    assert sound.exit_code == 0
    assert "7 files" in sound.output
    assert "all sound" in sound.output
    flip(run / FILES[1])
    told = CliRunner().invoke(app, ["datastore", "verify", str(run)])
    assert told.exit_code == 1
    assert f"{run / FILES[1]} is damaged" in told.output
    assert "(rows 600 to 699)" in told.output
    found = CliRunner().invoke(app, ["datastore", "verify", str(run), "--json"])
    assert found.exit_code == 1
    values = json.loads(found.output)
    assert not values["sound"]
    assert [(f["file"], f["rows"]) for f in values["faults"]] == [(FILES[1], [600, 700])]
    assert CliRunner().invoke(app, ["datastore", "verify", str(tmp_path)]).exit_code == 2


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_exported_rows_are_the_features_in_pool_order(tmp_path: Path, pool: Pool, dtype: str) -> None:
    store = store_in(tmp_path / "store", pool, "int8")
    wanted = np.concatenate([store.features(shard) for shard in pool.plan.shards]).astype(dtype_of(dtype))
    assert export(pool, store, tmp_path / "a.npy", dtype=dtype) == (N, D)
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)
    assert export(pool, store, tmp_path / "a.parquet", dtype=dtype) == (N, D)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["row"].to_pylist() == list(range(N))
    assert table["id"].to_pylist() == [f"id-{i}" for i in range(N)]
    lists = table["features"].to_pylist()
    assert [row for row, of_row in enumerate(lists) if of_row is None] == WITHOUT
    np.testing.assert_array_equal(
        np.array([of_row for of_row in lists if of_row]), np.delete(wanted, WITHOUT, 0)
    )


def test_exported_rows_give_the_influence_that_a_run_has(tmp_path: Path, pool: Pool) -> None:
    """As stored, not made unit length again: int8 rows are a little off it."""
    store, target = store_in(tmp_path / "store", pool, "int8"), target_in(tmp_path / "t")
    build_influence(target, 1, store)
    export(pool, store, tmp_path / "A.NPY")
    rows = np.load(tmp_path / "A.NPY").astype(np.float64)
    np.testing.assert_allclose(
        rows @ target_features(target, 1).T, read_influence(target, 1, store), atol=2e-7
    )
    off = np.abs(np.linalg.norm(np.delete(rows, WITHOUT, 0), axis=1) - 1)
    assert 1e-4 < off.max() < 1e-2


def test_a_manifest_that_differs_is_told_in_words(tmp_path: Path) -> None:
    made_with = {"method": "less", "checkpoint": {"number": 1, "adapter": "ab" * 16}, "quantize": None}
    claim(tmp_path / "m.json", made_with, "the datastore", {})
    assert claim(tmp_path / "m.json", made_with, "the datastore", {}) == {}
    other = {"number": 1, "adapter": "cd" * 16}
    for change, what in (
        ({"checkpoint": other}, "the checkpoint's adapter abababab…, can't go on with cdcdcdcd…"),
        ({"quantize": "4bit"}, "quantize none, can't go on with 4bit"),
        ({"more": True}, "more none, can't go on with on"),
    ):
        with pytest.raises(SiftuneError, match=f"the datastore, made with {what}") as told:
            claim(tmp_path / "m.json", made_with | change, "the datastore", {})
        assert not set("{}'\"") & set(told.value.what.replace("can't", "").replace("checkpoint's", ""))


def dtype_of(name: str) -> type:
    return {"fp32": np.float32, "fp16": np.float16}[name]


def test_an_export_is_whole_or_not_there(tmp_path: Path, pool: Pool) -> None:
    store, out = store_in(tmp_path / "store", pool, "fp16"), tmp_path / "out"
    flip(shard_file(store.path, pool.plan.shards[1]))
    for name in ("a.npy", "a.parquet"):
        with pytest.raises(SiftuneError, match="damaged"):
            export(pool, store, out / name)
    assert list(out.iterdir()) == []
    shard_file(store.path, pool.plan.shards[1]).unlink()
    with pytest.raises(SiftuneError, match="lacks 1 shards, the first shard-00001"):
        export(pool, store, out / "a.npy")
    with pytest.raises(SiftuneError, match=r"neither \.npy nor \.parquet"):
        export(pool, store, out / "a.csv")
    (out / "b.npy").write_text("mine")
    with pytest.raises(SiftuneError, match="exists already"):
        export(pool, store, out / "b.npy")
    assert (out / "b.npy").read_text() == "mine"


def test_export_on_the_command_line(tmp_path: Path, pool: Pool) -> None:
    run, to = run_of(tmp_path / "run", pool), tmp_path / "x.npy"
    words = ["datastore", "export", str(run), "--checkpoint", "1", "--to", str(to)]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0
    assert "700 rows, 24 numbers each" in told.output
    assert np.load(to).shape == (N, D)
    wrong = CliRunner().invoke(app, [*words, "--method", "rds+"])
    assert wrong.exit_code == 2
    assert "it has less 1" in wrong.output


def test_help_of_the_group_needs_no_torch() -> None:
    code = "import sys; from siftune.cli import app\ntry: app(['datastore', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_verify_needs_no_torch() -> None:
    code = "import sys, siftune.datastore.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_shard_of_another_pool_is_not_read(tmp_path: Path, pool: Pool) -> None:
    store = store_in(tmp_path, pool, "fp16")
    first = pool.plan.shards[0]
    with pytest.raises(SiftuneError, match="not of this pool"):
        read_shard(store.path, Shard(0, first.start, first.stop, "another"))
