"""Several processes on one run: whoever makes a shard, and whoever dies over it, the bytes are those of one process alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline_helpers import LASTING, digests, recipe, write_inputs
from siftune.datastore import claims
from siftune.datastore.claims import _clock_ahead, _here, shards_to_make
from siftune.datastore.plan import Shard, ShardPlan
from siftune.datastore.pool import Pool
from siftune.datastore.shards import write_shard
from siftune.datastore.store import Datastore
from siftune.pipeline import crew
from siftune.pipeline.apart import worker_command
from siftune.pipeline.machine import settled
from siftune.pipeline.progress import Reporter
from siftune.pipeline.run import run
from siftune.pipeline.rundir import read_run_recipe
from siftune.pipeline.session import Session
from siftune.pipeline.working import work
from siftune.records.errors import SiftuneError

QUIET = Reporter(quiet=True)

PLAN = ShardPlan(
    tuple(Shard(k, 10 * k, 10 * k + 10, f"digest {k}") for k in range(3)), 512, "encoder", ("a",)
)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = write_inputs(tmp_path_factory.mktemp("inputs"))
    return {**settings, "method": "blend", "features": 16_384, "shard_rows": 30}


@pytest.fixture(scope="module")
def alone(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    run(recipe(given, workers=1), out)
    return out


def test_a_run_with_others_writes_the_bytes_of_one_alone(
    given: dict[str, Any], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "LOOK_AFTER", 0.0)
    monkeypatch.setattr(crew, "WORTH", 0.0)
    started: list[crew.Crew] = []
    begin = crew.Crew._start
    monkeypatch.setattr(crew.Crew, "_start", lambda self: (started.append(self), begin(self))[1])
    run(recipe(given, workers=3), tmp_path / "run")
    assert len(started[0].processes) == 2
    assert [process.returncode for process, _ in started[0].processes] == [0, 0]
    assert digests(tmp_path / "run", *LASTING) == digests(alone, *LASTING)
    assert not list((tmp_path / "run").rglob("*.claim"))


def test_workers_that_join_and_one_that_is_killed(given: dict[str, Any], alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(recipe(given, workers=1), out, until="warmup")
    command = [sys.executable, "-m", "siftune", "worker", str(out), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    end = time.monotonic() + 60
    while not (held := [file for file in out.glob("datastore/less/2/*.claim") if file.stat().st_size]):
        assert time.monotonic() < end
        assert all(worker.poll() is None for worker in workers)
        time.sleep(0.001)
    holder = int(held[0].read_text(encoding="utf-8").split()[-1])  # in the middle of that shard
    killed, other = sorted(workers, key=lambda worker: worker.pid != holder)
    killed.send_signal(signal.SIGKILL)
    text, _ = other.communicate(timeout=120)
    assert other.returncode == 0, text.decode()
    killed.communicate()
    run(recipe(given, workers=1), out)
    assert digests(out, *LASTING) == digests(alone, *LASTING)


def test_a_worker_of_a_run_without_checkpoints_says_so(given: dict[str, Any], tmp_path: Path) -> None:
    run(recipe(given, workers=1), tmp_path / "run", until="pool")
    command = [sys.executable, "-m", "siftune", "worker", str(tmp_path / "run"), "--quiet"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "no checkpoints yet" in found.stderr


def made(folder: Path, shard: Shard) -> None:
    import torch

    write_shard(folder, shard, {"row": torch.arange(shard.start, shard.stop)}, {})


def test_every_shard_is_made_once_and_claims_go(tmp_path: Path) -> None:
    seen, rows = [], []
    for shard in shards_to_make(tmp_path, PLAN, rows.append):
        assert (tmp_path / f"{shard.name}.claim").exists()
        seen.append(shard)
        made(tmp_path, shard)
    assert seen == list(PLAN.shards)
    assert rows == []
    assert not list(tmp_path.glob("*.claim"))


def test_what_a_living_process_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shard is left to it, the others are made, and its rows are told once it is done."""
    held = tmp_path / f"{PLAN.shards[1].name}.claim"
    held.write_text(f"{_here()} {os.getpid()}\n", encoding="utf-8")
    clock = SimpleNamespace(time=time.time, sleep=lambda seconds: made(tmp_path, PLAN.shards[1]))
    monkeypatch.setattr(claims, "time", clock)  # not the module's own sleep: other threads use that
    seen, rows, waits = [], [], []
    for shard in shards_to_make(tmp_path, PLAN, rows.append, waits.append):
        seen.append(shard)
        made(tmp_path, shard)
    assert seen == [PLAN.shards[0], PLAN.shards[2]]
    assert rows == [10]
    assert len(waits) == 1
    assert str(os.getpid()) in waits[0]


