"""A shard that fails: memory halves batches, a poison row is found and left out, and every other row has the bytes of a run without it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from pipeline_helpers import digests, recipe, write_inputs
from siftune.chat.batches import token_batches
from siftune.cli import app
from siftune.datastore import claims, vectors_writer
from siftune.datastore.careful import MOST, Care, Work
from siftune.datastore.claims import _here, shards_to_make
from siftune.datastore.index import read_index
from siftune.datastore.plan import Shard, ShardPlan
from siftune.datastore.pool import Pool
from siftune.datastore.quantise import restored
from siftune.datastore.shards import read_shard, shard_notes, write_shard
from siftune.datastore.trouble import DEATHS, Trouble
from siftune.gradients.features import FeatureExtractor
from siftune.pipeline import apart
from siftune.pipeline.progress import Reporter
from siftune.pipeline.run import run
from siftune.pipeline.rundir import locked
from siftune.pipeline.session import Session
from siftune.pipeline.working import work
from siftune.records.errors import SiftuneError
from siftune.records.log import read_events

ROW, SHARD = 40, 1
QUIET = Reporter(quiet=True)
PLAN = ShardPlan(
    tuple(Shard(k, 10 * k, 10 * k + 10, f"digest {k}") for k in range(3)), 512, "encoder", ("a",)
)
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = write_inputs(tmp_path_factory.mktemp("inputs"))
    return {
        **settings,
        "features": 256,
        "shard_rows": 30,
        "batch_tokens": 300,
        "workers": 1,
        "method": "blend",
    }


@pytest.fixture(scope="module")
def warm(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its checkpoints."""
    out = tmp_path_factory.mktemp("warm") / "run"
    run(recipe(given), out, until="warmup")
    return out


