"""What a comparison compares: test rows, and the rows that each method chooses for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from siftune.datastore.index import read_index
from siftune.pipeline.choosing import check_settings, check_used, decide
from siftune.pipeline.run import make_missing_vectors, make_what_the_method_needs
from siftune.pipeline.rundir import CHOICE
from siftune.pipeline.scoring import GRADED, TARGETED
from siftune.pipeline.session import Session
from siftune.proof.harness import Harness, HarnessTask
from siftune.records.errors import SiftuneError
from siftune.records.example import Example
from siftune.records.files import digest_of
from siftune.records.readers import read_target
from siftune.records.recipe import make_recipe
from siftune.records.yamltext import read_yaml


@dataclass(frozen=True)
class Test:
    """Held-out rows, and the target of the run whose selections they measure."""

    name: str
    source: str
    target: str
    rows: list[Example]

    @property
    def digest(self) -> str:
        """Of the rows and all that measuring looks at."""
        asked = [
            [row.fingerprint, row.columns.get("options"), row.columns.get("answer")] for row in self.rows
        ]
        return digest_of(asked)[:32]


@dataclass(frozen=True)
class HarnessTest:
    """A task of the lm-eval harness, and the target of the run whose selections it measures."""

    name: str
    target: str
    task: HarnessTask


def read_harness_tests(session: Session, harness: Harness, tests: Sequence[Test]) -> list[HarnessTest]:
    """Load the harness's tasks. They measure the selections that the first test measures; without a test, the run's only target's."""
    targets = list(session.recipe.target)
    if not tests and len(targets) != 1:
        raise SiftuneError(
            f"which target the tasks measure is not said: this run has {', '.join(targets) or 'none'}",
            where="--lm-eval",
            todo="Give held-out rows of that target too: --test TARGET=FILE",
        )
    target = tests[0].target if tests else targets[0]
    found = []
    for name in harness.tasks:
        session.reporter.note(
            f"loading the lm-eval task {name}: it measures selections for the target {target}"
        )
        found.append(HarnessTest(harness_test_name(name), target, HarnessTask(name, harness)))
    return found


def harness_test_name(task: str) -> str:
    """What a task is called among tests, so that a test of the same name is another."""
    return f"lm-eval-{task}"


def read_tests(session: Session, sources: Mapping[str, str]) -> list[Test]:
    """Read the test files. A test is named as the target that it measures; where the run has one target, as one likes.

    Test rows that stand in the pool or the target are told: what was trained on says nothing when it is tested. So are rows that stand there
    twice: an interval takes each for one of its own, and is too narrow.
    """
    targets = list(session.recipe.target)
    tests = []
    for name, source in sources.items():
        if name not in targets and len(targets) != 1:
            raise SiftuneError(
                f"this run has no target {name!r}; it has {', '.join(targets) or 'none'}",
                where="--test",
                todo="Name the test as the target that it measures: --test TARGET=FILE",
            )
        target = name if name in targets else targets[0]
        if target != name:
            session.reporter.note(f"test {name}: measures selections for the target {target}")
        test = Test(name, source, target, [row.example for row in read_target(source, name, "test")])
        _report_leakage(session, test)
        _report_repeated(session, test)
        tests.append(test)
    return tests


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """`less:rule=top:centre=true` as (method, settings of a choice)."""
    method, *parts = text.split(":")
    settings: dict[str, Any] = {"method": method}
    for part in parts:
        name, equals, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in CHOICE or name in ("keep", "name", "method", "seed"):
            raise SiftuneError(
                f"{part!r} is not SETTING=VALUE of a choice",
                where=f"--methods {text}",
                todo="Write for example less:rule=top; see 'siftune select --help' for the settings",
            )
        settings[name] = value if name in _TEXTS else read_yaml(value, f"--methods {text}")
    recipe = make_recipe(settings, where=f"--methods {text}")
    check_settings(recipe)
    check_used(recipe.method, settings)
    return method, settings


_TEXTS = ("family", "per_source", "drop_worst", "encoder", "template_column")


def varies_with_seed(text: str) -> bool:
    """Does the choice itself depend on the seed? The others choose once and train with every seed."""
    return parse_method(text)[0] == "random"


def chosen_rows(session: Session, text: str, keep: str, target: str, seed: int) -> list[int]:
    """The pool rows that a method chooses, best first; what it needs is made first where it isn't there."""
    method, settings = parse_method(text)
    changes: dict[str, Any] = {
        "drop_worst": None,
        "near_duplicates": None,
        "per_source": None,
        **settings,
        "keep": keep,
    }
    if method == "random":
        changes["seed"] = seed
    own = Session(session.path, session.recipe.with_settings(changes), session.reporter, session.recorded)
    own.base, own.base_digest = session.base, session.base_digest
    if method in GRADED:
        make_what_the_method_needs(
            own, own.keep_targets(own.read_targets({target: own.recipe.target[target]}))
        )
    elif method in TARGETED:
        make_missing_vectors(own, [target])
    session.base, session.base_digest = own.base, own.base_digest
    return decide(own, target).chosen.tolist()


def _report_leakage(session: Session, test: Test) -> None:
    places = {"the pool": read_index(session.path)["fingerprint"].to_pylist()}
    places |= {f"the target {name}": session.target(name).fingerprint_V for name in session.recipe.target}
    for place, found in places.items():
        tell_leakage(session, test, place, found)


def tell_leakage(session: Session, test: Test, place: str, fingerprints: Iterable[str]) -> None:
    """Say how many rows of a test are in something that may be trained on."""
    if n := len({row.fingerprint for row in test.rows} & set(fingerprints)):
        session.log.event("leakage", test=test.name, into=place, rows=n)
        session.reporter.warn(
            f"leakage: {n} of the {len(test.rows)} rows of the test {test.name!r} are also in {place};"
            " what is measured on them is memory"
        )


def _report_repeated(session: Session, test: Test) -> None:
    if n := len(test.rows) - len({row.fingerprint for row in test.rows}):
        session.reporter.warn(
            f"{n} of the {len(test.rows)} rows of the test {test.name!r} repeat another: they count as often as they stand there, and intervals are"
            " narrower than they should be; leave them out"
        )


def check_methods(texts: Sequence[str]) -> None:
    """Refuse unknown methods, settings that are none, and a method given twice."""
    for text in texts:
        parse_method(text)
    if len(set(texts)) < len(texts):
        raise SiftuneError("a method is given twice", where="--methods", todo="Name each once")
