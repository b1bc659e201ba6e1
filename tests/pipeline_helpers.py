"""A pool with planted rows that teach the target, on a tiny model: small enough to run the whole way in seconds."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from model_helpers import write_tiny_model
from siftune.records.recipe import Recipe, make_recipe

N_PLANTED, N_POOL = 12, 240


def turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def planted(draw: random.Random) -> list[dict[str, str]]:
    a, b = draw.randrange(100), draw.randrange(100)
    return turn(f"add {a} and {b}", f"The answer is {a + b}.")


def other(draw: random.Random) -> list[dict[str, str]]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    question = "".join(draw.choices(letters + " ", k=draw.randrange(5, 25)))
    return turn(question, "".join(draw.choices(letters.upper() + " ", k=draw.randrange(4, 20))) + "x")


def pool_rows(n: int = N_POOL, n_planted: int = N_PLANTED, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = [
        {
            "id": f"row-{seed}-{i}",
            "source": "planted" if i < n_planted else "other",
            "messages": planted(draw) if i < n_planted else other(draw),
            "extra": {"i": i},
        }
        for i in range(n)
    ]
    draw.shuffle(rows)
    return rows


def target_rows(n: int = 6, seed: int = 99) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [{"messages": planted(draw), "subtask": f"kind {i % 2}"} for i in range(n)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_inputs(folder: Path, arch: str = "llama") -> dict[str, Any]:
    """Model, pool and target in `folder`, and the settings of a quick run on them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_model(folder / "model", arch)
    return {
        "model": str(folder / "model"),
        "pool": [str(write_rows(folder / "pool.jsonl", pool_rows()))],
        "target": {"sums": str(write_rows(folder / "target.jsonl", target_rows()))},
        "method": "less",
        "keep": "5%",
        "epochs": 2,
        "rank": 4,
        "alpha": 16.0,
        "learning_rate": 5e-3,
        "warmup_fraction": 0.5,
        "features": 512,
        "dtype": "fp32",
        "threads": 1,
        "shard_rows": 50,
    }


def recipe(settings: dict[str, Any], **changes: Any) -> Recipe:
    return make_recipe({**settings, **changes})


def digests(run: Path, *parts: str) -> dict[str, str]:
    """SHA-256 of every file below some folders of a run: what must not depend on how often it was cut off."""
    return {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for part in parts
        for file in sorted((run / part).rglob("*"))
        if file.is_file()
    }


LASTING = ("pool", "checkpoints", "datastore", "targets", "selections")
