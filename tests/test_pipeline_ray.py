"""A run on a real local Ray cluster: a shard that fails, an actor that is killed, and in the end the bytes of a run alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline_helpers import LASTING, digests, recipe, write_inputs
from siftune.cli import _spread
from siftune.pipeline.ray_cluster import STARTED_WITH
from siftune.pipeline.run import run
from siftune.records.errors import SiftuneError
from siftune.records.log import read_events


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = write_inputs(tmp_path_factory.mktemp("inputs"))
    return {**settings, "method": "blend", "epochs": 1, "shard_rows": 30, "workers": 1}


@pytest.fixture(scope="module")
def alone(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    run(recipe(given), out)
    return out


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two places for actors; what Ray keeps in a home goes into an empty one."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name, value in STARTED_WITH.items():
            patch.setenv(name, value)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


def kill_the_first_to_claim(out: Path, killed: list[int], over: threading.Event) -> None:
    while not over.is_set():
        for claim in out.glob("datastore/less/1/*.claim"):
            try:
                pid = int(claim.read_text(encoding="utf-8").split()[-1])
            except (FileNotFoundError, IndexError):  # just given up, or just being written
                continue
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            return
        time.sleep(0.001)


@pytest.mark.usefixtures("cluster")
def test_a_shard_that_fails_and_an_actor_that_is_killed(
    given: dict[str, Any], alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(recipe(given), out, until="warmup")
    in_the_way = out / "datastore" / "less" / "1" / "shard-00003.safetensors"
    in_the_way.mkdir(parents=True)
    killed: list[int] = []
    over = threading.Event()
    killer = threading.Thread(target=kill_the_first_to_claim, args=(out, killed, over))
    killer.start()
    with pytest.raises(
        SiftuneError, match=r"failed 3 times: 1, the others are made; .* 1/shard-00003: .*directory"
    ):
        run(recipe(given), out, ray="auto")
    over.set()
    killer.join()
    assert killed
    assert os.getpid() not in killed
    failures = [event for event in read_events(out / "log.jsonl") if event["event"] == "shard failed"]
    assert [e["tries"] for e in failures if e["shard"] == "shard-00003"] == [1, 2, 3]
    assert any("died" in event["error"] for event in failures)
    made = [path.stem for path in sorted((out / "datastore" / "less" / "1").glob("*.safetensors"))]
    assert made == [f"shard-{k:05d}" for k in range(8)]  # one of them is what stands in the way
    assert len(list((out / "datastore" / "rds+" / "0").glob("*.safetensors"))) == 8

    in_the_way.rmdir()
    run(recipe(given), out, ray="auto")
    assert digests(out, *LASTING) == digests(alone, *LASTING)
    assert not list(out.rglob("*.claim"))


@pytest.mark.usefixtures("cluster")
def test_a_run_that_no_machine_has_room_for(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SiftuneError, match="no machine of the cluster has 3 CPU"):
        run(recipe(given, worker_threads=3, method="rds+"), tmp_path / "run", until="datastore", ray="auto")


def test_without_ray_it_says_what_to_install(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SiftuneError, match=r"pip install 'siftune\[ray\]'"):
        run(recipe(given), tmp_path / "run", ray="auto")
    assert not (tmp_path / "run" / "pool").exists()


def test_the_address_may_be_left_out() -> None:
    assert _spread(["run", "--ray", "--out", "RUN"]) == ["run", "--ray", "auto", "--out", "RUN"]
    assert _spread(["run", "--out", "RUN", "--ray"]) == ["run", "--out", "RUN", "--ray", "auto"]
    assert _spread(["run", "--ray", "10.0.0.1:6379"]) == ["run", "--ray", "10.0.0.1:6379"]
