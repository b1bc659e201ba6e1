"""Hostile run directories: what a command reads of a run that somebody else made is an error in a sentence, wherever it is wrong."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hostile_helpers import UNPRINTABLE, check_told, command
from safetensors.torch import load_file, save_file

from pipeline_helpers import pool_rows, recipe, write_inputs, write_rows
from siftune.pipeline.progress import Reporter
from siftune.pipeline.run import run

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied."""
    folder = tmp_path_factory.mktemp("made")
    settings = write_inputs(folder) | {"epochs": 1, "features": 64, "shard_rows": 20, "workers": 1}
    write_rows(folder / "pool.jsonl", pool_rows(40, 8))
    run(recipe(settings), folder / "run", reporter=Reporter(quiet=True))
    return folder / "run"


def text(file: str, content: str) -> Damage:
    return lambda run: (run / file).write_text(content, encoding="utf-8")


def raw(file: str, content: bytes) -> Damage:
    return lambda run: (run / file).write_bytes(content)


def fields(file: str, **changes: Any) -> Damage:
    """Changes to a JSON object in the run."""

    def change(run: Path) -> None:
        (run / file).write_text(json.dumps(json.loads((run / file).read_text()) | changes))

    return change


def inside(file: str, part: str, **changes: Any) -> Damage:
    def change(run: Path) -> None:
        found = json.loads((run / file).read_text())
        found[part] |= changes
        (run / file).write_text(json.dumps(found))

    return change


def without(file: str, part: str, key: str) -> Damage:
    def change(run: Path) -> None:
        found = json.loads((run / file).read_text())
        del (found[part] if part else found)[key]
        (run / file).write_text(json.dumps(found))

    return change


def shard(number: int, **changes: Any) -> Damage:
    """Changes to a shard of the plan."""

    def change(run: Path) -> None:
        found = json.loads((run / PLAN).read_text())
        found["shards"][number] |= changes
        (run / PLAN).write_text(json.dumps(found))

    return change


def instead(file: str, make: Callable[[Path], object]) -> Damage:
    def change(run: Path) -> None:
        (run / file).unlink()
        make(run / file)

    return change


def forged(file: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Damage:
    """Other tensors, under a side-car that vouches for them."""

    def forge(run: Path) -> None:
        path = run / file
        save_file(change(load_file(path)), path)
        vouch(path)

    return forge


def vouch(path: Path) -> None:
    notes = json.loads(path.with_suffix(".json").read_text())
    data = path.read_bytes()
    notes |= {"bytes": len(data), "crc32": f"{zlib.crc32(data):08x}"}
    path.with_suffix(".json").write_text(json.dumps(notes))


def vouched(file: str, content: bytes) -> Damage:
    return lambda run: ((run / file).write_bytes(content), vouch(run / file))


def table(file: str, change: Callable[[pa.Table], pa.Table]) -> Damage:
    return lambda run: pq.write_table(change(pq.read_table(run / file)), run / file)


def arrow(change: Callable[[pa.Table], pa.Table]) -> Damage:
    """Another pool shard under the same digest."""

    def forge(run: Path) -> None:
        path = run / "pool/shard-00000.arrow"
        with pa.OSFile(str(path), "rb") as source, pa.ipc.open_file(source) as reader:
            old = reader.read_all()
        new = change(old)
        new = new.replace_schema_metadata(old.schema.metadata)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, new.schema) as writer:
            writer.write_table(new)

    return forge


def other(column: str, values: Any, kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.schema.get_field_index(column), column, pa.array(values(len(t)), kind))


PLAN, INDEX = "pool/plan.json", "pool/index.parquet"
STORE, MANIFEST = "datastore/less/1/shard-00000.safetensors", "datastore/less/1/manifest.json"
TARGET, ROWS = "targets/sums/target.json", "targets/sums/rows.jsonl"
ASKED = "targets/sums/features/1.safetensors"
INFLUENCE = "targets/sums/influence/1/shard-00000.safetensors"
CHOSEN, SCORES = "selections/sums/selection.json", "selections/sums/scores.parquet"
FACTS = "checkpoints/1/checkpoint.json"
SELECT = ("select", "RUN", "--keep", "3", "--name", "three", "--method", "less", "--quiet")
CENTRE = (*SELECT, "--centre")
REPORT = ("report", "RUN", "--quiet")
VERIFY = ("datastore", "verify", "RUN")
EXPORT = ("datastore", "export", "RUN", "--to", "OUT", "--checkpoint", "1")
DEEP = "[" * 100_000
HEADER = (2**62).to_bytes(8, "little") + b"{}"

