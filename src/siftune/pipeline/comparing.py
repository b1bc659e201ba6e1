"""`siftune compare`: train on what each method chooses, measure on test rows, say whether the choice is worth it.

Two fair readings, both named. Equal *steps*: every arm takes as many optimizer steps as the first method's rows take for their
epochs, so the full pool goes through a part of itself. Equal *epochs*: every arm goes as often through its rows, so the full pool
trains longer by as much as it is larger (and, being dear, with one seed). Arms of one size train the same under both, once.

Always there: the untrained model, random choices with three seeds at least, the full pool.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from siftune.datastore.manifest import versions
from siftune.model.warmup import Row, default_batch
from siftune.pipeline.arms import (
    HarnessTest,
    Test,
    check_methods,
    chosen_rows,
    harness_test_name,
    read_harness_tests,
    read_tests,
    tell_leakage,
    varies_with_seed,
)
from siftune.pipeline.progress import Reporter
from siftune.pipeline.proving import Prover, Trained
from siftune.pipeline.rundir import anchored, locked, read_run_recipe
from siftune.pipeline.scoring import BLENDED
from siftune.pipeline.session import Session
from siftune.proof.comparison import Arm, compared
from siftune.proof.evaluate import Measuring
from siftune.proof.harness import Harness
from siftune.proof.measures import MEASURES, DocumentScore, Measure
from siftune.proof.show import sentence, write_comparison
from siftune.proof.train import Training
from siftune.records.budget import Budget
from siftune.records.errors import SiftuneError
from siftune.records.example import Example
from siftune.records.files import write_text
from siftune.records.names import check_name
from siftune.records.readers import read_pool
from siftune.records.recipe import Method, Recipe
from siftune.records.sources import find_sources

Reading = Literal["steps", "epochs"]
RANDOM_SEEDS = 3
"""Random choices vary most and everything is compared with them: never fewer seeds than this."""
FULL, UNTRAINED = "full pool", "untrained"
PROOF_SETTINGS = (
    "epochs",
    "learning_rate",
    "batch",
    "rank",
    "alpha",
    "dropout",
    "lora_targets",
    "gradient_checkpointing",
)
"""Settings of the recipe that a proof may have otherwise than the run's warm-up."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison is asked to do.

    tests:    NAME -> file of test rows
    methods:  None = the run's own beside random, and for blend those that it is made of; else each a method, or METHOD:SETTING=VALUE:… for other settings of the choice; the first is the one that is judged
    keep:     budgets; empty = the run's
    also:     NAME -> file of rows that somebody else chose, in any format of a pool
    training: of PROOF_SETTINGS, those that differ from the run's; `batch` is decided from the rows where it is not given
    model:    another model to train than the run's, None = the run's
    harness:  tasks of the lm-eval harness that measure the arms of the first test's target too
    """

    tests: Mapping[str, str]
    methods: Sequence[str] | None = None
    keep: Sequence[str] = ()
    seeds: int = 3
    readings: Sequence[Reading] = ("steps",)
    also: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    measuring: Measuring = field(default_factory=Measuring)
    harness: Harness | None = None


@dataclass(frozen=True)
class _Plan:
    """An arm of one test, budget and reading before it is trained: by seed, what to train."""

    name: str
    keep: str | None
    n_rows: int
    trained: Mapping[int, Trained]


Plans = dict[tuple[str, str, Reading], list[_Plan]]
"""By test, budget and reading."""


def own_methods(method: Method) -> tuple[str, ...]:
    """What a run of this method is compared with where nothing else is asked for, itself first."""
    parts = BLENDED if method == "blend" else ()
    return tuple(dict.fromkeys([method, *parts, "random"]))


def compare(
    path: Path | str, asked: Comparison, *, reporter: Reporter | None = None
) -> dict[str, dict[str, Any]]:
    """Carry a comparison out, or on, and write RUN/proof/TEST/{comparison.{json,md,svg},choices.json}; returns the JSON values by test.

    Raises SiftuneError, before any training, for anything that can't be done as asked.
    """
    path, reporter = Path(path), reporter or Reporter()
    recorded = read_run_recipe(path)
    recipe = anchored(recorded)
    if asked.methods is None:
        asked = replace(asked, methods=own_methods(recipe.method))
    keeps = _checked(asked, recipe)
    with locked(path):
        session = Session(path, recipe, reporter, recorded)
        session.log.event("compare", tests=dict(asked.tests), methods=_methods(asked), keep=keeps)
        own = read_tests(session, asked.tests)
        tests: list[Test | HarnessTest] = [*own]
        if asked.harness is not None:
            tests += read_harness_tests(session, asked.harness, own)
        rows = {
            (test.name, keep, text, seed): chosen_rows(session, text, keep, test.target, seed)
            for test in tests
            for keep in keeps
            for text in _methods(asked)
            for seed in (_seeds(asked, text) if varies_with_seed(text) else [0])
        }
        session.base = None  # another model may be the one that is trained
        prover = Prover(session, asked.model, asked.measuring)
        brought = {name: _examples(file, reporter) for name, file in asked.also.items()}
        for name, examples in brought.items():
            for test in own:
                tell_leakage(
                    session, test, f"the rows of --also {name}", (row.fingerprint for row in examples)
                )
        also = {name: prover.encoded(examples, asked.also[name]) for name, examples in brought.items()}
        lora_targets = prover.lora_targets(asked.training.get("lora_targets"))
        as_trained = session.recipe.with_settings({**asked.training, "lora_targets": lora_targets})
        plans: Plans = {
            (test.name, keep, reading): _plans(as_trained, prover, asked, test, keep, reading, rows, also)
            for test in tests
            for keep in keeps
            for reading in asked.readings
        }
        for test in own:
            prover.tell_cut(test)
        _make_cells(prover, tests, plans)
        for test in tests:
            choices = {
                f"{text} {keep} {seed}": of
                for (name, keep, text, seed), of in rows.items()
                if name == test.name
            }
            write_text(path / "proof" / test.name / "choices.json", json.dumps(choices) + "\n")
        return {test.name: _conclude(path, prover, asked, test, keeps, plans) for test in tests}


def _plans(
    recipe: Recipe,
    prover: Prover,
    asked: Comparison,
    test: Test | HarnessTest,
    keep: str,
    reading: Reading,
    rows: Mapping[tuple[str, str, str, int], list[int]],
    also: Mapping[str, list[Row]],
) -> list[_Plan]:
    """The arms of one table: untrained, the methods, what is brought along, the full pool."""
    first = next(len(rows[key]) for key in rows if key[:3] == (test.name, keep, _methods(asked)[0]))
    batch = asked.training.get("batch") or default_batch(first)

    def training(n_rows: int, seed: int) -> Training:
        return Training.of(recipe, n_rows=first if reading == "steps" else n_rows, batch=batch, seed=seed)

    def arm(name: str, budget: str | None, seeds: Sequence[int], tokens_of: Mapping[int, list[Row]]) -> _Plan:
        by_seed = {
            seed: prover.trained(
                tokens_of[seed],
                training(len(tokens_of[seed]), seed),
                {"arm": name, "keep": budget, "seed": seed, "rows": len(tokens_of[seed])},
            )
            for seed in seeds
        }
        return _Plan(name, budget, len(tokens_of[seeds[0]]), by_seed)

    untrained = prover.trained([], None, {"arm": UNTRAINED, "keep": None, "seed": 0, "rows": 0})
    plans = [_Plan(UNTRAINED, None, 0, {0: untrained})]
    for text in _methods(asked):
        seeds = _seeds(asked, text)
        tokens_of: dict[int, list[Row]] = {}
        for seed in seeds:
            same = not varies_with_seed(text) and tokens_of
            tokens_of[seed] = (
                tokens_of[seeds[0]]
                if same
                else prover.tokens(rows[test.name, keep, text, seed if varies_with_seed(text) else 0])
            )
        plans.append(arm(text, keep, seeds, tokens_of))
    every_seed = list(range(asked.seeds))
    plans += [arm(name, None, every_seed, dict.fromkeys(every_seed, tokens)) for name, tokens in also.items()]
    full_seeds = every_seed if reading == "steps" else [0]
    plans.append(arm(FULL, None, full_seeds, dict.fromkeys(full_seeds, prover.full_pool())))
    return plans


def _make_cells(prover: Prover, tests: Sequence[Test | HarnessTest], plans: Plans) -> None:
    """Train and measure what is missing: seed by seed, so that a comparison that is stopped early is even, and each training once."""
    by_name = {test.name: test for test in tests}
    wanted: dict[str, tuple[Trained, list[Test | HarnessTest]]] = {}
    of_seeds = sorted(
        (
            (seed, trained, by_name[key[0]])
            for key, arms in plans.items()
            for plan in arms
            for seed, trained in plan.trained.items()
        ),
        key=lambda item: item[0],
    )
    for _, trained, test in of_seeds:
        found = wanted.setdefault(trained.id, (trained, []))
        if test not in found[1]:
            found[1].append(test)
    left = sum(any(not prover.done(trained, test) for test in on) for trained, on in wanted.values())
    prover.session.reporter.note(f"{len(wanted)} trainings, {len(wanted) - left} of them done before")
    for trained, on in wanted.values():
        prover.cells(trained, on)


def _conclude(
    path: Path,
    prover: Prover,
    asked: Comparison,
    test: Test | HarnessTest,
    keeps: Sequence[str],
    plans: Plans,
) -> dict[str, Any]:
    """Figures, sentences and files of one test."""
    tables = []
    for keep in keeps:
        for reading in asked.readings:
            arms = [
                Arm(
                    plan.name,
                    plan.keep,
                    plan.n_rows,
                    sum(len(ids) for ids, _ in plan.trained[min(plan.trained)].rows),
                    plan.trained[min(plan.trained)].training.steps if plan.n_rows else 0,  # pyright: ignore[reportOptionalMemberAccess]
                    sorted(plan.trained),
                    [prover.cells(plan.trained[seed], [test])[0] for seed in sorted(plan.trained)],
                )
                for plan in plans[test.name, keep, reading]
            ]
            values = compared(arms, _methods(asked)[0], _measures(test, arms))
            tables.append(
                {
                    "keep": keep,
                    "reading": f"equal {reading}",
                    "subject": _methods(asked)[0],
                    "arms": values,
                    "sentence": sentence(values, _methods(asked)[0], f"{test.name}, equal {reading}"),
                }
            )
    result = {
        "test": test.name,
        "target": test.target,
        **_about(prover, test),
        "model": asked.model or prover.session.recipe.model,
        "training": dict(asked.training),
        "versions": versions(),
        "tables": tables,
    }
    write_comparison(path / "proof" / test.name, result)
    return result


def _about(prover: Prover, test: Test | HarnessTest) -> dict[str, Any]:
    """What was measured, and how, as JSON values."""
    if isinstance(test, HarnessTest):
        return {
            "file": f"lm-eval task {test.task.name}",
            "n_rows": test.task.n_documents,
            "rows": test.task.digest,
            "measuring": test.task.settings,
        }
    return {
        "file": test.source,
        "n_rows": len(test.rows),
        "rows": test.digest,
        "measuring": prover.measuring.settings(),
    }


def _measures(test: Test | HarnessTest, arms: Sequence[Arm]) -> Sequence[Measure]:
    if isinstance(test, Test):
        return MEASURES
    scores = [score for arm in arms for cell in arm.cells for score in cell.scores]
    return test.task.measures([score for score in scores if isinstance(score, DocumentScore)])


def readings_of(text: str) -> tuple[Reading, ...]:
    """`steps`, `epochs` or `both`."""
    found: dict[str, tuple[Reading, ...]] = {
        "steps": ("steps",),
        "epochs": ("epochs",),
        "both": ("steps", "epochs"),
    }
    if text not in found:
        raise SiftuneError(
            f"there is no reading {text!r}", where="--reading", todo=f"Readings are: {', '.join(found)}"
        )
    return found[text]


def _methods(asked: Comparison) -> list[str]:
    """The methods of a comparison, random among them whether asked for or not."""
    methods = list(asked.methods or ())
    return methods if "random" in methods else [*methods, "random"]


def _seeds(asked: Comparison, text: str) -> list[int]:
    return list(range(max(asked.seeds, RANDOM_SEEDS) if varies_with_seed(text) else asked.seeds))


def _examples(file: str, reporter: Reporter) -> list[Example]:
    """The rows of a file that somebody else chose; those that can't be read are told."""
    found, left_out = [], []
    for item in read_pool([file]):
        (found if isinstance(item, Example) else left_out).append(item)
    if left_out:
        reporter.warn(
            f"{len(left_out):,} rows of {file} can't be read ({left_out[0].where}: {left_out[0].reason})"
        )
    return found


