"""A plan before a run: the arithmetic against slow plain code, the counts and bytes against what a run then makes."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import given as for_all
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from pipeline_helpers import (
    LASTING,
    N_POOL,
    digests,
    pool_rows,
    recipe,
    target_rows,
    write_rows,
)
from siftune.cli import app
from siftune.datastore.index import read_index
from siftune.gradients.features import FeatureExtractor
from siftune.pipeline import planning, training
from siftune.pipeline.estimate import (
    LEAST_ERROR,
    NOTHING,
    Load,
    Measured,
    Plan,
    Rate,
    StagePlan,
    fit_rate,
    peak_bytes,
    together,
)
from siftune.pipeline.plan_text import plan_lines, show_plan
from siftune.pipeline.planning import plan
from siftune.pipeline.progress import Pace, Reporter
from siftune.pipeline.run import append, run
from siftune.records.errors import SiftuneError
from siftune.records.log import RunLog, read_events, stage_seconds
from siftune.records.text import duration, size, span

QUIET = Reporter(quiet=True)
BATCHES = st.lists(st.lists(st.integers(1, 2000), min_size=1, max_size=8), max_size=8)


# The arithmetic


@for_all(BATCHES, BATCHES)
def test_a_load_is_what_counting_one_by_one_gives(first: list[list[int]], second: list[list[int]]) -> None:
    load = Load.of(first + second)
    assert load.batches == len(first) + len(second)
    assert load.rows == sum(1 for batch in first + second for _ in batch)
    padded = [sum(max(batch) for _ in batch) for batch in first + second]
    assert load.tokens == sum(padded)
    assert load.largest == max(padded, default=0)
    assert load == together([Load.of(first), Load.of(second)])
    assert load.times(3) == together([load, load, load])
    assert load.times(0) == NOTHING


@for_all(
    st.floats(0, 0.1), st.floats(0, 0.1), st.floats(1e-5, 1e-2), st.lists(BATCHES.filter(bool), min_size=1)
)
def test_costs_that_made_the_seconds_are_found_again(c: float, a: float, b: float, works: list[Any]) -> None:
    shapes = [[40], [200], [900], [120] * 4, [150] * 13, [800] * 2]
    loads = [Load.of([shape]) for shape in shapes]
    measured = [Measured(x, c * x.batches + a * x.rows + b * x.tokens, 0) for x in loads]
    rate = fit_rate(measured)
    assert rate.error == LEAST_ERROR  # nothing is off, but a machine is never that steady
    for batches in works:
        by_hand = sum(c + sum(a + b * max(batch) for _ in batch) for batch in batches)
        assert rate.seconds(Load.of(batches)) == pytest.approx(by_hand, rel=1e-4)


def test_one_measured_batch_is_taken_by_its_tokens() -> None:
    rate = fit_rate([Measured(Load(1, 1, 100, 100), 2.0, 0)])
    assert rate.seconds(Load(7, 30, 5000, 900)) == pytest.approx(100.0)


def test_single_rows_alone_do_not_blame_the_batch() -> None:
    """Where a row can't be told from a batch, the cost is the row's: full batches would else look far too cheap."""
    measured = [Measured(Load(1, 1, n, n), 1 + n / 100, 0) for n in (50, 100, 400)]
    assert fit_rate(measured).seconds(Load(1, 10, 1000, 1000)) == pytest.approx(10 + 10, rel=0.01)


def test_the_range_follows_from_how_far_the_probes_are_off() -> None:
    loads = [Load.of([[n] * k]) for n, k in ((50, 1), (100, 1), (400, 1), (100, 4), (100, 16), (400, 4))]
    steady = [Measured(x, x.tokens / 100, 0) for x in loads]
    shaken = [m._replace(seconds=m.seconds * (3 if i % 2 else 1 / 3)) for i, m in enumerate(steady)]
    assert fit_rate(shaken).error > 2 * fit_rate(steady).error
    stage = StagePlan.at_rate("warmup", "w", loads[0], Rate(0.0, 0.0, 1.0, 0.5), 7, setup=10.0)
    assert (stage.seconds, stage.low, stage.high) == pytest.approx((60, 40, 90))


def test_memory_has_a_part_that_stays_and_one_per_token() -> None:
    measured = [Measured(Load(1, 1, n, n), 1.0, 5000 + 30 * n) for n in (100, 300, 900)]
    assert peak_bytes(measured, 2000) == pytest.approx(65_000, rel=0.01)
    assert peak_bytes(measured, 900) >= 32_000
    assert peak_bytes(measured[:1], 1000) == pytest.approx(80_000)


def test_a_plan_adds_up_and_money_is_hours_times_price() -> None:
    stages = [
        StagePlan("warmup", "w", 1, 1, 1800.0, 900.0, 3600.0, 10),
        StagePlan("pool", "p", 1, 1, 1800.0, 1800.0, 1800.0, 5),
    ]
    values = Plan("less", 4, {}, {}, stages, None, 99, 2.5, {}).as_values()
    assert values["seconds"] == {"estimate": 3600.0, "low": 2700.0, "high": 5400.0}
    assert values["price"] == {"estimate": 2.5, "low": 1.875, "high": 3.75}
    assert values["disk_bytes"] == 15
    assert Plan("less", 4, {}, {}, stages, None, 99, None, {}).as_values()["price"] is None


def test_times_and_sizes_in_words() -> None:
    assert [duration(s) for s in (0.2, 4.4, 89.0, 90.0, 5399.0, 5400.0)] == [
        "under 1 s",
        "4 s",
        "89 s",
        "2 min",
        "90 min",
        "1.5 h",
    ]
    assert [span(40.0, 70.0), span(150.0, 290.0), span(4000.0, 9000.0), span(3.0, 3.2)] == [
        "40–70 s",
        "2–5 min",
        "1.1–2.5 h",
        "3 s",
    ]
    assert [size(n) for n in (812, 95_600, 3_440_000, 536_000_000, 17_700_000_000)] == [
        "812 bytes",
        "96 kB",
        "3.4 MB",
        "536 MB",
        "17.7 GB",
    ]


def test_time_left_counts_down_and_does_not_jump() -> None:
    """Batches of long rows first, as in every shard: the end that is told moves by less than the rate would move it."""
    now, told = [0.0], list[float]()
    pace = Pace(1000, clock=lambda: now[0])
    for step in range(99):
        now[0] += 2.0 if step % 10 < 5 else 0.5
        pace.advance(10)
        if pace.left is not None:
            told.append(now[0] + pace.left)
    truth = 125.0
    assert abs(told[-1] - truth) < 0.05 * truth
    jumps = np.abs(np.diff(told[5:]))
    assert jumps.max() < 0.1 * truth
    now[0] += 1
    before = pace.left
    now[0] += 1
    assert before is not None
    assert pace.left == pytest.approx(max(0.0, before - 1))
    pace.end()
    assert pace.left is None


# Against a run


@pytest.fixture(scope="module")
def planned(given: dict[str, Any]) -> Plan:
    return plan(recipe(given, method="blend"), price_per_hour=1.0, reporter=QUIET)


@pytest.fixture(scope="module")
def done(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that said its plan."""
    out = tmp_path_factory.mktemp("runs") / "run"
    run(recipe(given, method="blend"), out, reporter=Reporter(console=Console(file=StringIO())))
    return out


