"""kill -9 in every stage and in a comparison, then the same command again: the bytes are those of a run that nobody disturbed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline_helpers import LASTING, digests, target_rows, write_inputs, write_rows
from siftune.pipeline.comparing import Comparison, compare
from siftune.pipeline.run import run
from siftune.records.recipe import make_recipe

# A file (glob below the run directory) whose appearance shows that a stage is under way, in the order of a run
MOMENTS = (
    "pool/shard-00001.arrow",
    "checkpoints/warmup.json",
    "checkpoints/.trainer/checkpoint-*",
    "checkpoints/1",
    "datastore/less/1/.shard-00002.*.part",
    "datastore/less/2/shard-00001.safetensors",
    "datastore/rds+/0/shard-00001.safetensors",
    "selections/sums/.s*.part",
)
SECONDS = 120


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # Features wide enough that writing a shard takes a moment in which to be killed
    return {
        **write_inputs(tmp_path_factory.mktemp("inputs")),
        "method": "blend",
        "features": 65_536,
        "keep": "5%",
    }


def start(recipe_file: Path, out: Path) -> subprocess.Popen[bytes]:
    return start_command("run", "--recipe", str(recipe_file), "--out", str(out))


def start_command(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "siftune", *arguments, "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(recipe_file: Path, out: Path) -> None:
    process = start(recipe_file, out)
    text, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, text.decode()


def kill_at(moment: str, recipe_file: Path, out: Path) -> bool:
    """Start a run and kill it as soon as something matches `moment`; whether it was still running then."""
    return killed_at(moment, start(recipe_file, out), out)


def killed_at(moment: str, process: subprocess.Popen[bytes], out: Path) -> bool:
    end = time.monotonic() + SECONDS
    while process.poll() is None and not any(out.glob(moment)):
        assert time.monotonic() < end, f"{moment} never came"
        time.sleep(0.001)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    text, _ = process.communicate()
    assert killed or process.returncode == 0, text.decode()
    return killed


def test_a_run_killed_in_every_stage_ends_with_the_bytes_of_an_undisturbed_one(
    given: dict[str, Any], tmp_path: Path
) -> None:
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(given), encoding="utf-8")
    finish(recipe_file, tmp_path / "undisturbed")
    out = tmp_path / "killed"
    killed = [kill_at(moment, recipe_file, out) for moment in MOMENTS]
    finish(recipe_file, out)
    assert digests(out, *LASTING) == digests(tmp_path / "undisturbed", *LASTING)
    assert (out / "quarantine.jsonl").read_bytes() == (
        tmp_path / "undisturbed" / "quarantine.jsonl"
    ).read_bytes()
    assert not list(out.rglob("*.part"))
    assert sum(killed) >= len(MOMENTS) - 2  # the two moments of a few milliseconds may be missed


def test_a_comparison_killed_in_a_training_ends_with_the_bytes_of_an_undisturbed_one(
    given: dict[str, Any], tmp_path: Path
) -> None:
    test = str(write_rows(tmp_path / "test.jsonl", target_rows(4, seed=5)))
    out, whole = tmp_path / "run", tmp_path / "undisturbed"
    run(make_recipe({**given, "method": "bm25"}), out)
    shutil.copytree(out, whole)
    compare(whole, Comparison(tests={"sums": test}, methods=("bm25",), seeds=1))
    command = ["compare", str(out), "--test", f"sums={test}", "--methods", "bm25", "--seeds", "1"]
    moment = "proof/trained/*/checkpoints/.trainer/checkpoint-*"
    assert killed_at(moment, start_command(*command), out)
    assert not (out / "proof/sums").exists()
    process = start_command(*command)
    text, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, text.decode()
    assert digests(out, "proof/sums") == digests(whole, "proof/sums")
    adapters = [
        {name: digest for name, digest in digests(path, "proof/trained").items() if "/adapter/" in name}
        for path in (out, whole)
    ]
    assert adapters[0] == adapters[1]
    assert not list(out.glob("proof/trained/*/checkpoints"))


def test_ctrl_c_says_how_to_go_on(given: dict[str, Any], tmp_path: Path) -> None:
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(given), encoding="utf-8")
    out = tmp_path / "run"
    process = start(recipe_file, out)
    while process.poll() is None and not (out / "checkpoints" / "1").exists():
        time.sleep(0.01)
    while (
        process.poll() is None
    ):  # Python loses one that falls into a library's clean-up; a person presses again
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(3)
    text, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert b"go on with the same command" in text
    assert b"Traceback" not in text
    assert str(out).encode() in text
