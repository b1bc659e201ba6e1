"""A whole run on a tiny model: what is chosen, and that the run directory holds what it promises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

import siftune
from gradient_oracle import directed, gradients, projected
from model_helpers import write_tiny_model
from pipeline_helpers import (
    LASTING,
    N_PLANTED,
    N_POOL,
    digests,
    pool_rows,
    recipe,
    target_rows,
    write_inputs,
    write_rows,
)
from siftune.datastore.pool import Pool
from siftune.datastore.store import Datastore
from siftune.gradients.directions import AdamState
from siftune.model.checkpoint import list_checkpoints
from siftune.model.load import load_model
from siftune.model.lora import load_adapter
from siftune.pipeline.run import append, run, score, select
from siftune.pipeline.summary import show
from siftune.records.errors import SiftuneError
from siftune.records.recipe import PRESETS, Recipe, make_recipe


@pytest.fixture(scope="module")
def done(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests below may add to it, never change what it has."""
    out = tmp_path_factory.mktemp("runs") / "run"
    run(recipe(given), out)
    return out


def scores(run_path: Path, name: str = "sums") -> dict[str, np.ndarray]:
    table = pq.read_table(run_path / "selections" / name / "scores.parquet")
    return {c: table[c].to_numpy(zero_copy_only=False) for c in table.column_names}


