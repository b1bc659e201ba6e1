"""kill -9 in every stage, then the same command again: the bytes are those of a run that nobody disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline_helpers import LASTING, digests, write_inputs

# A file (glob below the run directory) whose appearance shows that a stage is under way, in the order of a run
MOMENTS = (
    "pool/shard-00001.arrow",
    "checkpoints/warmup.json",
    "checkpoints/.trainer/checkpoint-*",
    "checkpoints/1",
    "datastore/less/1/.shard-00002.*.part",
    "datastore/less/2/shard-00001.safetensors",
    "targets/sums/features/2.safetensors",
    "selections/sums/.s*.part",
)
SECONDS = 120


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # Features wide enough that writing a shard takes a moment in which to be killed
    return {**write_inputs(tmp_path_factory.mktemp("inputs")), "features": 65_536, "keep": "5%"}


def start(recipe_file: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "siftune",
        "run",
        "--recipe",
        str(recipe_file),
        "--out",
        str(out),
        "--quiet",
    ]
    return subprocess.Popen(
        command,
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
    process = start(recipe_file, out)
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


def test_ctrl_c_says_how_to_go_on(given: dict[str, Any], tmp_path: Path) -> None:
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(given), encoding="utf-8")
    out = tmp_path / "run"
    process = start(recipe_file, out)
    while process.poll() is None and not any(out.glob("datastore/less/1/*.safetensors")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert b"go on with the same command" in text
    assert b"Traceback" not in text
    assert str(out).encode() in text