@pytest.mark.parametrize("who", ["dead process", "silent machine", "nobody"])
def test_void_claims_are_taken_over(who: str, tmp_path: Path) -> None:
    claim = tmp_path / f"{PLAN.shards[0].name}.claim"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    text = {
        "dead process": f"{_here()} {ended.pid}\n",
        "silent machine": "elsewhere 1\n",
        "nobody": "",
    }
    claim.write_text(text[who], encoding="utf-8")
    if who != "dead process":
        os.utime(claim, (time.time() - claims.EXPIRY - 1,) * 2)
    first = next(iter(shards_to_make(tmp_path, PLAN)))
    assert first == PLAN.shards[0]


def test_a_clock_that_is_ahead_makes_no_claim_void(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever keeps the files says what time it is."""
    claim = tmp_path / f"{PLAN.shards[0].name}.claim"
    claim.write_text("elsewhere 1\n", encoding="utf-8")
    now = time.time
    monkeypatch.setattr(claims.time, "time", lambda: now() + 2 * claims.EXPIRY)
    _clock_ahead.cache_clear()
    assert claims.held_by_another(claim)
    os.utime(claim, (now() - claims.EXPIRY - 1,) * 2)
    assert not claims.held_by_another(claim)
    monkeypatch.undo()
    _clock_ahead.cache_clear()


def test_a_worker_makes_what_another_choice_needs(given: dict[str, Any], tmp_path: Path) -> None:
    """A run keeps the method that it was made with; who is asked for another says so to whom it starts."""
    out = tmp_path / "RUN"
    run(recipe(given, method="less"), out, reporter=QUIET)
    work(out, QUIET, choice={"method": "rds+"})
    assert not Datastore(out / "datastore/rds+/0", Pool(out / "pool").plan).missing()
    session = Session(out, read_run_recipe(out).with_settings({"method": "rds+"}), QUIET, None)
    assert worker_command(session)[-2:] == ["--method", "rds+"]


def test_a_crew_takes_no_gpu_that_it_was_not_given(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def started(command: list[str], env: dict[str, str], **more: Any) -> None:
        seen.append(env["CUDA_VISIBLE_DEVICES"])

    monkeypatch.setattr(crew, "device_of", lambda recipe: torch.device("cuda"))
    monkeypatch.setattr(crew, "subprocess", SimpleNamespace(Popen=started))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    session = Session(tmp_path, recipe(given, workers=8), QUIET, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    crew.Crew(session)._start()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    crew.Crew(session)._start()
    assert seen == ["5", "1"]


def test_threads_are_shared_out_once(given: dict[str, Any]) -> None:
    for threads, workers, each in ((4, 2, 2), (2, 2, 1), (1, 3, 1), (4, None, 1)):
        found, _ = settled(recipe(given, threads=threads, workers=workers, device="cpu"))
        assert (found.workers, found.worker_threads) == (workers or threads, each)


def test_a_run_goes_on_with_other_workers_and_the_same_threads_each(
    given: dict[str, Any], alone: Path, tmp_path: Path
) -> None:
    run(recipe(given, workers=1), tmp_path / "run", until="warmup")
    run(recipe(given, workers=2), tmp_path / "run")
    found = read_run_recipe(tmp_path / "run")
    assert (found.workers, found.worker_threads) == (2, 1)
    assert digests(tmp_path / "run", *LASTING) == digests(alone, *LASTING)
    with pytest.raises(SiftuneError, match="worker_threads"):
        run(recipe(given, worker_threads=2), tmp_path / "run")


def test_a_worker_whose_leader_is_gone_stops(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from siftune.pipeline.working import LeaderGoneError, work

    run(recipe(given, workers=1), tmp_path / "run", until="warmup")
    monkeypatch.setenv("SIFTUNE_STARTED_BY", str(os.getppid() + 1))
    with pytest.raises(LeaderGoneError):
        work(tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.claim"))
