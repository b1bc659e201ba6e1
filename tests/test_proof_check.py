"""The first-order check: predictions are what autograd says, steps are AdamW's, and nothing is measured twice or lost."""

from __future__ import annotations

import json
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from gradient_oracle import directed, gradients
from pipeline_helpers import digests, pool_rows, recipe, write_inputs, write_rows
from siftune.chat.encoder import ChatEncoder
from siftune.chat.tokenizer import load_tokenizer
from siftune.datastore.features_writer import encode_target
from siftune.datastore.pool import Pool
from siftune.datastore.targets import Target, kept_rows
from siftune.gradients.directions import AdamState
from siftune.model.checkpoint import Checkpoint, list_checkpoints
from siftune.model.load import load_model
from siftune.model.lora import adapter_on, lora_parameters
from siftune.pipeline import checking, training
from siftune.pipeline.checking import MIN_BATCHES, check
from siftune.pipeline.progress import Reporter
from siftune.pipeline.run import run
from siftune.pipeline.summary import show_check
from siftune.proof.agreement import Agreement, Points, TargetCheck
from siftune.proof.first_order import mean_loss, predicted_drop, stepped
from siftune.records.errors import SiftuneError
from siftune.records.files import read_sealed, write_sealed

QUIET = Reporter(quiet=True)
SMALL_STEP = 1e-3  # smaller ones drown in fp32: drops of 1e-5 in a loss of 6
N_ROWS = 60
ASKED: dict[str, Any] = {"batches": 10, "rows": 4, "learning_rate": SMALL_STEP, "reporter": QUIET}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    return {
        **write_inputs(folder),
        "pool": [str(write_rows(folder / "few.jsonl", pool_rows(N_ROWS)))],
        "shard_rows": 20,
    }


