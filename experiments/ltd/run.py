"""Three questions of Low Training Data instruction tuning (arXiv 2305.09246), on two tasks. Goes on where it was.

    python experiments/ltd/run.py DATA WORK ENCODER [SEEDS] [TASK …]

ENCODER is the folder of a sentence encoder, as the paper has one (all-MiniLM-L6-v2 here). The pool: all rows of both tasks in pool.jsonl (gsm8k 2,000, banking77 800; each a family) and pool_2k's rows of other tasks. Every arm takes
the same optimizer steps.

1. task rows alone, or mixed with others:  100 by ltd inside the family; 50 of them and 50 random others; 100 by ltd without a family
2. how many instruction templates:         100 of the family worded in 1, 4 and 16 ways
3. how much data:                          0.5 % and 5 % of the family by ltd, all of it
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import HERE, PROOF, keep_results, script, siftune, test_files

WORDINGS = {
    "gsm8k": ("", "Question: ", "Solve: ", "Here is a problem.\n", "Answer this: ", "Work it out: ", "A task for you. ", "Q: ",
              "Think about this: ", "Maths: ", "Please solve. ", "What is the answer?\n", "Exercise. ", "Consider: ", "Problem: ", "Try this one: "),
    "banking77": ("Which intent does this banking customer message express?", "Name the intent of this message to a bank.",
                  "What does this customer want?", "Classify this banking message.", "Choose the intent that fits the message.",
                  "A customer of a bank writes. What is it about?", "Find the intent.", "Which option describes the message best?",
                  "Sort this message into one of the intents.", "What is the customer asking for?", "Label this message.",
                  "Pick the right intent.", "Which of the options is meant?", "Decide what the message is about.",
                  "Tell the intent of the customer.", "To which intent does this message belong?"),
}  # fmt: skip
"""Ways to word the task; the first is the data's own."""


def reworded(row: dict, task: str, wording: int) -> dict:
    """The row with its task worded in another way."""
    first, *rest = row["messages"]
    own, new = WORDINGS[task][0], WORDINGS[task][wording]
    text = first["content"]
    assert text.startswith(own), row["id"]
    return {**row, "messages": [{**first, "content": new + text[len(own) :]}, *rest]}


def write(path: Path, rows: list[dict]) -> str:
    """Write rows; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def both_families(data: Path) -> list[dict]:
    """The pool."""
    found = []
    for name, own in (("pool.jsonl", True), ("pool_2k.jsonl", False)):
        rows = [json.loads(line) for line in (data / name).open(encoding="utf-8")]
        found += [row for row in rows if (row["dataset"] in WORDINGS) is own]
    return found


def arms(pool: list[dict], chosen: list[dict], task: str, folder: Path) -> dict[str, str]:
    """Files of rows beside what the method itself chooses; `chosen`: its 100 rows of the family, in the order taken."""
    draw = random.Random(task)
    family = [row for row in pool if row["dataset"] == task]
    others = draw.sample([row for row in pool if row["dataset"] != task], 50)
    files = {"half-others": chosen[:50] + others, "family-half-percent": chosen[: len(family) // 200]}
    for n in (4, 16):
        files[f"{n}-wordings"] = [reworded(row, task, k % n) for k, row in enumerate(chosen)]
    files["family-random"] = draw.sample(family, 100)
    files["family-all"] = family
    return {name: write(folder / f"{name}.jsonl", rows) for name, rows in files.items()}


def main(data: Path, work: Path, encoder: str, seeds: str, tasks: tuple[str, ...]) -> None:
    """All stages; each looks first for what is there."""
    from siftune.demo.model import demo_model

    script("parts.py", str(data), str(work / "parts"))
    run, pool = work / "run-ltd", both_families(data)
    targets = [word for task in WORDINGS for word in ("--target", f"{task}={data / 'targets' / task / 'fewshot.jsonl'}")]  # fmt: skip
    siftune(
        "run", "--out", str(run), "--model", str(demo_model()), "--pool", write(work / "ltd" / "pool.jsonl", pool), *targets, "--method", "ltd", "--encoder", encoder, "--keep", "100",
        "--threads", "1", "--batch-tokens", "512",
    )  # fmt: skip
    script("kept.py", "restore", str(run), "final", "ltd")
    for task in tasks:
        family = f"dataset={task}"
        siftune("select", str(run), "--target", task, "--method", "ltd", "--family", family, "--keep", "100", "--name", f"{task}-family")  # fmt: skip
        selected = run / "selections" / f"{task}-family" / "selected.jsonl"
        rows = [pool[json.loads(line)["_siftune"]["row"]] for line in selected.open(encoding="utf-8")]
        also = [word for name, file in arms(pool, rows, task, work / "ltd" / task).items() for word in ("--also", f"{name}={file}")]  # fmt: skip
        siftune(
            "compare", str(run), *test_files(work, "final", (task,)), "--methods", f"ltd:family={family},ltd,random", *also, "--keep", "100",
            "--seeds", seeds, *PROOF,
        )  # fmt: skip
    script("kept.py", "keep", str(run), "final", "ltd")
    keep_results(run, HERE / "ltd" / "results", tasks)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        sys.argv[3],
        *(sys.argv[4:5] or ["1"]),
        tuple(sys.argv[5:]) or tuple(WORDINGS),
    )
