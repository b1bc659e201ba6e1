"""The chosen rows with `datasets`, written as prompt and completion:  python examples/for_a_trainer.py RUN/selections/NAME OUT.jsonl

TRL, Axolotl and LLaMA-Factory read `selected.jsonl` as it is; this is for a trainer with a format of its own.
"""

from __future__ import annotations

import sys
from typing import Any

from datasets import load_dataset


def as_pair(row: dict[str, Any]) -> dict[str, str]:
    """The last turn as completion, what came before it as prompt."""
    *before, last = row["messages"]
    return {"prompt": "\n".join(turn["content"] for turn in before), "completion": last["content"]}


def main(selection: str, out: str) -> None:
    """Write one JSON object a line, best first, with the score it was chosen for."""
    rows = load_dataset("json", data_files=f"{selection}/selected.jsonl", split="train")
    pairs = rows.map(as_pair, remove_columns=[name for name in rows.column_names if name != "_siftune"])
    pairs = pairs.map(lambda row: {"score": row["_siftune"]["score"]}, remove_columns=["_siftune"])
    pairs.to_json(out)
    print(f"{len(pairs)} rows in {out}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