def tree(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_counts_are_those_of_the_run(planned: Plan, done: Path, given: dict[str, Any]) -> None:
    index = read_index(done)
    assert planned.pool == {
        "rows": N_POOL,
        "usable": N_POOL,
        "tokens": sum(index["n_tokens"].to_pylist()),
        "trained_tokens": sum(index["n_trained"].to_pylist()),
    }
    rows = {stage.stage: stage.rows for stage in planned.stages}
    n_warmup = sum(index["in_warmup"].to_pylist())
    n_target, epochs = len(target_rows()), given["epochs"]
    assert rows == {
        "pool": N_POOL,
        "warmup": epochs * n_warmup,
        "datastore": epochs * (N_POOL + n_target),
        "vectors": N_POOL + n_target,
        "influence": epochs * N_POOL,
    }
    assert planned.checkpoints == epochs
    assert planned.targets == {"sums": n_target}


def test_disk_is_what_the_run_then_takes(planned: Plan, done: Path) -> None:
    def taken(*patterns: str) -> int:
        return sum(f.stat().st_size for p in patterns for f in done.glob(p) if f.is_file())

    disk = {stage.stage: stage.disk_bytes for stage in planned.stages}
    assert disk["pool"] == pytest.approx(taken("pool/*"), rel=0.02)
    assert disk["warmup"] == pytest.approx(taken("checkpoints/**/*"), rel=0.1)
    features = taken("datastore/less/**/*", "targets/sums/features/*")
    assert disk["datastore"] == pytest.approx(features, rel=0.05)
    vectors = taken("datastore/rds+/**/*", "targets/sums/vectors/*")
    assert disk["vectors"] == pytest.approx(vectors, rel=0.05)
    assert disk["influence"] == pytest.approx(taken("targets/sums/influence/**/*"), rel=0.2)


def test_a_plan_writes_nothing_beside_or_into_a_run(
    given: dict[str, Any], done: Path, tmp_path: Path
) -> None:
    plan(recipe(given, method="blend"), tmp_path / "new", until="datastore", reporter=QUIET)
    assert not (tmp_path / "new").exists()
    before = tree(done)
    left = plan(recipe(given, method="blend"), done, reporter=QUIET)
    assert tree(done) == before
    assert left.stages == []
    assert left.seconds == (0.0, 0.0, 0.0)


def test_what_is_left_of_a_run_that_was_stopped(given: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(recipe(given), out, until="warmup", reporter=QUIET)
    before = tree(out)
    found = plan(recipe({}), out, reporter=QUIET)
    assert tree(out) == before
    assert [stage.stage for stage in found.stages] == ["datastore", "influence"]
    run(recipe(given), out, until="datastore", reporter=QUIET)
    assert [stage.stage for stage in plan(recipe({}), out, reporter=QUIET).stages] == ["influence"]
    more = write_rows(tmp_path / "more.jsonl", pool_rows(30, 3, seed=5))
    run(recipe(given), out, reporter=QUIET)
    append(out, [str(more)], reporter=QUIET)
    assert plan(recipe({}), out, reporter=QUIET).stages == []


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"method": "rds+"}, ["pool", "vectors"]),
        ({"method": "bm25"}, ["pool"]),
        ({"projection": "none", "direction": "adam", "target": {}}, ["pool", "warmup", "datastore"]),
    ],
)
def test_a_method_pays_for_what_it_needs(
    given: dict[str, Any], changes: dict[str, Any], stages: list[str]
) -> None:
    found = plan(recipe(given, **changes), until="datastore", reporter=QUIET)
    assert [stage.stage for stage in found.stages] == stages
    assert (found.memory_bytes is None) == (changes["method"] == "bm25" if "method" in changes else False)