@pytest.fixture(scope="module")
def whole(given: dict[str, Any], warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with all features and vectors, undisturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(warm, out)
    run(recipe(given), out, until="datastore")
    return out


@pytest.fixture
def out(warm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(warm, tmp_path / "run"))


class Plug:
    """What is done to every batch before features or vectors are made of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, row: np.ndarray):
        self.row, self.batches = row, 0
        self.act: Callable[[np.ndarray], None] = lambda ids_B_T: None
        features, vectors = FeatureExtractor.__call__, vectors_writer.pooled_states

        def plugged(made: Make) -> Make:
            def call(first: Any, *rest: Any) -> Any:
                self.batches += 1
                self.act(rest[0])
                return made(first, *rest)

            return call

        monkeypatch.setattr(FeatureExtractor, "__call__", plugged(features))
        monkeypatch.setattr(vectors_writer, "pooled_states", plugged(vectors))

    def has_row(self, ids_B_T: np.ndarray) -> bool:
        return any(ids[: len(self.row)].tolist() == self.row.tolist() for ids in ids_B_T)


@pytest.fixture
def plug(warm: Path, monkeypatch: pytest.MonkeyPatch) -> Plug:
    return Plug(monkeypatch, Pool(warm / "pool").tokens_of([ROW])[0][0])


def check_left_out(out: Path, whole: Path, *, reason: str) -> None:
    """ROW is in quarantine with its reason; all else in the stores is as if nothing had been."""
    assert not list(out.rglob("*.claim"))
    assert not list(out.rglob("*.trouble.json"))
    theirs = digests(whole, "datastore")
    differ = {name for name, digest in digests(out, "datastore").items() if theirs.pop(name) != digest}
    assert theirs == {}
    assert differ == {
        f"datastore/{store}/shard-00001.{ending}"
        for store in ("less/1", "less/2", "rds+/0")
        for ending in ("json", "safetensors")
    }
    shard = Pool(out / "pool").plan.shards[SHARD]
    others = np.arange(len(shard)) != ROW - shard.start
    for store in ("less/1", "less/2", "rds+/0"):
        found, undisturbed = (read_shard(path / "datastore" / store, shard) for path in (out, whole))
        for name, tensor in found.items():
            assert tensor.numpy()[others].tobytes() == undisturbed[name].numpy()[others].tobytes(), name
        assert np.isnan(restored(found).numpy()[~others]).all()
        notes = shard_notes(out / "datastore" / store, shard)
        assert notes
        assert list(notes["without_feature"]) == [str(ROW)]
        assert reason in notes["without_feature"][str(ROW)]
    quarantine = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [item["row"] for item in quarantine] == [ROW]
    assert reason in quarantine[0]["reason"]
    assert read_index(out)["status"][ROW].as_py() == "quarantined"


def test_a_row_that_raises_is_left_out_and_no_other_row_notices(
    given: dict[str, Any], out: Path, whole: Path, plug: Plug
) -> None:
    def fail(ids_B_T: np.ndarray) -> None:
        if plug.has_row(ids_B_T):
            raise ValueError("no such\nthing")

    plug.act = fail
    run(recipe(given), out)
    check_left_out(out, whole, reason="(ValueError: no such thing)")
    chosen = [json.loads(line) for line in (out / "selections/sums/selected.jsonl").read_text().splitlines()]
    assert chosen
    assert ROW not in [row["_siftune"]["row"] for row in chosen]


def test_what_fails_now_and_then_leaves_no_trace(out: Path, whole: Path, plug: Plug) -> None:
    failures = [0]

    def fail(ids_B_T: np.ndarray) -> None:
        failures[0] += 1
        if failures[0] % 3:
            raise RuntimeError("try again")

    plug.act = fail
    work(out, QUIET)
    assert failures[0] > 3
    assert digests(out, "datastore") == digests(whole, "datastore")


def rows_of(care: Care, make: Callable[[list[str]], None], items: list[str], batch: int = 8) -> list[float]:
    """One number an item, made in batches: its length and that of the batch."""
    whole = np.full(len(items), np.nan, np.float32)

    def made(some: list[str]) -> list[np.ndarray]:
        make(some)
        return [np.array([len(item) + 100 * len(some) for item in some], np.float32)]

    batches = [list(range(k, min(k + batch, len(items)))) for k in range(0, len(items), batch)]
    work = Work([whole], np.arange(100, 100 + len(items)), items, made, lambda item, other: "s" * len(item))
    care.fill(work, batches)
    return whole.tolist()


def test_where_the_stand_in_fails_too_what_its_halves_gave_stays() -> None:
    def fail(some: list[str]) -> None:
        if any(len(item) == 5 for item in some):
            raise IndexError("too long")

    care = Care(spare=MOST)
    found = rows_of(care, fail, ["a", "bb", "ccccc", "d"], batch=4)
    assert list(care.reasons) == [102]
    assert care.notes() == {"batches_halved": 1}
    assert np.isnan(found[2])
    assert [found[0], found[1], found[3]] == [201, 202, 101]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:113] data. DefaultCPUAllocator: not enough memory"),
        MemoryError(),
    ],
)
def test_a_batch_that_memory_does_not_hold_is_halved_at_once(error: Exception) -> None:
    sizes: list[int] = []

    def fail(some: list[str]) -> None:
        sizes.append(len(some))
        if len(some) > 2:
            raise error

    events: list[str] = []
    care = Care(told=lambda event, **details: events.append(event))
    found = rows_of(care, fail, ["a"] * 10)
    assert found == [201.0] * 10
    assert sizes == [8, 4, 2, 2, 4, 2, 2, 2]
    assert care.reasons == {}
    assert care.notes() == {"batches_halved": 1}
    assert events == ["batch halved"] * 3


def test_a_row_that_memory_does_not_hold_is_named_and_not_left_out() -> None:
    def fail(some: list[str]) -> None:
        if "bb" in some:
            raise MemoryError

    care = Care(where=lambda row: f"pool.jsonl:{row}", spare=MOST)
    with pytest.raises(SiftuneError, match=r"pool.jsonl:103: this row alone.*--gradient-checkpointing"):
        rows_of(care, fail, ["a", "a", "a", "bb", "a"])
    assert care.reasons == {}


def test_where_many_rows_fail_none_is_blamed() -> None:
    def fail(some: list[str]) -> None:
        raise ValueError("all is lost")

    told: list[str] = []
    care = Care("less/1/shard-00002", str, MOST, lambda event, **details: told.append(event))
    with pytest.raises(
        SiftuneError, match=r"more than 3 rows of less/1/shard-00002 fail.*ValueError: all is lost"
    ) as e:
        rows_of(care, fail, ["a"] * 20)
    assert isinstance(e.value.__cause__, ValueError)
    assert e.value.todo
    assert "row left out" not in told


def test_where_all_rows_of_a_small_shard_fail_none_is_blamed() -> None:
    """Two rows are fewer than may fail; but where nothing succeeds, it is the machine."""

    def fail(some: list[str]) -> None:
        raise ValueError("all is lost")

    with pytest.raises(SiftuneError, match=r"all rows of these rows fail.*ValueError: all is lost"):
        rows_of(Care(spare=MOST), fail, ["a", "bb"])
    care = Care(spare=MOST)
    rows_of(care, fail, ["a"])  # of one alone nobody can tell
    assert list(care.reasons) == [100]


def test_of_a_target_no_row_may_fail() -> None:
    def fail(some: list[str]) -> None:
        if "bb" in some:
            raise ValueError("no such thing")

    with pytest.raises(SiftuneError, match=r"^101: this row .*\(ValueError: no such thing\)"):
        rows_of(Care(), fail, ["a", "bb", "a"])


def test_a_device_that_answers_no_more_ends_the_process_and_starts_the_search(tmp_path: Path) -> None:
    """In this process nothing more can be made: the next one has the shard made apart, where this counts as an end."""

    def fail(some: list[str]) -> None:
        if "bb" in some:
            raise RuntimeError("CUDA error: device-side assert triggered")

    items = ["a", "bb", "a", "a"]
    with pytest.raises(SiftuneError, match=r"the device failed.*device-side assert"):
        rows_of(Care(trouble=Trouble.of(tmp_path, PLAN.shards[0])), fail, items)
    assert Trouble.of(tmp_path, PLAN.shards[0]).deaths == DEATHS
    ends: list[SiftuneError] = []
    while True:
        care = Care(trouble=Trouble.of(tmp_path, PLAN.shards[0]), watched=True, spare=MOST)
        try:
            found = rows_of(care, fail, items, batch=4)
            break
        except SiftuneError as error:
            ends.append(error)
    assert len(ends) == 4  # four rows, two, one, that one again
    assert found[0] == found[2] == found[3] == 401
    assert "device-side assert" in care.reasons[101]
    assert len(care.notes()["ended_processes"]["101"]) == 2


def fork_apart(starts: list[str]) -> Callable[[Session, Path], tuple[str, str]]:
    """`apart._run_apart` by a fork, which is quicker than a new Python."""

    def forked(session: Session, name: Path) -> tuple[str, str]:
        child = os.fork()
        if child == 0:
            status = 2
            try:
                work(session.path, Reporter(quiet=True), name, session.choice())
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        how = (
            signal.Signals(status).name if os.WIFSIGNALED(status) else f"exit status {os.WEXITSTATUS(status)}"
        )
        starts.append(how)
        return how, ""

    return forked


def test_a_row_that_kills_its_process_twice_is_left_out(
    given: dict[str, Any], out: Path, whole: Path, plug: Plug, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[str] = []
    monkeypatch.setattr(apart, "_run_apart", fork_apart(starts))
    me = os.getpid()

    def kill(ids_B_T: np.ndarray) -> None:
        if plug.has_row(ids_B_T):
            assert os.getpid() != me, "this process would have died"
            os.kill(os.getpid(), signal.SIGKILL)

    plug.act = kill
    (out / "datastore/less/1").mkdir(parents=True)
    Trouble(out / "datastore/less/1/shard-00001.trouble.json", deaths=DEATHS).write()
    work(out, QUIET)
    run(recipe(given), out, until="datastore", reporter=QUIET)
    check_left_out(out, whole, reason="(SIGKILL, SIGKILL)")
    assert set(starts) == {"SIGKILL", "exit status 0"}
    assert starts.count("exit status 0") == 1  # the other stores ask for no death of their own
    assert len(starts) <= 6


def test_where_processes_end_over_all_rows_none_is_left_out(
    out: Path, plug: Plug, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[str] = []
    monkeypatch.setattr(apart, "_run_apart", fork_apart(starts))
    plug.act = lambda ids_B_T: os._exit(7)
    (out / "datastore/less/1").mkdir(parents=True)
    Trouble(out / "datastore/less/1/shard-00000.trouble.json", deaths=DEATHS).write()
    with pytest.raises(SiftuneError, match=r"could not make it \(exit status 2\)"):
        work(out, QUIET)
    assert set(starts) == {"exit status 7", "exit status 2"}
    assert "row left out" not in [event["event"] for event in read_events(out / "log.jsonl")]
    assert not list(out.glob("datastore/less/1/shard-*.safetensors"))


PLUGGED = """
import os
import numpy as np
from siftune.gradients.features import FeatureExtractor
POISON, made = {poison}, FeatureExtractor.__call__
def call(self, ids_B_T, trained_B_T, kind):
    if any(ids[:len(POISON)].tolist() == POISON for ids in ids_B_T):
        os._exit(1)
    return made(self, ids_B_T, trained_B_T, kind)
FeatureExtractor.__call__ = call
"""


def test_on_the_command_line_a_worker_outlives_the_row(whole: Path, tmp_path: Path, plug: Plug) -> None:
    """Two deaths before, and a third claim of a dead process: a worker takes it over, goes on with the search, and ends well."""
    (tmp_path / "plug").mkdir()
    (tmp_path / "plug/sitecustomize.py").write_text(
        PLUGGED.format(poison=plug.row.tolist()), encoding="utf-8"
    )
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    folder, pool = out / "datastore/less/1", Pool(out / "pool")
    shard = pool.plan.shards[SHARD]
    (folder / f"{shard.name}.safetensors").unlink()
    batches = token_batches([len(ids) for ids in pool.token_rows(shard).token_ids], pool.plan.batch_tokens)
    batch = next(batch for batch in batches if ROW - shard.start in batch)
    searched = {str(ROW): ["SIGSEGV"]}
    while len(batch) > 1:
        searched[" ".join(str(shard.start + i) for i in batch)] = ["SIGSEGV"]
        halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        batch = next(half for half in halves if ROW - shard.start in half)
    Trouble(folder / f"{shard.name}.trouble.json", deaths=DEATHS - 1, ended=searched).write()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (folder / f"{shard.name}.claim").write_text(f"{_here()} {ended.pid}\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "plug"), *sys.path])}
    command = [sys.executable, "-m", "siftune", "worker", str(out), "--quiet"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "processes died over datastore/less/1/shard-00001" in found.stderr
    assert "Traceback" not in found.stderr
    notes = shard_notes(folder, shard)
    assert notes
    assert notes["without_feature"] == {
        str(ROW): "the process that computes it ends (SIGSEGV, exit status 1)"
    }
    others = np.arange(len(shard)) != ROW - shard.start
    features = [
        restored(read_shard(path / "datastore/less/1", shard)).numpy()[others] for path in (out, whole)
    ]
    assert features[0].tobytes() == features[1].tobytes()
    assert not list(out.rglob("*.trouble.json"))


def test_it_is_said_that_batches_are_halved(out: Path, whole: Path, plug: Plug) -> None:
    def fail(ids_B_T: np.ndarray) -> None:
        if len(ids_B_T) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    plug.act = fail
    screen = StringIO()
    work(out, Reporter(console=Console(file=screen, width=200)))
    assert screen.getvalue().count("made in halves") == 3  # once a store
    folder = Path("datastore/rds+/0")
    for shard in Pool(out / "pool").plan.shards:
        notes = shard_notes(out / folder, shard)
        assert notes
        assert notes["batches_halved"] > 0
        found, undisturbed = (read_shard(path / folder, shard)["features"].numpy() for path in (out, whole))
        np.testing.assert_allclose(found, undisturbed, atol=1e-6)
    assert "batch halved" in [event["event"] for event in read_events(out / "log.jsonl")]


def made(folder: Path, shard: Shard, number: int = 0) -> None:
    write_shard(folder, shard, {"row": torch.arange(shard.start, shard.stop) + number}, {})


def dead_claim(folder: Path, shard: Shard) -> Path:
    claim = folder / f"{shard.name}.claim"
    claim.write_text("elsewhere 1\n", encoding="utf-8")
    os.utime(claim, (time.time() - claims.EXPIRY - 1,) * 2)
    return claim


def test_deaths_over_a_shard_are_counted_until_it_is_made(tmp_path: Path) -> None:
    shard = PLAN.shards[0]
    for deaths in (1, 2):
        dead_claim(tmp_path, shard)
        shards = shards_to_make(tmp_path, PLAN)
        assert next(shards) == shard
        assert Trouble.of(tmp_path, shard).deaths == deaths
        shards.close()  # an orderly end, as by Ctrl-C, is no death
        assert not list(tmp_path.glob("*.claim"))
    for each in shards_to_make(tmp_path, PLAN):
        made(tmp_path, each)
    assert sorted({file.suffix for file in tmp_path.iterdir()}) == [".json", ".safetensors"]
    assert len(list(tmp_path.iterdir())) == 2 * len(PLAN.shards)


def test_a_process_that_slept_past_its_claim_disturbs_nobody(tmp_path: Path) -> None:
    shard = PLAN.shards[0]
    shards = shards_to_make(tmp_path, PLAN)
    assert next(shards) == shard
    claim = tmp_path / f"{shard.name}.claim"
    claim.write_text("elsewhere 1\n", encoding="utf-8")  # taken over while this process slept
    made(tmp_path, shard)
    before = digests(tmp_path, ".")
    made(tmp_path, shard, number=1)  # its own commit comes late
    assert digests(tmp_path, ".") == before
    next(shards)
    assert claim.read_text(encoding="utf-8") == "elsewhere 1\n"
    shards.close()


def test_a_run_that_starts_leaves_what_workers_are_writing(tmp_path: Path) -> None:
    folder = tmp_path / "datastore/less/1"
    folder.mkdir(parents=True)
    parts = {}
    for shard in PLAN.shards:
        parts[shard.number] = folder / f".{shard.name}.safetensors.77.part"
        parts[shard.number].write_text("", encoding="utf-8")
    (folder / f"{PLAN.shards[0].name}.claim").write_text("elsewhere 1\n", encoding="utf-8")
    dead_claim(folder, PLAN.shards[1])
    made(folder, PLAN.shards[2])
    claim = dead_claim(folder, PLAN.shards[2])
    Trouble.of(folder, PLAN.shards[2]).died()
    with locked(tmp_path):
        assert [number for number, part in parts.items() if part.exists()] == [0]
        assert not claim.exists()
        assert not Trouble.of(folder, PLAN.shards[2]).file.exists()
        assert (folder / f"{PLAN.shards[1].name}.claim").exists()  # who takes it over counts the death


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_claim_that_cannot_be_written_is_told(
    code: int, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse(path: Any, *rest: Any, **named: Any) -> int:
        if str(path).endswith(".claim"):
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, *rest, **named)

    monkeypatch.setattr(claims.os, "open", refuse)
    with pytest.raises(SiftuneError, match=r"shard-00000.claim: .*(disk is full|cannot be written)"):
        next(iter(shards_to_make(out / "datastore/less/1", Pool(out / "pool").plan)))
    found = CliRunner().invoke(app, ["worker", str(out), "--quiet"])
    assert found.exit_code == 2
    assert "error: " in found.output
    assert "shard-00000.claim" in found.output.replace("\n", "")