def _checked(asked: Comparison, recipe: Recipe) -> list[str]:
    """The budgets, once everything that was asked is known to be possible."""
    tasks = [harness_test_name(task) for task in asked.harness.tasks] if asked.harness else []
    if not asked.tests and not tasks:
        raise SiftuneError("no test is given", where="--test", todo="Give held-out rows: --test NAME=FILE")
    if len({*asked.tests, *tasks}) < len(asked.tests) + len(tasks):
        raise SiftuneError(
            "two tests or tasks have one name", where="--lm-eval", todo="Name each task once, tests otherwise"
        )
    if not asked.methods:
        raise SiftuneError("no method is given", where="--methods", todo="For example --methods less,random")
    check_methods(asked.methods)
    for name in [*asked.tests, *tasks, *asked.also]:
        check_name(name, "test or a selection")
    taken = {FULL, UNTRAINED, *_methods(asked)}
    if clash := taken & set(asked.also):
        raise SiftuneError(
            f"{min(clash)} is the name of another arm", where="--also", todo="Give your rows another name"
        )
    if asked.seeds < 1:
        raise SiftuneError("at least one seed is needed", where="--seeds", todo="Three give a spread")
    for name in asked.training:
        if name not in PROOF_SETTINGS:
            raise SiftuneError(
                f"{name} is no setting of a training",
                where="training",
                todo=f"These are: {', '.join(PROOF_SETTINGS)}",
            )
    recipe.with_settings(dict(asked.training))
    for file in asked.also.values():
        find_sources(file)  # one that isn't there is told before any work
    given = list(asked.keep) or ([recipe.keep] if recipe.keep else [])
    if not given:
        raise SiftuneError("how much to keep is not said", where="keep", todo="Give a budget: --keep 5%")
    return [str(Budget.parse(keep)) for keep in given]