def test_settings_that_change_the_cost_change_the_plan(given: dict[str, Any], planned: Plan) -> None:
    other = plan(
        recipe(given, epochs=4, features=1024, store_dtype="fp32", warmup_fraction=0.25),
        until="datastore",
        reporter=QUIET,
    )
    before, after = ({stage.stage: stage for stage in p.stages} for p in (planned, other))
    assert after["warmup"].rows == before["warmup"].rows
    assert after["datastore"].rows == 2 * before["datastore"].rows
    assert after["datastore"].disk_bytes > 7 * before["datastore"].disk_bytes


def test_a_run_makes_the_same_bytes_with_a_plan_and_without(
    given: dict[str, Any], done: Path, tmp_path: Path
) -> None:
    settings = recipe(given, method="blend")
    run(settings, tmp_path / "quiet", reporter=QUIET)
    assert digests(tmp_path / "quiet", *LASTING) == digests(done, *LASTING)
    with_dropout = recipe(given, dropout=0.3, gradient_checkpointing=True)
    run(with_dropout, tmp_path / "a", until="warmup", reporter=QUIET)
    run(with_dropout, tmp_path / "b", until="warmup", reporter=Reporter(console=Console(file=StringIO())))
    assert "plan" not in stage_seconds(tmp_path / "a" / "log.jsonl")
    assert "plan" in stage_seconds(tmp_path / "b" / "log.jsonl")
    assert digests(tmp_path / "a", *LASTING) == digests(tmp_path / "b", *LASTING)


def test_the_log_keeps_the_estimate_and_what_it_took(done: Path) -> None:
    events = list(read_events(done / "log.jsonl"))
    (told,) = [event for event in events if event["event"] == "planned and took"]
    assert list(told["seconds"]) == ["warmup", "datastore", "vectors", "influence"]
    seconds = stage_seconds(done / "log.jsonl")
    for kind, (estimated, took) in told["seconds"].items():
        assert estimated >= 0
        assert took == pytest.approx(seconds[kind], abs=0.05)


def test_a_probe_that_fails_or_ends_its_process_costs_the_estimate_alone(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **more: Any) -> None:
        raise RuntimeError("a bad row")

    monkeypatch.setattr(planning, "plan_of", broken)
    said = StringIO()
    told = Reporter(console=Console(file=said, width=200))
    run(recipe(given), tmp_path / "run", until="warmup", reporter=told)
    assert "no estimate: a probe batch failed (RuntimeError: a bad row)" in said.getvalue()
    RunLog(tmp_path / "run" / "log.jsonl").event("stage began", stage="plan")  # and no end: the process died
    run(recipe(given), tmp_path / "run", reporter=told)
    assert "an earlier command on this run ended while it was made" in said.getvalue()


