"""What is there is never made again: not by new rules, budgets, targets, rows or checkpoints; and a run may be kept in 8 bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from pipeline_helpers import (
    N_PLANTED,
    N_POOL,
    pool_rows,
    recipe,
    target_rows,
    write_rows,
)
from siftune.datastore.index import read_index
from siftune.datastore.pool import Pool
from siftune.datastore.store import Datastore
from siftune.datastore.verify import verify
from siftune.model.checkpoint import list_checkpoints
from siftune.model.load import load_model
from siftune.model.lora import add_lora
from siftune.pipeline.run import append, run, score, select
from siftune.records.errors import SiftuneError
from siftune.records.log import read_events
from siftune.records.recipe import make_recipe

MADE = ("pool", "checkpoints", "datastore", "targets")


@pytest.fixture(scope="module")
def done(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied."""
    out = tmp_path_factory.mktemp("runs") / "run"
    run(recipe(given, store_dtype="int8"), out)
    return out


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "run"))


def stamps(path: Path, *parts: str) -> dict[str, tuple[int, int]]:
    """When and where every file was written: a file that is made again differs, though its bytes be the same."""
    return {
        str(file.relative_to(path)): (file.stat().st_mtime_ns, file.stat().st_ino)
        for part in parts
        for file in sorted((path / part).rglob("*"))
        if file.is_file()
    }


def rows_made(path: Path, since: int) -> dict[str, int]:
    """Rows whose features were made, by stage, after the first `since` events."""
    events = list(read_events(path / "log.jsonl"))[since:]
    stages = [e for e in events if e["event"] == "stage done" and e["stage"].startswith("datastore")]
    return {event["stage"]: event["rows"] for event in stages}