@pytest.fixture(scope="module")
def exact(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose features are Adam's directions themselves: what is left between prediction and truth is first order."""
    out = tmp_path_factory.mktemp("runs") / "exact"
    settings = {"direction": "adam", "projection": "none", "store_dtype": "fp32"}
    run(recipe(given, **settings), out, until="influence", reporter=QUIET)
    return out


@pytest.fixture(scope="module")
def checked(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it, checked in one go."""
    out = tmp_path_factory.mktemp("checked") / "run"
    shutil.copytree(exact, out)
    check(out, **ASKED)
    return out


@pytest.fixture
def copy(exact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exact, tmp_path / "run")


def found_in(path: Path) -> dict[str, Any]:
    return json.loads((path / "proof" / "check.json").read_text(encoding="utf-8"))["targets"][0]


def batch_files(path: Path, checkpoint: int = 1) -> list[Path]:
    return sorted((path / "proof" / "check" / str(checkpoint)).glob("*/*.json"))


def target_tokens(path: Path, given: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    encoder = ChatEncoder(load_tokenizer(given["model"], None), max_length=2048)
    tokens = encode_target(kept_rows(Target.open(path / "targets" / "sums")), encoder)
    return list(zip(tokens.token_ids, tokens.trained, strict=True))


def state_of(checkpoint: Checkpoint) -> AdamState:
    m, v = ({n: t.flatten() for n, t in part.items()} for part in (checkpoint.exp_avg, checkpoint.exp_avg_sq))
    return AdamState(m, v, *checkpoint.betas, checkpoint.eps, checkpoint.step)


def test_predictions_and_losses_are_those_of_autograd_row_by_row(
    checked: Path, given: dict[str, Any]
) -> None:
    base = load_model(given["model"])
    targets = target_tokens(checked, given)
    pool = Pool(checked / "pool")
    for checkpoint, points in zip(list_checkpoints(checked), found_in(checked)["checkpoints"], strict=True):
        with adapter_on(base, checkpoint.path, trainable=False) as model:
            of_target = [gradients(model, *row) for row in targets]
            for batch in (0, 7):
                kept = json.loads(batch_files(checked, checkpoint.number)[batch].read_text())
                assert kept["before"] == pytest.approx(np.mean([loss for loss, _ in of_target]), rel=1e-5)
                dots = []
                for row in pool.tokens_of(kept["rows"]):
                    direction = directed("adam", gradients(model, *row)[1], state_of(checkpoint))
                    dots += [
                        sum(float(direction[name] @ g[name].double()) for name in direction)
                        for _, g in of_target
                    ]
                expected = SMALL_STEP * np.mean(dots)
                assert points["predicted_K"][batch] == pytest.approx(expected, rel=1e-3)
                assert points["measured_K"][batch] == kept["before"] - kept["after"]


def test_the_predicted_drop_is_the_mean_of_dot_products() -> None:
    draw = np.random.default_rng(0)
    directions_B_P, gradients_V_P = draw.normal(size=(5, 30)), draw.normal(size=(3, 30))
    norm_B, norm_V = np.linalg.norm(directions_B_P, axis=1), np.linalg.norm(gradients_V_P, axis=1)
    cosine_B_V = (directions_B_P / norm_B[:, None]) @ (gradients_V_P / norm_V[:, None]).T
    expected = 0.1 * directions_B_P.mean(0) @ gradients_V_P.mean(0)
    assert predicted_drop(cosine_B_V, norm_B, norm_V, 0.1) == pytest.approx(expected)


def test_the_step_is_adamw_from_the_checkpoint_and_is_undone(exact: Path, given: dict[str, Any]) -> None:
    base = load_model(given["model"])
    frozen = {name: value.clone() for name, value in base.state_dict().items()}
    checkpoint = list_checkpoints(exact)[-1]
    rows = Pool(exact / "pool").tokens_of([0, 5, 17, 41, 59])
    targets = target_tokens(exact, given)
    with adapter_on(base, checkpoint.path, trainable=False) as model:
        by_row = [gradients(model, *row)[1] for row in rows]
        mean = {name: torch.stack([g[name] for g in by_row]).mean(0) for name in by_row[0]}
        wanted = directed("adam", mean, state_of(checkpoint))
        before = {name: p.detach().clone() for name, p in lora_parameters(model).items()}
        loss = mean_loss(model, targets, 2048)
        moved = {}
        for batch_tokens in (40, 2048):
            with stepped(model, checkpoint, rows, learning_rate=1e-2, batch_tokens=batch_tokens):
                moved[batch_tokens] = {n: p.detach().clone() for n, p in lora_parameters(model).items()}
                assert mean_loss(model, targets, 2048) != loss
            for name, p in lora_parameters(model).items():
                assert torch.equal(p, before[name])
                assert p.grad is None
                assert not p.requires_grad
            assert mean_loss(model, targets, 2048) == loss
        for now in moved.values():
            for name, direction in wanted.items():
                expected = before[name].flatten().double() - 1e-2 * direction
                torch.testing.assert_close(now[name].flatten().double(), expected, rtol=0, atol=2e-5)
    for name, value in base.state_dict().items():
        assert torch.equal(value, frozen[name])


def test_theta_is_put_back_where_measuring_fails(exact: Path, given: dict[str, Any]) -> None:
    checkpoint = list_checkpoints(exact)[0]
    rows = Pool(exact / "pool").tokens_of([3])
    with adapter_on(load_model(given["model"]), checkpoint.path, trainable=False) as model:
        before = {name: p.detach().clone() for name, p in lora_parameters(model).items()}
        with (
            pytest.raises(KeyboardInterrupt),
            stepped(model, checkpoint, rows, learning_rate=1e-2, batch_tokens=64),
        ):
            raise KeyboardInterrupt
        assert all(torch.equal(p, before[name]) for name, p in lora_parameters(model).items())


def test_a_small_step_goes_as_predicted(checked: Path) -> None:
    found = found_in(checked)
    for points in [*found["checkpoints"], found["overall"]]:
        predicted, measured = np.array(points["predicted_K"]), np.array(points["measured_K"])
        assert spearmanr(predicted, measured).statistic > 0.9
        assert points["by_predicted"]["rho"] == pytest.approx(spearmanr(predicted, measured).statistic)
        assert points["by_influence"]["rho"] == pytest.approx(
            spearmanr(points["influence_K"], measured).statistic
        )
        assert points["mean_measured"] == pytest.approx(points["mean_predicted"], rel=0.05)
    assert found["sentence"].startswith(
        "sums: batches rank alike by predicted and by measured drop, Spearman 0.9"
    )


def test_overall_is_the_sum_over_checkpoints(checked: Path) -> None:
    found = found_in(checked)
    first, second = found["checkpoints"]
    weights = [c.weight for c in list_checkpoints(checked)]
    for key in ("predicted_K", "measured_K"):
        np.testing.assert_allclose(found["overall"][key], np.add(first[key], second[key]), rtol=1e-12)
    np.testing.assert_allclose(
        found["overall"]["influence_K"],
        weights[0] * np.array(first["influence_K"]) + weights[1] * np.array(second["influence_K"]),
    )
    for k in range(ASKED["batches"]):  # the same rows at both checkpoints
        rows = [json.loads(batch_files(checked, c)[k].read_text())["rows"] for c in (1, 2)]
        assert rows[0] == rows[1]
        assert len(set(rows[0])) == ASKED["rows"]


def test_a_check_that_was_cut_off_goes_on_to_the_same_bytes(
    checked: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, write_json = [], checking.write_json

    def cut_off(path: Path, value: Any) -> None:
        if len(written) == 13:
            raise KeyboardInterrupt
        written.append(path)
        write_json(path, value)

    monkeypatch.setattr(checking, "write_json", cut_off)
    with pytest.raises(KeyboardInterrupt):
        check(copy, **ASKED)
    monkeypatch.undo()
    assert not (copy / "proof" / "check.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in written}
    check(copy, **ASKED)
    assert digests(copy, "proof") == digests(checked, "proof")
    assert {file: file.stat().st_mtime_ns for file in written} == kept


def test_what_is_measured_is_kept_and_more_batches_add_to_it(
    checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(checked, tmp_path / "run")
    before = digests(path, "proof/check")
    check(path, **{**ASKED, "batches": 12})
    after = digests(path, "proof/check")
    assert len(after) == len(before) + 2 * 2
    assert before.items() <= after.items()
    monkeypatch.setattr(training, "load_model", lambda *a, **k: pytest.fail("the model is not needed"))
    again = check(path, **ASKED)
    assert digests(path, "proof/check.json") == digests(checked, "proof/check.json")
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "80")
    show_check(again)
    shown = capsys.readouterr().out
    assert "sums" in shown
    for points in again.targets[0].checkpoints:
        assert str(points.by_predicted) in shown, "whole in a terminal of 80 columns"


@pytest.mark.parametrize("change", [{"seed": 5}, {"rows": 3}, {"learning_rate": None}])
def test_another_setting_measures_anew(checked: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    path = shutil.copytree(checked, tmp_path / "run")
    before = digests(path, "proof/check")
    result = check(path, **{**ASKED, "batches": 6, **change})
    after = digests(path, "proof/check")
    assert len(after) == len(before) + 2 * 6
    assert before.items() <= after.items()
    rates = (
        [SMALL_STEP] * 2
        if "learning_rate" not in change
        else [c.mean_learning_rate for c in list_checkpoints(path)]
    )
    assert [points.learning_rate for points in result.targets[0].checkpoints] == rates


def test_a_large_target_is_measured_on_a_sample(
    copy: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checking, "MAX_TARGET_ROWS", 4)
    result = check(copy, **{**ASKED, "batches": 6, "reporter": Reporter()})
    assert "measured on 4 of its 6 rows" in capsys.readouterr().err
    (found,) = result.targets
    assert (found.rows, found.of_rows) == (4, 6)
    with adapter_on(load_model(given["model"]), list_checkpoints(copy)[0].path, trainable=False) as model:
        loss_V = [mean_loss(model, [row], 2048) for row in target_tokens(copy, given)]
    before = json.loads(batch_files(copy)[0].read_text())["before"]
    means = [np.mean(np.delete(loss_V, [i, j])) for i in range(6) for j in range(i)]
    assert np.abs(np.array(means) - before).min() < 1e-6
    assert found.checkpoints[0].by_predicted.rho is not None
    for points in found.checkpoints:  # the prediction is for the very rows that are measured
        assert points.mean_measured == pytest.approx(points.mean_predicted, rel=0.05)


def test_the_loss_is_computed_in_fp32_whatever_the_base_is_kept_in(
    copy: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "base_model", lambda session: load_model(given["model"], dtype="bf16"))
    check(copy, **{**ASKED, "batches": 6})
    base = load_model(given["model"], dtype="bf16").float()
    with adapter_on(base, list_checkpoints(copy)[0].path, trainable=False) as model:
        loss = mean_loss(model, target_tokens(copy, given), 2048)
    assert json.loads(batch_files(copy)[0].read_text())["before"] == loss


def test_what_cannot_be_checked_is_refused(copy: Path, tmp_path: Path) -> None:
    def refused(words: str, path: Path = copy, **change: Any) -> None:
        with pytest.raises(SiftuneError, match=words):
            check(path, **{**ASKED, **change})

    refused("is not a run directory", path=tmp_path)
    refused("say nothing about a correlation", batches=5)
    refused("a batch needs a row", rows=0)
    refused("60 usable rows: random batches of so many would be one and the same", rows=60)
    refused("is no learning rate", learning_rate=float("nan"))
    refused("is no seed", seed=-1)
    refused("no target 'sum'; it has sums", targets=["sum"])
    facts = copy / "checkpoints" / "1" / "checkpoint.json"
    whole = facts.read_text()
    write_sealed(facts, {**read_sealed(facts), "mean_learning_rate": None})
    refused("at which learning rate", learning_rate=None)
    facts.write_text(whole)
    write_sealed(facts, {**read_sealed(facts), "step": 1})
    refused("is not the checkpoint that the datastore was made at")
    facts.write_text(whole)
    refused("is 5.* before and (nan|inf) after a step", learning_rate=1e30, batches=6)
    (copy / "targets" / "sums" / "influence" / "2" / "shard-00001.json").unlink()
    refused("the influence on 'sums' at checkpoint 2 is not made yet")
    assert not (copy / "proof" / "check.json").exists()


def test_fewer_batches_would_call_too_many_chance_orders_agreement() -> None:
    def called(n: int) -> float:
        orders = list(permutations(range(n)))
        return sum(Agreement.of(np.arange(n), np.array(order)).sign != 0 for order in orders) / len(orders)

    assert called(MIN_BATCHES) < 0.05 < called(MIN_BATCHES - 1)


def told(*agreements: tuple[float, float | None, float | None] | None) -> str:
    """The sentence for agreements at checkpoints 1, 2, … and, last, over all."""
    parts = [
        Points(k, 1e-4, [0.0] * 9, [0.0] * 9, [0.0] * 9, a, a, 0.0, 0.0)
        for k, found in enumerate(agreements, 1)
        for a in [Agreement(*(found or (None, None, None)))]
    ]
    return TargetCheck("sums", 6, 6, parts[:-1], parts[-1]).sentence


def test_the_sentence_says_what_the_interval_allows() -> None:
    yes, no, against = (0.61, 0.35, 0.78), (0.1, -0.2, 0.4), (-0.5, -0.8, -0.1)
    agree = "sums: batches rank alike by predicted and by measured drop, Spearman 0.61 [0.35, 0.78] over 9 batches"
    assert told(yes, yes, yes) == f"{agree}, summed over 2 checkpoints"
    assert (
        told(yes, no, yes)
        == f"{agree}, summed over 2 checkpoints; no significant agreement at checkpoint 2 alone"
    )
    assert told(yes, yes) == f"{agree} at checkpoint 1"
    assert told(no, no).startswith(
        "sums: no significant agreement of the orders by predicted and by measured drop, Spearman 0.10"
    )
    perfect = told((1.0, None, None), (1.0, None, None))
    assert (
        perfect
        == "sums: batches rank alike by predicted and by measured drop, Spearman 1.00 (no interval) over 9 batches at checkpoint 1"
    )
    assert told(against, against).startswith("sums: batches rank the other way round by predicted")
    assert (
        told(None, None) == "sums: nothing can be said, the drops of all 9 batches at checkpoint 1 are equal"
    )
