"""How long a report takes and how big it is, by the size of the pool: rows of the target's kind and others, on a tiny model.

python benchmarks/report.py MODEL WORK 2000 20000 200000        MODEL: any causal model's folder; its tokenizer is used, and bm25 chooses 5 %
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

from record import write_result
from siftune.pipeline.progress import Reporter
from siftune.pipeline.reporting import report
from siftune.pipeline.run import run
from siftune.records.recipe import make_recipe

QUIET = Reporter(quiet=True)
WORDS = 5000


def main(model: str, work: Path, sizes: list[int]) -> None:
    """One run a size; what is there is used again."""
    work.mkdir(parents=True, exist_ok=True)
    found = []
    for n in sizes:
        pool, target = work / f"pool-{n}.jsonl", work / "target.jsonl"
        if not pool.exists():
            draw = random.Random(n)
            pool.write_text("".join(_row(draw, i) for i in range(n)), encoding="utf-8")
            target.write_text("".join(_row(random.Random(-v), v) for v in range(1, 28)), encoding="utf-8")
        settings = {
            "model": model,
            "pool": [str(pool)],
            "target": {"t": str(target)},
            "method": "bm25",
            "keep": "5%",
        }
        out = work / f"RUN-{n}"
        run(make_recipe(settings), out, reporter=QUIET)
        wall, cpu = time.perf_counter(), time.process_time()
        written = report(out, reporter=QUIET)
        found.append(
            {
                "rows": n,
                "seconds": round(time.perf_counter() - wall, 1),
                "cpu_seconds": round(time.process_time() - cpu, 1),
                "html_bytes": written.page.stat().st_size,
                "json_bytes": (out / "report.json").stat().st_size,
            }
        )
        print(found[-1], flush=True)
    print(write_result("report", {"sizes": found}))


def _row(draw: random.Random, i: int) -> str:
    """About 100 words; every row with a subtask, a source and a licence."""
    text = " ".join(f"w{min(int(draw.expovariate(0.002)), WORDS)}" for _ in range(80))
    answer = " ".join(f"w{draw.randrange(WORDS)}" for _ in range(draw.randrange(1, 40)))
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    row = {
        "id": f"r{i}",
        "source": f"s{i % 17}",
        "license": f"l{i % 5}",
        "subtask": f"t{i % 27}",
        "messages": messages,
    }
    return json.dumps(row) + "\n"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [int(n) for n in sys.argv[3:]])