def test_rules_and_budgets_need_neither_model_nor_pool(
    copy: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    before = stamps(copy, *MADE)
    recorded = (copy / "recipe.yaml").read_text(encoding="utf-8")
    recorded = recorded.replace(given["model"], str(tmp_path / "no-model"))
    recorded = recorded.replace(given["pool"][0], str(tmp_path / "no-pool"))
    (copy / "recipe.yaml").write_text(recorded, encoding="utf-8")
    for rule in ("top", "mean", "round-robin", "by-subtask"):
        for keep in ("2%", "7", "300 tokens"):
            name = f"{rule}-{keep}".replace("%", "pc").replace(" ", "-")
            assert select(copy, {"rule": rule, "keep": keep, "name": name}).selections[name].rows()
    assert stamps(copy, *MADE) == before


def test_a_new_target_makes_its_own_features_alone(copy: Path, tmp_path: Path) -> None:
    before, n_events = stamps(copy, *MADE), len(list(read_events(copy / "log.jsonl")))
    file = write_rows(tmp_path / "new.jsonl", target_rows(3, seed=7))
    score(copy, {"fresh": str(file)})
    after = stamps(copy, *MADE)
    assert before.items() <= after.items()
    assert all(name.startswith("targets/fresh/") for name in after.keys() - before.keys())
    assert rows_made(copy, n_events) == {"datastore 1": 0, "datastore 2": 0}


def test_appended_rows_alone_are_made(copy: Path, tmp_path: Path) -> None:
    before, n_events = stamps(copy, *MADE), len(list(read_events(copy / "log.jsonl")))
    assert append(copy, [str(write_rows(tmp_path / "more.jsonl", pool_rows(70, 10, seed=5)))]) == 70
    after = stamps(copy, *MADE)
    again = {name for name, stamp in before.items() if after[name] != stamp}
    assert again == {"pool/plan.json", "pool/index.parquet", "pool/index.json"}
    assert rows_made(copy, n_events) == {"datastore 1": 70, "datastore 2": 70}


def test_an_append_that_was_cut_before_its_index_goes_on(copy: Path, tmp_path: Path) -> None:
    before = [(copy / "pool" / name).read_bytes() for name in ("index.parquet", "index.json")]
    more = str(write_rows(tmp_path / "more.jsonl", pool_rows(70, 10, seed=5)))
    append(copy, [more])
    for name, content in zip(("index.parquet", "index.json"), before, strict=True):
        (copy / "pool" / name).write_bytes(content)
    append(copy, [more])
    assert read_index(copy).num_rows == N_POOL + 70


def test_a_checkpoint_that_came_later_leaves_the_others_alone(copy: Path, given: dict[str, Any]) -> None:
    for part in ("datastore/less/2", "targets/sums/influence/2"):
        shutil.rmtree(copy / part)
    for name in ("2.safetensors", "2.json"):
        (copy / "targets/sums/features" / name).unlink()
    before, n_events = stamps(copy, *MADE), len(list(read_events(copy / "log.jsonl")))
    run(recipe(given, store_dtype="int8"), copy, until="influence")
    assert before.items() <= stamps(copy, *MADE).items()
    assert rows_made(copy, n_events) == {"datastore 2": N_POOL}


def test_an_adopted_run_gets_one_checkpoint_more(given: dict[str, Any], tmp_path: Path) -> None:
    """As docs/howto/adopt.md says: asked again, the run keeps what it has; a copy without checkpoints and choices takes all three."""
    outputs, path = tmp_path / "outputs", tmp_path / "run"
    model = add_lora(load_model(given["model"]), rank=4, alpha=16.0, dropout=0.0, targets=("q_proj",), seed=0)
    rows = [{"input_ids": torch.arange(3, 13), "labels": torch.arange(3, 13)} for _ in range(12)]
    how = {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    Trainer(model, TrainingArguments(str(outputs), **how, **quiet), train_dataset=rows).train()
    (outputs / "checkpoint-6").rename(tmp_path / "later")
    settings = {name: given[name] for name in ("model", "pool", "target", "method", "features", "dtype")}
    settings |= {"adopt": str(outputs), "threads": 1, "shard_rows": 100, "keep": "5%"}
    run(recipe(settings), path)
    (tmp_path / "later").rename(outputs / "checkpoint-6")
    run(recipe(settings), path)
    assert len(list_checkpoints(path)) == 2
    more = Path(shutil.copytree(path, tmp_path / "more"))
    shutil.rmtree(more / "checkpoints")
    shutil.rmtree(more / "selections")
    before, n_events = stamps(more, "datastore", "targets"), len(list(read_events(more / "log.jsonl")))
    run(make_recipe({}), more)
    assert len(list_checkpoints(more)) == 3
    assert before.items() <= stamps(more, "datastore", "targets").items()
    assert rows_made(more, n_events) == {"datastore 3": N_POOL}
    assert not verify(more).faults


def test_a_run_kept_in_8_bits_finds_the_planted_rows(done: Path) -> None:
    lines = (done / "selections/sums/selected.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(json.loads(line)["source"] == "planted" for line in lines) >= 0.9 * N_PLANTED
    pool = Pool(done / "pool")
    store = Datastore(done / "datastore/less/1", pool.plan)
    lengths = np.linalg.norm(np.concatenate([store.features(shard) for shard in pool.plan.shards]), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=5e-3)


def test_a_real_run_is_sound_and_a_flipped_byte_is_named(copy: Path) -> None:
    assert not verify(copy).faults
    file = copy / "datastore/less/2/shard-00003.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (fault,) = verify(copy).faults
    assert (fault.file, fault.start, fault.stop) == (file, 150, 200)


def test_appended_rows_get_the_vectors_that_old_rows_have(copy: Path, tmp_path: Path) -> None:
    for method in ("rds+", "embed"):
        select(copy, {"method": method, "name": method})
    before = stamps(copy, "datastore", "checkpoints")
    append(copy, [str(write_rows(tmp_path / "more.jsonl", pool_rows(70, 10, seed=5)))])
    assert (verify(copy).faults, verify(copy).not_made) == ([], [])
    assert before.items() <= stamps(copy, "datastore", "checkpoints").items()
    for name in ("rds+", "embed"):
        assert not Datastore(copy / "datastore" / name / "0", Pool(copy / "pool").plan).missing()


def test_vectors_that_wait_for_a_choice_are_no_damage_but_holes_are(copy: Path) -> None:
    select(copy, {"method": "rds+", "name": "rds"})
    store = copy / "datastore" / "rds+" / "0"
    for ending in ("json", "safetensors"):  # as a store lies after an append that did not make them
        (store / f"shard-00004.{ending}").unlink()
    found = verify(copy)
    assert not found.faults
    assert [(of.file, of.start, of.stop) for of in found.not_made] == [(store, 200, 240)]
    (store / "shard-00001.safetensors").unlink()
    assert [of.file.name for of in verify(copy).faults] == ["shard-00001.safetensors"]


def test_a_budget_above_the_pool_is_refused_before_the_warm_up(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SiftuneError, match="more than the 240 rows"):
        run(recipe(given, keep="241"), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    run(recipe(given, keep="240"), tmp_path / "run", until="pool")  # put right, it goes on
