"""Choose again from Python, with other budgets and a limit, and say what the choices share:  python examples/choose_again.py RUN"""

from __future__ import annotations

import sys
from pathlib import Path

import siftune


def rows_of(selection: siftune.Selection) -> set[int]:
    """The pool rows that a selection holds."""
    return {row["_siftune"]["row"] for row in selection.rows()}


def main(run: str) -> None:
    """Print, for each choice, its size and how many of its rows the run's own choice holds too."""
    quiet = siftune.Reporter(quiet=True)
    first = rows_of(siftune.Selection.open(Path(run) / "selections" / "sums"))
    choices = {
        "half": {"method": "bm25", "keep": "50%"},
        "few-tokens": {"method": "bm25", "keep": "400 tokens"},
        "varied": {"method": "bm25", "keep": "25%", "near_duplicates": 0.5},
        "by-chance": {"method": "random", "keep": "25%", "seed": 1},
    }
    for name, settings in choices.items():
        chosen = siftune.select(run, {**settings, "name": name}, reporter=quiet).selections[name]
        rows = rows_of(chosen)
        print(
            f"{name:<11} {len(rows):>3} rows, {chosen.summary['tokens_selected']:>5} tokens, {len(rows & first):>3} of them in 'sums'"
        )


if __name__ == "__main__":
    main(sys.argv[1])
