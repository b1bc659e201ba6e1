"""What the demo prints: the figures as measured, whichever arm they favour."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from siftune.demo.run import Arm, DemoResult, show
from siftune.proof.evaluate import RowScore, summarise
from siftune.selection.selection import Selection


def arm(name: str, n_rows: int, losses: list[float], correct: list[bool]) -> Arm:
    scores = [
        RowScore(str(i), loss, "Yes", right)
        for i, (loss, right) in enumerate(zip(losses, correct, strict=True))
    ]
    return Arm(name, n_rows, summarise(scores), scores)


def selection(name: str, chosen: dict[str, int]) -> Selection:
    pool = {"wanted [x]": 30, "other": 70}
    sources = [{"source": source, "pool": n, "selected": chosen.get(source, 0)} for source, n in pool.items()]
    return Selection(
        Path("run/selections") / name, {}, {"n_scorable": 100, "n_selected": 10, "sources": sources}
    )


def test_tables_hold_what_was_measured():
    arms = [
        arm("base model", 0, [3.0, 1.0, 2.0, 2.0], [True, False, False, False]),
        arm("random rows", 10, [0.5, 1.0, 1.5, 1.0], [True, True, True, False]),
        arm(
            "selected rows", 10, [1.5, 2.0, 1.5, 3.0], [False, True, False, False]
        ),  # worse, and so it is printed
    ]
    console = Console(width=120, record=True, file=StringIO())
    result = DemoResult(
        Path("run"),
        arms,
        selection("wanted", {"wanted [x]": 8, "other": 2}),
        selection("random", {"other": 10}),
    )
    show(result, console)
    lines = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
    for expected in (
        "nothing (base model) 0 2.000 25.0%",
        "random rows 10 1.000 75.0%",
        "selected rows 10 2.000 25.0%",
        "selected - random, same test rows +1.000 ± 0.408 -50.0% ± 28.9%",
        "wanted [x] 30 30% 8 80% 0",
        "other 70 70% 2 20% 10",
        "rows run/selections/wanted/selected.jsonl",
        "figures run/proof/demo.json",
    ):
        assert expected in lines, (expected, lines)
