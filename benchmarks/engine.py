"""The price of gradient features against floors and peers: CPU seconds on one thread, every arm in a process of its own.

python benchmarks/engine.py --work bench-work --rows 128 --rounds 5

Rounds are interleaved (all arms once, then all again), so that what the machine does meanwhile meets every arm alike; ratios are
taken inside a round. A measurement that this code made with these settings is not made again: a run that was cut off goes on, and
an arm that failed stays as a row of the table until its file in `--work` is removed. --arms takes the starts of names; --only-table makes the result anew
from what has been measured. The peers need an environment of their own (`make bench` makes it).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import torch

from engine_arms import RANKS, Arm, arms, ratios
from engine_inputs import make_inputs
from engine_page import write_page
from engine_summary import summary
from record import write_result
from siftune.demo.model import MODEL_NAME
from siftune.model.load import choose_dtype

HERE = Path(__file__).parent
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1"}


Found = dict[str, dict[int, dict[str, Any]]]
"""What an arm found, by its name and the number of the round."""


def measure(arm: Arm, job: dict[str, Any], python: str, out: Path, limit: float) -> dict[str, Any]:
    """Run one arm once; what it found, or what went wrong as `error`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    asked = _job_file(out)
    asked.write_text(json.dumps(job), encoding="utf-8")
    command = [python, str(HERE / "arms" / arm.script), str(asked), str(out)]
    with out.with_suffix(".log").open("w") as log:
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **ONE_THREAD, **QUIET},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=limit,
            )
            error = "" if done.returncode == 0 else f"exit {done.returncode}: {_last_line(out)}"
        except subprocess.TimeoutExpired:
            error = f"not done after {limit:g} s"
        except FileNotFoundError:
            error = "its environment has not been made (make bench)"
    if error:
        out.write_text(json.dumps({"error": error}), encoding="utf-8")
    return json.loads(out.read_text(encoding="utf-8"))


def _job_file(out: Path) -> Path:
    return out.with_suffix(".job.json")


def _last_line(out: Path) -> str:
    lines = out.with_suffix(".log").read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def settings_of(arm: Arm, given: argparse.Namespace, model: Path) -> dict[str, Any]:
    """All that the arm's script reads, and nothing else that decides what is measured."""
    inputs = given.inputs
    common = {
        "model": str(model),
        "inputs": str(inputs),
        "rows": min(given.rows, arm.max_rows or given.rows),
        "dtype": given.dtype,
        "batch_tokens": given.batch_tokens,
        "scratch": str(given.work / "scratch"),
        "code": _code(arm),
    }
    tiny = {"model": str(inputs / "tiny")} if arm.settings.get("tiny") else {}
    return {**common, **arm.settings, **tiny}


def measured(given: argparse.Namespace, chosen: list[Arm], model: Path) -> Found:
    """What every arm found in every round; measures what is missing, unless only the table is wanted."""
    found: Found = {arm.name: {} for arm in chosen}
    for number, arm in product(range(given.rounds), chosen):
        job = settings_of(arm, given, model)
        out = given.work / "rounds" / arm.name.replace(" ", "-") / f"{number}.json"
        if out.exists() and json.loads(_job_file(out).read_text(encoding="utf-8")) == job:
            found[arm.name][number] = json.loads(out.read_text(encoding="utf-8"))
        elif not given.only_table:
            python = str(given.peers / "bin" / "python") if arm.peer else sys.executable
            found[arm.name][number] = result = measure(arm, job, python, out, given.limit)
            says = result.get("error") or f"{_a_row(result):.3f} CPU s a row"
            print(f"round {number + 1}/{given.rounds}  {arm.name:<26} {says}", flush=True)
    return found


def _code(arm: Arm) -> str:
    """A digest of the code that measures an arm and, but for the peers', of the rooms of siftune that it is in."""
    files = [HERE / "arms" / name for name in ("adapted.py", "clock.py", "rows.py", arm.script)]
    rooms = [] if arm.peer else ["chat", "datastore", "gradients", "model", "records"]
    files += [file for room in rooms for file in sorted((HERE.parent / "src/siftune" / room).glob("*.py"))]
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _a_row(result: dict[str, Any]) -> float:
    return result["cpu_seconds"]["gradients"] / result["rows"]


def main() -> None:
    given = _arguments().parse_args()
    given.work = given.work.absolute()
    given.inputs = given.work / ("inputs-tiny" if given.tiny else "inputs")
    scaling = tuple(sorted(given.scaling))
    chosen = [a for a in arms(scaling) if not given.arms or any(a.name.startswith(s) for s in given.arms)]
    given.dtype, reason = choose_dtype(given.dtype, torch.device("cpu"))
    torch.set_num_threads(1)
    model = make_inputs(given.inputs, RANKS, given.max_length, given.tiny)
    found = measured(given, chosen, model)
    rows = json.loads((given.inputs / "rows.json").read_text(encoding="utf-8"))
    values = {
        "model": MODEL_NAME,
        "dtype": f"{given.dtype}: {reason}",
        "batch_tokens": given.batch_tokens,
        "examples": _examples([rows[i % len(rows)] for i in range(given.rows)], len(rows)),
        **summary(chosen, ratios(scaling), found),
    }
    if given.tiny:
        print(json.dumps(values, indent=2))
        return
    path = write_result(given.name, values)
    print(path)
    if given.page:
        print(write_page(path))


def _examples(rows: list[dict[str, Any]], n_pool: int) -> dict[str, Any]:
    lengths = sorted(len(row["ids"]) for row in rows)
    return {
        "rows": len(rows),
        "different": min(len(rows), n_pool),
        "tokens": {"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]},
        "trained_share": round(sum(sum(row["trained"]) for row in rows) / sum(lengths), 3),
    }


def _arguments() -> argparse.ArgumentParser:
    take = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    take.add_argument("--work", type=Path, default=Path("bench-work"), help="measurements and what they read")
    take.add_argument(
        "--peers", type=Path, default=HERE.parent / ".venv-bench", help="the peers' environment"
    )
    take.add_argument("--arms", nargs="+", default=[], help="starts of names; default all")
    take.add_argument("--rows", type=int, default=128, help="examples of the demo's pool")
    take.add_argument("--rounds", type=int, default=5)
    take.add_argument("--scaling", type=int, nargs="*", default=[1000, 10_000], help="rows on the tiny model")
    take.add_argument(
        "--dtype", default="auto", help="of the frozen base: auto, fp32, bf16; peers have their own"
    )
    take.add_argument(
        "--batch-tokens", type=int, default=2048, help="padded tokens in a batch, as a run's on CPU"
    )
    take.add_argument("--max-length", type=int, default=2048)
    take.add_argument("--limit", type=float, default=3600, help="seconds for one arm in one round")
    take.add_argument("--name", default="engine", help="benchmarks/results/NAME.json")
    take.add_argument(
        "--tiny",
        action="store_true",
        help="try the benchmark itself on the tiny model; prints, writes no result",
    )
    take.add_argument("--only-table", action="store_true", help="measure nothing")
    take.add_argument(
        "--page", action="store_true", help="write benchmarks/README.md and the plot from the result"
    )
    return take


if __name__ == "__main__":
    main()