def test_memory_that_does_not_hold_a_probe_batch_costs_the_estimate_alone(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run itself makes such a batch in halves."""

    def full(self: FeatureExtractor, *rest: Any) -> None:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(FeatureExtractor, "__call__", full)
    monkeypatch.setattr(training, "_check_captured", lambda *given: None)
    said = StringIO()
    told = Reporter(console=Console(file=said, width=200))
    run(recipe(given, method="less"), tmp_path / "run", until="warmup", reporter=QUIET)
    with pytest.raises(SiftuneError, match="this row alone"):  # of the run, not of the estimate
        run(recipe(given, method="less"), tmp_path / "run", reporter=told)
    assert "no estimate: memory does not hold a probe batch" in said.getvalue()


def test_recomputed_layers_are_planned_in_16_bits_too(given: dict[str, Any]) -> None:
    found = plan(recipe(given, dtype="bf16", gradient_checkpointing=True), reporter=QUIET)
    assert any(stage.stage == "warmup" for stage in found.stages)


def test_going_on_with_nothing_left_probes_nothing(given: dict[str, Any], done: Path) -> None:
    said = StringIO()
    run(recipe(given, method="blend"), done, reporter=Reporter(console=Console(file=said)))
    assert "plan" not in said.getvalue()


def test_what_is_missing_is_said(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SiftuneError, match="no model is given"):
        plan(recipe({}), reporter=QUIET)
    with pytest.raises(SiftuneError, match="no pool is given"):
        plan(recipe({"model": given["model"]}), reporter=QUIET)


# The screen


def test_a_plan_is_told_in_words(planned: Plan) -> None:
    said = StringIO()
    show_plan(planned, Console(file=said, width=80, highlight=False))
    text = said.getvalue()
    assert "\x1b" not in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines()[2:])
    for expected in (
        f"blend on {N_POOL} rows",
        "warm-up, 2 epochs",
        "gradients, 2 checkpoints",
        "price",
        "probe batches",
    ):
        assert expected in text
    assert "free)" in plan_lines(planned)[-1]
    full = Plan(**{**vars(planned), "disk_free_bytes": 10})
    assert "10 bytes are free" in plan_lines(full)[-1]


def command(*arguments: str) -> Result:
    """A command's exit code, standard output and standard error, in this process; neither is a terminal."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.stderr
    return result


def test_json_is_all_of_standard_output_and_pipes_get_no_colour(
    given: dict[str, Any], tmp_path: Path
) -> None:
    settings = [
        "--model",
        given["model"],
        "--pool",
        given["pool"][0],
        "--target",
        f"sums={given['target']['sums']}",
    ]
    settings += [
        "--epochs",
        "1",
        "--rank",
        "2",
        "--features",
        "64",
        "--dtype",
        "fp32",
        "--threads",
        "1",
        "--warmup-fraction",
        "0.1",
    ]
    found = command("plan", *settings, "--price-per-hour", "2", "--json")
    values = json.loads(found.stdout)
    assert set(values) == {
        "method",
        "checkpoints",
        "pool",
        "targets",
        "stages",
        "memory_bytes",
        "disk_bytes",
        "disk_free_bytes",
        "seconds",
        "price_per_hour",
        "price",
        "rests_on",
    }
    assert values["checkpoints"] == 1
    out = str(tmp_path / "run")
    found = command("run", *settings, "--keep", "5%", "--out", out, "--json")
    values = json.loads(found.stdout)
    assert set(values) == {"run", "selections", "report", "seconds", "next"}
    assert {"file", "scores", "settings", "n_selected", "n_scorable", "tokens_selected", "sources"} <= set(
        values["selections"]["sums"]
    )
    assert {"pool", "warmup", "datastore", "influence", "selection"} <= set(values["seconds"])
    assert "\x1b" not in found.stderr
    assert "plan  warm-up, 1 epoch " in found.stderr
    found = command("select", out, "--keep", "2%", "--name", "few")
    assert "\x1b" not in found.stdout + found.stderr
    assert f"siftune compare {out} --test sums=TEST.jsonl" in found.stdout
    more = write_rows(tmp_path / "more.jsonl", pool_rows(5, 1, seed=7))
    found = command("append", out, "--pool", str(more), "--json")
    assert json.loads(found.stdout)["rows_appended"] == 5
