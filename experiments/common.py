"""What the experiments share: the real data, the demo's model, runs through the command line, results without paths."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TASKS = ("gsm8k", "banking77", "bbh", "mmlu")
TRAINING = {"epochs": 3, "learning_rate": 5e-4}
PROOF = (
    "--epochs",
    str(TRAINING["epochs"]),
    "--learning-rate",
    str(TRAINING["learning_rate"]),
    "--no-generate",
)
"""How choices are trained: three epochs of 100 rows in steps of 6. The model can't generate these answers, so losses are measured."""


def siftune(*arguments: str) -> None:
    """Run siftune with one thread, so that figures don't depend on what else the machine does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "siftune", *arguments], check=True, env=environment)


def script(name: str, *arguments: str) -> None:
    """Run a script of this folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(HERE / name), *arguments], check=True, env=environment)


def warmed_up(data: Path, work: Path, name: str = "run", *settings: str) -> Path:
    """A run of pool_2k and the four targets with its checkpoints (default warm-up: 128 rows, 4 epochs), or with other settings under another name."""
    from siftune.demo.model import demo_model

    run = work / name
    targets = [f"{task}={data / 'targets' / task / 'fewshot.jsonl'}" for task in TASKS]
    siftune(
        "run", "--out", str(run), "--model", str(demo_model()), "--pool", str(data / "pool_2k.jsonl"), "--target", *targets,
        "--method", "less", "--keep", "5%", "--threads", "1", "--batch-tokens", "512", "--until", "warmup", *settings,
    )  # fmt: skip
    return run


def with_directions(run: Path, checkpoints: list[int], kinds: list[str]) -> dict[str, Path]:
    """Runs beside `run` with features in these directions under these checkpoints alone."""
    for number in checkpoints:
        script("directions.py", str(run), str(number), *kinds)
    return {kind: run.with_name(f"{run.name}-{kind}") for kind in kinds}


def test_files(work: Path, part: str, tasks: tuple[str, ...]) -> list[str]:
    """`--test` of a part of the tests (parts.py)."""
    return [
        word for task in tasks for word in ("--test", f"{task}={work / 'parts' / part / f'{task}.jsonl'}")
    ]


def keep_results(run: Path, folder: Path, tasks: tuple[str, ...] = TASKS, more: str = "") -> None:
    """Copy a comparison's figures and plots into the repository, paths left out. more: of the file names of another comparison, of which no plot is kept"""
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        found = json.loads((run / "proof" / task / "comparison.json").read_text(encoding="utf-8"))
        found = {**stamp(), **found, "file": Path(found["file"]).name, "model": Path(found["model"]).name}
        (folder / f"{task}{more}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if not more:
            shutil.copy(run / "proof" / task / "comparison.svg", folder / f"{task}.svg")


def stamp() -> dict[str, Any]:
    """Date and commit of a result."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True
        ).stdout.strip()

    changed = "+changes" if git("status", "--porcelain", "--", "../src") else ""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "--short", "HEAD") + changed,
    }