def chosen(run_path: Path, name: str = "sums") -> list[dict[str, Any]]:
    lines = (run_path / "selections" / name / "selected.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def stored_features(run_path: Path, checkpoint: int) -> np.ndarray:
    """Features of the whole pool as they are read."""
    plan = Pool(run_path / "pool").plan
    store = Datastore(run_path / "datastore" / "less" / str(checkpoint), plan)
    return np.concatenate([store.features(shard) for shard in plan.shards])


def test_planted_rows_are_found_and_random_finds_few(done: Path) -> None:
    rows = chosen(done)
    assert len(rows) == N_PLANTED == N_POOL * 5 // 100
    found = sum(row["source"] == "planted" for row in rows)
    assert found >= 0.9 * N_PLANTED
    by_chance = []
    for seed in range(5):
        name = f"chance-{seed}"
        select(done, {"method": "random", "seed": seed, "name": name})
        by_chance.append(sum(row["source"] == "planted" for row in chosen(done, name)) / N_PLANTED)
    assert np.mean(by_chance) < 0.25
    assert len({tuple(r["id"] for r in chosen(done, f"chance-{s}")) for s in range(5)}) == 5


def test_planted_rows_are_found_by_the_default_method(done: Path) -> None:
    select(done, {"method": Recipe().method, "name": "default"})
    assert sum(row["source"] == "planted" for row in chosen(done, "default")) >= 0.9 * N_PLANTED


def test_a_run_records_its_first_choice(given: dict[str, Any], tmp_path: Path) -> None:
    without = {name: value for name, value in given.items() if name not in ("keep", "method")}
    run(recipe(without), tmp_path / "run", until="pool")
    run(make_recipe({"method": "bm25", "keep": "5%"}), tmp_path / "run")
    recorded = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8"))
    assert (recorded["method"], recorded["keep"]) == ("bm25", "5%")
    run(make_recipe({}), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "1").exists()
    select(tmp_path / "run", {"keep": "3%", "name": "fewer"})


def test_a_name_that_is_taken_is_told_before_any_work(given: dict[str, Any], tmp_path: Path) -> None:
    run(recipe(given, method="bm25"), tmp_path / "run")
    with pytest.raises(SiftuneError, match=r"siftune run --out .* --method less --until influence"):
        select(tmp_path / "run", {"method": "less", "name": "again"})
    with pytest.raises(SiftuneError, match="exists with method = 'bm25'"):
        run(make_recipe({"method": "less"}), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    run(make_recipe({"method": "less"}), tmp_path / "run", until="influence")
    select(tmp_path / "run", {"method": "less", "name": "again"})


def test_selected_rows_carry_everything_they_came_with(done: Path, given: dict[str, Any]) -> None:
    original = {row["id"]: (place, row) for place, row in enumerate(pool_rows())}
    table = scores(done)
    for rank, row in enumerate(chosen(done), 1):
        place, before = original[row["id"]]
        mark = row.pop("_siftune")
        assert row == before
        assert mark["row"] == place
        assert mark["rank"] == rank == table["rank"][place]
        assert mark["score"] == pytest.approx(table["score"][place])
        assert mark["subtask"] == table["best_subtask"][place]
        assert table["selected"][place]


def test_scores_are_the_formula_from_the_stored_files(done: Path) -> None:
    """Influence, weights, subtask means and the round robin, once more and slowly, from what is on disk."""
    weights = [c.weight for c in list_checkpoints(done)]
    subtasks = [row["subtask"] for row in target_rows()]
    total = np.zeros((N_POOL, len(subtasks)), np.float64)
    for number, weight in enumerate(weights, 1):
        shards = sorted((done / f"datastore/less/{number}").glob("*.safetensors"))
        features = stored_features(done, number)
        rows = np.concatenate([load_torch(s)["row"].numpy() for s in shards])
        assert (rows == np.arange(N_POOL)).all()
        target = load_file(done / f"targets/sums/features/{number}.safetensors")["features"]
        influence = np.concatenate(
            [
                load_file(f)["influence"]
                for f in sorted((done / f"targets/sums/influence/{number}").glob("*.safetensors"))
            ]
        )
        np.testing.assert_allclose(influence, features @ target.T, atol=1e-6)
        total += weight * influence
    table = scores(done)
    means = {name: total[:, [s == name for s in subtasks]].mean(1) for name in ("kind 0", "kind 1")}
    for name, mean in means.items():
        np.testing.assert_allclose(table[f"subtask:{name}"], mean, atol=1e-6)
    np.testing.assert_allclose(table["score"], np.maximum(*means.values()), atol=1e-6)
    left, order = set(range(N_POOL)), []
    while left:
        v = len(order) % len(subtasks)
        best = max(left, key=lambda n: (np.float32(total[n, v]), -n))
        left.remove(best)
        order.append(best)
    agreed = sum(table["rank"][row] == rank for rank, row in enumerate(order, 1)) / N_POOL
    assert agreed > 0.98  # the sum over checkpoints is rounded differently here


@pytest.mark.parametrize("checkpoint", [1, 2])
def test_stored_features_are_those_of_plain_autograd_under_the_checkpoint(
    done: Path, given: dict[str, Any], checkpoint: int
) -> None:
    at = list_checkpoints(done)[checkpoint - 1]
    model = load_adapter(load_model(given["model"]), at.path, trainable=False)
    flat = {n: t.flatten() for n, t in at.exp_avg.items()}, {n: t.flatten() for n, t in at.exp_avg_sq.items()}
    state = AdamState(*flat, *at.betas, at.eps, at.step)
    pool = Pool(done / "pool")
    shard = pool.plan.shards[1]
    stored = load_torch(done / f"datastore/less/{checkpoint}/shard-00001.safetensors")
    features_N_D = stored_features(done, checkpoint)[shard.start : shard.stop]
    rows = pool.token_rows(shard)
    for i in (0, 7, 31):
        loss, gradient = gradients(model, rows.token_ids[i], rows.trained[i])
        whole = projected("sketch", directed("sgd", gradient, state), 512, 0)
        norm = np.linalg.norm(whole)
        in_8_bits = np.abs(whole / norm).max() / 127 / 2
        np.testing.assert_allclose(features_N_D[i], whole / norm, atol=in_8_bits + 1e-6)
        assert stored["loss"][i].item() == pytest.approx(loss, rel=1e-5)
        assert stored["projection_norm"][i].item() == pytest.approx(norm, rel=1e-4)


def test_the_run_directory_is_as_promised(done: Path, given: dict[str, Any]) -> None:
    kept = yaml.safe_load((done / "recipe.yaml").read_text())
    assert kept["keep"] == "5%"
    assert kept["dtype"] == "fp32"
    assert set(kept["lora_targets"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert kept["made_with"]["versions"]["torch"]
    index = pq.read_table(done / "pool" / "index.parquet")
    wanted = {"row", "id", "source", "fingerprint", "n_tokens", "n_trained", "status", "reason", "in_warmup"}
    assert wanted <= set(index.column_names)
    assert index["in_warmup"].to_numpy(zero_copy_only=False).sum() == N_POOL // 2
    assert (done / "quarantine.jsonl").read_text() == ""
    plan = json.loads((done / "pool" / "plan.json").read_text())
    assert [s["start"] for s in plan["shards"]] == [0, 50, 100, 150, 200]
    columns = list(scores(done))
    assert columns[:12] == [
        "row",
        "id",
        "source",
        "n_tokens",
        "n_trained",
        "loss",
        "grad_norm",
        "score",
        "rank",
        "best_subtask",
        "selected",
        "in_warmup",
    ]
    events = [json.loads(line)["event"] for line in (done / "log.jsonl").read_text().splitlines()]
    assert events.count("stage done") >= 6
    weights = [c.weight for c in list_checkpoints(done)]
    assert sum(weights) == pytest.approx(1)
    assert weights[0] > weights[1]


def test_running_again_changes_nothing_and_a_changed_setting_is_refused(
    done: Path, given: dict[str, Any]
) -> None:
    before = digests(done, *LASTING)
    run(recipe(given), done)
    assert digests(done, *LASTING) == before
    with pytest.raises(SiftuneError, match="name"):
        select(done, {"name": "../evil"})
    for change in (
        {"epochs": 3},
        {"seed": 5},
        {"direction": "adam"},
        {"max_length": 100},
        {"features": 256},
        {"pool": ["x.jsonl"]},
    ):
        with pytest.raises(SiftuneError, match=next(iter(change))):
            run(recipe(given, **change), done)
    with pytest.raises(SiftuneError, match="keep"):
        run(recipe(given, keep="7%"), done)
    assert digests(done, *LASTING) == before


def test_until_stops_and_a_later_run_goes_on(done: Path, given: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "staged"
    for stage, there, not_yet in (
        ("pool", "pool/plan.json", "checkpoints/1"),
        ("warmup", "checkpoints/2/adam_state.safetensors", "datastore"),
        ("datastore", "datastore/less/2/shard-00004.json", "targets/sums/influence"),
        ("influence", "targets/sums/influence/2/shard-00004.json", "selections"),
    ):
        run(recipe(given), out, until=stage)
        assert (out / there).exists()
        assert not (out / not_yet).exists()
    run(recipe({}), out)
    assert digests(out, *LASTING[:4]).items() <= digests(done, *LASTING).items()
    assert digests(out, "selections/sums").items() <= digests(done, "selections").items()


def test_choosing_again_needs_no_model(done: Path, given: dict[str, Any], tmp_path: Path) -> None:
    small = select(done, {"keep": "5", "name": "five"}).selections["five"].rows()
    assert [row["id"] for row in small] == [row["id"] for row in chosen(done)[:5]]
    top = select(done, {"rule": "top", "name": "by-top"}).selections["by-top"]
    ranked = scores(done, "by-top")
    assert (np.diff(ranked["score"][np.argsort(ranked["rank"])]) <= 0).all()
    assert len(top.rows()) == N_PLANTED
    mean = select(done, {"rule": "mean", "name": "by-mean"})
    both = scores(done, "by-mean")
    np.testing.assert_allclose(
        both["score"], (both["subtask:kind 0"] + both["subtask:kind 1"]) / 2, atol=1e-6
    )
    tokens = select(done, {"keep": "200 tokens", "name": "few"}).selections["few"]
    assert 0 < sum(scores(done, "few")["n_tokens"][scores(done, "few")["selected"]]) <= 200
    assert mean.selections
    assert tokens.summary["tokens_selected"] <= 200
    with pytest.raises(SiftuneError, match="exists with keep"):
        select(done, {"keep": "9%"})


def test_centred_influence_is_that_of_centred_features(done: Path) -> None:
    select(done, {"centre": True, "rule": "top", "name": "centred"})
    subtasks = [row["subtask"] for row in target_rows()]
    total = np.zeros((N_POOL, len(subtasks)))
    for at in list_checkpoints(done):
        features = stored_features(done, at.number).astype(np.float64)
        moved = features - features.mean(0)
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        total += (
            at.weight
            * moved
            @ load_file(done / f"targets/sums/features/{at.number}.safetensors")["features"].T
        )
    wanted = np.max([total[:, [s == name for s in subtasks]].mean(1) for name in set(subtasks)], axis=0)
    np.testing.assert_allclose(scores(done, "centred")["score"], wanted, atol=2e-6)


def test_a_new_question_to_an_old_datastore(done: Path, tmp_path: Path) -> None:
    before = digests(done, "datastore", "pool", "checkpoints", "targets/sums")
    file = write_rows(tmp_path / "new.jsonl", target_rows(3, seed=7))
    found = score(done, {"fresh": str(file)}, {"keep": "3%"}).selections["fresh"]
    assert len(found.rows()) == N_POOL * 3 // 100
    assert digests(done, "datastore", "pool", "checkpoints", "targets/sums") == before
    with pytest.raises(SiftuneError, match="has other rows"):
        score(done, {"fresh": str(write_rows(tmp_path / "other.jsonl", target_rows(4, seed=8)))})


def test_appended_rows_leave_old_ones_alone(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "grown"
    run(recipe(given), out)
    before = digests(out, "datastore", "targets", "selections")
    more = write_rows(tmp_path / "more.jsonl", pool_rows(70, 10, seed=5))
    assert append(out, [str(more)]) == 70
    after = digests(out, "datastore", "targets", "selections")
    assert before.items() <= after.items()
    assert append(out, [str(more)]) == 0
    assert digests(out, "datastore", "targets", "selections") == after
    with pytest.raises(SiftuneError, match="now it has 310"):
        select(out, {})
    rows = select(out, {"keep": "22", "name": "grown"}).selections["grown"].rows()
    assert sum(row["source"] == "planted" for row in rows) >= 19
    assert any(row["id"].startswith("row-5-") for row in rows)
    run(recipe(given), out, until="influence")  # the old command still fits the run that grew
    monkeypatch.chdir(tmp_path)
    assert append(out, ["more.jsonl"]) == 0  # the same file by another path
    (out / "recipe.yaml").unlink()  # as a kill just after the pool was read leaves it
    with pytest.raises(SiftuneError, match="another pool"):
        run(recipe(given, pool=[str(more)]), out)


def test_python_names_are_there() -> None:
    for name in siftune.__all__:
        assert getattr(siftune, name) is not None


def test_a_mistake_before_the_pool_is_read_does_not_bind_the_run(
    given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SiftuneError, match="nowhere"):
        run(recipe(given, pool=["nowhere.jsonl"], epochs=7), tmp_path / "run")
    run(recipe(given), tmp_path / "run", until="pool")


def test_an_index_that_a_kill_prevented_is_made(done: Path, given: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(recipe(given), out, until="pool")
    (out / "pool" / "index.parquet").unlink()
    (out / "quarantine.jsonl").unlink()
    run(recipe(given), out, until="warmup")
    assert (
        pq.read_table(out / "pool" / "index.parquet")["in_warmup"].to_numpy(zero_copy_only=False).sum()
        == N_POOL // 2
    )


def test_a_flipped_byte_is_found_not_used(given: dict[str, Any], done: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(done, out)
    file = out / "datastore/less/1/shard-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 0x13
    file.write_bytes(content)
    target = write_rows(tmp_path / "t.jsonl", target_rows(3, seed=3))
    with pytest.raises(SiftuneError, match="damaged"):
        score(out, {"new": str(target)})
    file.unlink()
    run(recipe(given), out)
    assert digests(out, "datastore").items() <= digests(done, "datastore").items()
    assert score(out, {"new": str(target)}).selections["new"].rows()


def test_another_model_under_the_old_name_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_tiny_model(model, "llama", seed=0)
    run(recipe(given, model=str(model)), tmp_path / "run", until="warmup")
    write_tiny_model(model, "llama", seed=3)
    with pytest.raises(SiftuneError, match="model"):
        run(recipe(given, model=str(model)), tmp_path / "run")


def test_a_run_goes_on_from_another_folder(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here with spaces"
    write_inputs(here)
    monkeypatch.chdir(here)
    relative = {**given, "model": "model", "pool": ["pool.jsonl"], "target": {"sums": "target.jsonl"}}
    run(recipe(relative), Path("run"), until="pool")
    monkeypatch.chdir(tmp_path)
    result = run(recipe({}), here / "run")
    assert len(result.selections["sums"].rows()) == N_PLANTED
    (here / "target.jsonl").unlink()
    run(recipe({}), here / "run")


def test_the_preset_of_the_paper_runs_on_a_small_pool(given: dict[str, Any], tmp_path: Path) -> None:
    """One step an epoch: the first has learning rate 0, so its checkpoint weighs nothing."""
    settings = {**given, **PRESETS["less"], "warmup_fraction": 0.5, "epochs": 3, "max_length": 200}
    run(make_recipe(settings), tmp_path / "run")
    weights = [c.weight for c in list_checkpoints(tmp_path / "run")]
    assert weights[0] == 0
    assert sum(weights) == pytest.approx(1)
    manifest = json.loads((tmp_path / "run/datastore/less/1/manifest.json").read_text())
    assert (manifest["direction"], manifest["store_dtype"]) == ("adam", "fp16")


def test_a_column_called_siftune_and_hostile_names_come_through(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pool_rows(40, 8)
    rows[0] |= {"_siftune": "mine", "source": "\x1b[2J[red]evil\u202e"}
    pool = write_rows(tmp_path / "p.jsonl", rows)
    result = run(recipe(given, pool=[str(pool)], keep="100%"), tmp_path / "run")
    kept = [row for row in result.selections["sums"].rows() if "_siftune_before" in row]
    assert [row["_siftune_before"] for row in kept] == ["mine"]
    assert kept[0]["source"] == "\x1b[2J[red]evil\u202e"
    show(result, "selection", Console(width=200))
    printed = capsys.readouterr().out
    assert "\x1b[2J" not in printed
    assert "\u202e" not in printed
    assert "[red]evil" in printed
