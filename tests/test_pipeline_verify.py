"""`siftune datastore verify` on a whole run: nothing of it can be changed, cut or removed without being named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline_helpers import pool_rows, recipe, write_inputs, write_rows
from siftune.pipeline.progress import Reporter
from siftune.pipeline.run import append, run, select
from siftune.pipeline.verifying import verify_run

QUIET = Reporter(quiet=True)
N = 60


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a row in quarantine, two selections, and rows that came after the first of them."""
    folder = tmp_path_factory.mktemp("inputs")
    settings = write_inputs(folder) | {"epochs": 1, "shard_rows": 30, "rank": 2, "features": 64}
    rows = pool_rows(N, 8)
    rows[3]["messages"] = []
    rows[4]["_siftune"], rows[5]["extra"] = {"row": 1}, {"nan": float("nan")}
    write_rows(folder / "pool.jsonl", rows)
    out = folder / "run"
    run(recipe(settings, repeats=True, keep="100%"), out, reporter=QUIET)
    append(out, [str(write_rows(folder / "more.jsonl", pool_rows(10, 2, seed=5)))], reporter=QUIET)
    run(recipe(settings), out, until="influence", reporter=QUIET)
    select(out, {"keep": "5", "name": "few"}, reporter=QUIET)
    return out


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "run"))


def test_a_sound_run_is_sound(done: Path) -> None:
    found = verify_run(done)
    assert found.faults == []
    kept = [f for f in done.rglob("*") if f.is_file() and not f.name.startswith(".")]
    side_cars = [f for f in kept if f.suffix == ".json" and any(f.with_suffix(e) in kept for e in SHARDS)]
    assert found.n_files == len(kept) - len(side_cars) - len({"log.jsonl"})


SHARDS = (".arrow", ".safetensors")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_last_line(file: Path) -> None:
    file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]))


FILES = [
    "recipe.yaml",
    "pool/plan.json",
    "pool/index.parquet",
    "quarantine.jsonl",
    "checkpoints/manifest.json",
    "checkpoints/warmup.json",
    "checkpoints/1/checkpoint.json",
    "checkpoints/1/adapter_config.json",
    "checkpoints/1/adapter_model.safetensors",
    "checkpoints/1/adam_state.safetensors",
    "datastore/less/1/manifest.json",
    "targets/sums/target.json",
    "targets/sums/rows.jsonl",
    "targets/sums/features/1.safetensors",
    "selections/sums/selection.json",
    "selections/sums/scores.parquet",
    "selections/few/selected.jsonl",
]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_cut_is_named(copy: Path, name: str) -> None:
    halve(copy / name)
    assert copy / name in [fault.file for fault in verify_run(copy).faults]


@pytest.mark.parametrize("name", [name for name in FILES if name != "pool/plan.json"])
def test_a_file_that_is_gone_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert copy / name in [fault.file for fault in verify_run(copy).faults]


def rewritten(file: Path, change: Callable[[dict], object]) -> None:
    """A JSON or YAML file, or the first line of a file of JSON lines, with a change in it."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        first, rest = text.split("\n", 1)
        value = json.loads(first)
        change(value)
        file.write_text(json.dumps(value) + "\n" + rest, encoding="utf-8")
        return
    value = yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)
    change(value)
    file.write_text(yaml.safe_dump(value) if file.suffix == ".yaml" else json.dumps(value))


def in_table(name: str, value: object) -> Callable[[Path], object]:
    def change(file: Path) -> None:
        table = pq.read_table(file)
        column = table[name].to_pylist()
        column[7] = value
        place = table.schema.get_field_index(name)
        pq.write_table(table.set_column(place, name, pa.array(column, table.schema.field(name).type)), file)

    return change


def in_json(change: Callable[[dict], object]) -> Callable[[Path], object]:
    return lambda file: rewritten(file, change)


CHANGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("pool/plan.json", in_json(lambda j: j["shards"][1].update(start=29)), "don't follow one another"),
    ("pool/index.parquet", in_table("n_tokens", 1), "n_tokens are not what the pool says"),
    ("pool/index.parquet", in_table("fingerprint", "0" * 32), "fingerprint are not what the pool says"),
    ("pool/index.parquet", in_table("status", "quarantined"), "reason are not what the pool says"),
    ("pool/index.parquet", lambda f: pq.write_table(pq.read_table(f).slice(1), f), "it has 69 rows"),
    ("quarantine.jsonl", lambda f: f.write_text(""), "has other rows than the index"),
    ("checkpoints/1/checkpoint.json", in_json(lambda j: j.update(step=99)), "is not what recipe.yaml says"),
    (
        "checkpoints",
        lambda f: rewritten(f / "1/checkpoint.json", lambda j: j.update(weight=0.9)),
        "add up to 0.9",
    ),
    ("recipe.yaml", in_json(lambda j: j.update(features="many")), "is damaged"),
    ("datastore/less/1/manifest.json", in_json(lambda j: j.update(model="x")), "is of another model"),
    ("datastore/less/1/manifest.json", in_json(lambda j: j.update(batch_tokens=7)), "another batch tokens"),
    ("targets/sums/rows.jsonl", in_json(lambda j: j["messages"][0].update(content="?")), "has other rows"),
    ("targets/sums/rows.jsonl", without_last_line, "has other rows"),
    ("targets/sums/target.json", in_json(lambda j: j.update(digest="0" * 32)), "is damaged: its digest"),
    ("selections/sums/selection.json", in_json(lambda j: j["settings"].update(pool_rows=70)), "another pool"),
    ("selections/sums/selected.jsonl", without_last_line, "were chosen"),
    ("selections/sums/selected.jsonl", in_json(lambda j: j["extra"].update(i=-1)), "is not the pool's"),
    (
        "selections/sums/selected.jsonl",
        in_json(lambda j: j["_siftune"].update(score=2.0)),
        "scores.parquet says",
    ),
    ("selections/few/scores.parquet", in_table("id", "another"), "id are not what the pool says"),
    ("selections/few/scores.parquet", lambda f: pq.write_table(pq.read_table(f).slice(1), f), "has 69 rows"),
    ("report.json", halve, "is not JSON"),
]


@pytest.mark.parametrize(("name", "harm", "what"), CHANGES, ids=[f"{n} {w}" for n, _, w in CHANGES])
def test_what_was_changed_but_can_be_read_is_named(
    copy: Path, name: str, harm: Callable[[Path], object], what: str
) -> None:
    if name == "report.json":
        (copy / name).write_text("{}")
    harm(copy / name)
    (fault,) = [fault for fault in verify_run(copy).faults if fault.file == copy / name]
    assert what in fault.what


def test_rows_of_a_flipped_byte_are_those_that_rest_on_it(copy: Path) -> None:
    """The pool's shard alone is named, not the selection that can't be compared with it for that."""
    flip(copy / "pool/shard-00001.arrow")
    assert [(f.file.name, f.start, f.stop) for f in verify_run(copy).faults if "SHA" in f.what] == [
        ("shard-00001.arrow", 30, 60)
    ]


def test_a_run_that_has_only_begun_is_sound(tmp_path: Path) -> None:
    settings = write_inputs(tmp_path) | {"shard_rows": 100}
    run(recipe(settings), tmp_path / "run", until="pool", reporter=QUIET)
    assert verify_run(tmp_path / "run").faults == []