CASES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    # the plan
    "plan: a list": (text(PLAN, "[]"), SELECT),
    "plan: deep": (text(PLAN, DEEP), VERIFY),
    "plan: bytes": (raw(PLAN, bytes(range(256))), REPORT),
    "plan: a pipe": (instead(PLAN, os.mkfifo), SELECT),
    "plan: a device": (instead(PLAN, lambda p: p.symlink_to("/dev/zero")), SELECT),
    "plan: a folder": (instead(PLAN, Path.mkdir), SELECT),
    "plan: shards as text": (fields(PLAN, shards="x"), SELECT),
    "plan: shards of numbers": (fields(PLAN, shards=[1]), VERIFY),
    "plan: a negative range": (shard(0, start=-20), SELECT),
    "plan: a range backwards": (shard(0, start=20, stop=0), SELECT),
    "plan: a gap": (shard(1, start=25), VERIFY),
    "plan: a quadrillion rows": (shard(1, stop=10**15), SELECT),
    "plan: rows without end": (lambda r: text(PLAN, (r / PLAN).read_text().replace(": 40", ": Infinity"))(r), SELECT),
    "plan: rows of 9999 digits": (lambda r: text(PLAN, (r / PLAN).read_text().replace(": 40", f": {'4' * 9999}"))(r), SELECT),
    "plan: more rows than the shard": (shard(1, stop=45), SELECT),
    "plan: fewer rows than the shard": (shard(1, stop=35), REPORT),
    "plan: a digest with a path": (shard(0, digest="../../../etc/passwd"), SELECT),
    "plan: no tokens in a batch": (fields(PLAN, batch_tokens=0), SELECT),
    "plan: tokens as text": (fields(PLAN, batch_tokens="x"), SELECT),
    "plan: sources as number": (fields(PLAN, sources=1), SELECT),
    # the pool and its index
    "pool: cut off": (lambda r: raw("pool/shard-00000.arrow", (r / "pool/shard-00000.arrow").read_bytes()[:200])(r), REPORT),
    "pool: text": (text("pool/shard-00000.arrow", "x"), REPORT),
    "pool: a pipe": (instead("pool/shard-00000.arrow", os.mkfifo), REPORT),
    "pool: a column less": (arrow(lambda t: t.drop_columns(["columns"])), REPORT),
    "pool: a column of another type": (arrow(other("messages", lambda n: range(n))), REPORT),
    "pool: a row less": (arrow(lambda t: t.slice(1)), REPORT),
    "index: text": (text(INDEX, "x"), SELECT),
    "index: a pipe": (instead(INDEX, os.mkfifo), SELECT),
    "index: of another table": (lambda r: pq.write_table(pa.table({"a": [1]}), r / INDEX), SELECT),
    "index: a row less": (table(INDEX, lambda t: t.slice(1)), SELECT),
    "index: twice as long": (table(INDEX, lambda t: pa.concat_tables([t, t])), SELECT),
    "index: a column less": (table(INDEX, lambda t: t.drop_columns(["fingerprint"])), SELECT),
    "index: lengths as text": (table(INDEX, other("n_tokens", lambda n: ["x"] * n)), SELECT),
    "index: all in quarantine": (table(INDEX, other("status", lambda n: ["quarantined"] * n)), SELECT),
    # the datastore
    "manifest: a list": (text(MANIFEST, "[]"), SELECT),
    "manifest: deep": (text(MANIFEST, DEEP), EXPORT),
    "manifest: a pipe": (instead(MANIFEST, os.mkfifo), SELECT),
    "shard: bytes changed": (raw(STORE, b"x" * 100), EXPORT),
    "shard: huge header, vouched for": (vouched(STORE, HEADER), EXPORT),
    "shard: nothing, vouched for": (vouched(STORE, b""), EXPORT),
    "shard: huge header, asked for its norms": (vouched(STORE, HEADER), SELECT),
    "shard: fewer rows": (forged(STORE, lambda t: {k: v[1:].clone() if v.dim() else v for k, v in t.items()}), EXPORT),
    "shard: no norms": (forged(STORE, lambda t: {k: v for k, v in t.items() if k != "grad_norm"}), SELECT),
    "shard: norms in a table": (forged(STORE, lambda t: t | {"grad_norm": torch.zeros(20, 2)}), SELECT),
    "side-car: a list": (text(STORE.replace("safetensors", "json"), "[]"), EXPORT),
    "side-car: deep": (text(STORE.replace("safetensors", "json"), DEEP), EXPORT),
    "side-car: a pipe": (instead(STORE.replace("safetensors", "json"), os.mkfifo), EXPORT),
    "side-car: types": (fields(STORE.replace("safetensors", "json"), bytes="x", digest=[1]), EXPORT),
    "side-car: no checksum": (lambda r: [without(STORE.replace("safetensors", "json"), "", k)(r) for k in ("crc32", "sha256")], EXPORT),
    "influence: fewer targets": (vouched(INFLUENCE, HEADER), SELECT),
    "influence: fewer rows": (forged(INFLUENCE, lambda t: {"influence": t["influence"][1:].clone()}), SELECT),
    # targets
    "target: a list": (text(TARGET, "[]"), SELECT),
    "target: deep": (text(TARGET, DEEP), SELECT),
    "target: a pipe": (instead(TARGET, os.mkfifo), SELECT),
    "target: another field": (fields(TARGET, path="/etc"), SELECT),
    "target: rows as text": (fields(TARGET, subtask_V="abcdef"), SELECT),
    "target: rows of numbers": (fields(TARGET, subtask_V=[1] * 6), SELECT),
    "target: a subtask less": (fields(TARGET, subtask_V=["a"]), SELECT),
    "target: no rows": (fields(TARGET, subtask_V=[], fingerprint_V=[]), SELECT),
    "target: a digest of null": (fields(TARGET, digest=None), SELECT),
    "target rows: broken": (text(ROWS, "{\n"), REPORT),
    "target rows: deep": (text(ROWS, DEEP), REPORT),
    "target rows: numbers": (text(ROWS, "1\n2\n"), REPORT),
    "target rows: others": (text(ROWS, '{"id": "a", "where": "b", "subtask": "c", "tools": null, "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}\n'), REPORT),
    "target rows: bytes": (raw(ROWS, b"\xff\xfe"), REPORT),
    "target features: changed": (raw(ASKED, b"x"), CENTRE),
    "target features: vouched for": (vouched(ASKED, HEADER), CENTRE),
    "target features: fewer": (forged(ASKED, lambda t: t | {"features": t["features"][1:].clone()}), CENTRE),
    "target features: none": (forged(ASKED, lambda t: {"x": torch.zeros(1)}), CENTRE),
    # checkpoints
    "checkpoint: a list": (text(FACTS, "[]"), SELECT),
    "checkpoint: a weight as text": (fields(FACTS, weight="x"), SELECT),
    "checkpoint: no weight": (without(FACTS, "", "weight"), SELECT),
    "checkpoint: deep": (text(FACTS, DEEP), SELECT),
    # selections
    "selection: a list": (text(CHOSEN, "[]"), REPORT),
    "selection: settings as text": (fields(CHOSEN, settings="x"), REPORT),
    "selection: settings of nobody": (fields(CHOSEN, settings={}), REPORT),
    "selection: summary as list": (fields(CHOSEN, summary=[]), REPORT),
    "selection: deep": (text(CHOSEN, DEEP), REPORT),
    "selection: a pipe": (instead(CHOSEN, os.mkfifo), REPORT),
    "selection: a target that leaves the run": (inside(CHOSEN, "settings", target="../../../../etc"), REPORT),
    "scores: text": (text(SCORES, "x"), REPORT),
    "scores: a pipe": (instead(SCORES, os.mkfifo), REPORT),
    "scores: of another table": (lambda r: pq.write_table(pa.table({"a": [1]}), r / SCORES), REPORT),
    "scores: text for numbers": (table(SCORES, other("score", lambda n: ["x"] * n)), REPORT),
    "scores: rows backwards": (table(SCORES, lambda t: t.take(np.arange(len(t))[::-1])), REPORT),
    # the recipe and the log
    "recipe: code": (text("recipe.yaml", "keep: !!python/object/apply:os.system ['true']"), REPORT),
    "recipe: code in made_with": (text("recipe.yaml", "made_with: !!python/name:os.system"), SELECT),
    "recipe: a list": (text("recipe.yaml", "[]"), VERIFY[:0] + REPORT),
    "recipe: made_with as text": (text("recipe.yaml", "made_with: x"), REPORT),
    "recipe: a pipe": (instead("recipe.yaml", os.mkfifo), SELECT),
    "recipe: a name that leaves the run": (text("recipe.yaml", "name: ../../x"), SELECT),
    "recipe: a token": (text("recipe.yaml", f"revision: {TOKEN}"), SELECT),
    "recipe: an escape": (text("recipe.yaml", 'model: "\\e[2J\\e]0;x\\a"\nkeep_: 1'), SELECT),
    # what is asked
    "ask: a target that leaves the run": (lambda r: None, (*SELECT, "--target", "../../x")),
    "ask: a name that leaves the run": (lambda r: None, ("select", "RUN", "--keep", "3", "--name", "../x")),
    "ask: a report of what leaves the run": (lambda r: None, (*REPORT, "--name", "../../etc")),
    "ask: a test that leaves the run": (lambda r: None, (*REPORT, "--test", "../x=FILE")),
    "ask: a test that is a pipe": (lambda r: os.mkfifo(r / "t.jsonl"), (*REPORT, "--test", "t=RUN/t.jsonl")),
    "ask: a method that leaves the run": (lambda r: None, (*EXPORT, "--method", "../../etc")),
    "ask: an export over the run": (lambda r: None, ("datastore", "export", "RUN", "--to", "RUN/pool/plan.json", "--checkpoint", "1")),
    "ask: an export into nothing": (lambda r: None, ("datastore", "export", "RUN", "--to", "/proc/x.npy", "--checkpoint", "1")),
    "ask: a negative checkpoint": (lambda r: None, ("datastore", "export", "RUN", "--to", "OUT", "--checkpoint", "-1")),
    "ask: a recipe of another run as target": (lambda r: None, ("score", "RUN", "--target", "x=RUN/recipe.yaml", "--quiet")),
    "ask: a target that is a device": (lambda r: None, ("score", "RUN", "--target", "x=/dev/zero", "--quiet")),
    "ask: more of a pool that is a pipe": (lambda r: os.mkfifo(r / "m.jsonl"), ("append", "RUN", "--pool", "RUN/m.jsonl", "--quiet")),
    "ask: a comparison with a pipe": (lambda r: os.mkfifo(r / "t.jsonl"), ("compare", "RUN", "--test", "t=RUN/t.jsonl", "--quiet")),
    "ask: a comparison that leaves the run": (lambda r: None, ("compare", "RUN", "--test", "../t=RUN/recipe.yaml", "--quiet")),
    "ask: a comparison of rows without answers": (
        text("t.jsonl", '{"question": "x"}\n'), ("compare", "RUN", "--test", "t=RUN/t.jsonl", "--quiet")),
    "ask: a comparison by code": (
        text("t.jsonl", '{"question": "x", "answer": "y"}\n'),
        ("compare", "RUN", "--test", "t=RUN/t.jsonl", "--methods", "less:rule=!!python/name:os.system", "--quiet")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_run_is_an_error_in_a_sentence(case: str, made: Path, tmp_path: Path) -> None:
    damage, words = CASES[case]
    copy = shutil.copytree(made, tmp_path / "run")
    damage(copy)
    kept = [str(path) for path in tmp_path.rglob("*") if copy not in path.parents]
    out = str(tmp_path / "x.npy")
    result = command(*(word.replace("RUN", str(copy)).replace("OUT", out) for word in words))
    check_told(result)
    assert TOKEN not in result.output
    assert [str(path) for path in tmp_path.rglob("*") if copy not in path.parents] == kept


LIVED: dict[str, Damage] = {
    "log: broken lines": text("log.jsonl", '{"stage": 1, "seconds": "x"}\n{\n[]\n' + DEEP + "\n\udcff".encode("utf-8", "replace").decode()),
    "log: types": text("log.jsonl", '{"event": 3, "stage": "pool", "seconds": [1], "cpu_seconds": 1, "peak_memory_mib": 1}\n'),
    "log: NaN": text("log.jsonl", '{"event": "stage done", "stage": "pool", "seconds": NaN, "cpu_seconds": 1, "peak_memory_mib": 1}\n'),
    "comparison: a list": lambda r: ((r / "proof/x").mkdir(parents=True), text("proof/x/comparison.json", "[]")(r)),
    "comparison: deep": lambda r: ((r / "proof/x").mkdir(parents=True), text("proof/x/comparison.json", DEEP)(r)),
    "comparison: a pipe": lambda r: ((r / "proof/x").mkdir(parents=True), os.mkfifo(r / "proof/x/comparison.json")),
    "comparison: no test at all": lambda r: ((r / "proof/x").mkdir(parents=True), text("proof/x/comparison.json", '{"file": 3}')(r)),
}  # fmt: skip


@pytest.mark.parametrize("case", LIVED)
def test_what_only_tells_of_the_past_does_not_stop_a_report(case: str, made: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(made, tmp_path / "run")
    LIVED[case](copy)
    result = command(*(word.replace("RUN", str(copy)) for word in REPORT))
    assert result.exit_code == 0, (result.output, result.exception)


VERIFIED: dict[str, Damage] = {
    "side-car: a list": text(STORE.replace("safetensors", "json"), "[]"),
    "side-car: deep": text(STORE.replace("safetensors", "json"), DEEP),
    "side-car: types": fields(STORE.replace("safetensors", "json"), bytes="x"),
    "manifest: a list": text(MANIFEST, "[]"),
    "manifest: a checkpoint of text": fields(MANIFEST, checkpoint="adapter adam"),
    "shard: huge header": raw(STORE, HEADER),
}


@pytest.mark.parametrize("case", VERIFIED)
def test_verify_names_what_is_hostile_and_goes_on(case: str, made: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(made, tmp_path / "run")
    VERIFIED[case](copy)
    result = command(*(word.replace("RUN", str(copy)) for word in VERIFY))
    assert result.exit_code == 1, (result.output, result.exception)
    assert "1 damaged or missing" in result.output


def test_the_one_door_for_code_of_others_says_that_it_is_open(made: Path, tmp_path: Path) -> None:
    test = write_rows(tmp_path / "t.jsonl", [{"question": "x"}])
    words = (
        "compare",
        made,
        "--test",
        f"t={test}",
        "--lm-eval",
        "none",
        "--lm-eval-tasks",
        tmp_path,
        "--quiet",
    )
    result = command(*words)
    assert result.exit_code == 2
    assert "Python code" in result.stderr


def test_a_run_in_a_folder_of_a_hostile_name_says_nothing_to_the_terminal(made: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(made, tmp_path / "\x1b[2J\u202e[red]run")
    raw(STORE, b"x")(copy)
    for words in (
        VERIFY,
        REPORT,
        (*SELECT[:-1],),
        (*EXPORT[:3], "--to", str(copy / "x.npy"), "--checkpoint", "1"),
    ):
        result = command(*(word.replace("RUN", str(copy)) for word in words))
        assert result.exception is None or result.exit_code in (0, 1, 2)
        assert not UNPRINTABLE & set(result.output), words
        assert "\\x1b[2J" in result.output


def test_a_token_reaches_no_file_of_a_run_and_no_message(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "a-token-that-does-not-look-like-one"
    monkeypatch.setenv("HF_TOKEN", secret)
    copy = shutil.copytree(made, tmp_path / "run")
    outputs = [
        command("score", copy, "--target", f"x=owner/{secret}", "--quiet").output,
        command("score", copy, "--target", f"x=https://me:{TOKEN}@hub.example/x", "--quiet").output,
        command("append", copy, "--pool", f"./{TOKEN}.jsonl", "--quiet").output,
        command("select", copy, "--keep", "3", "--name", "n", "--encoder", TOKEN).output,
        command(*(word.replace("RUN", str(copy)) for word in SELECT), "--set", f"revision={TOKEN}").output,
    ]
    kept = [path.read_bytes() for path in copy.rglob("*") if path.is_file()]
    for hidden in (secret, TOKEN):
        assert not any(hidden in output for output in outputs)
        assert not any(hidden.encode() in content for content in kept)
