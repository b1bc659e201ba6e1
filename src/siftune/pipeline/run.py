"""The way of the data through a run directory: pool, warm-up, datastore, influence, selection.

Every stage writes files that appear whole and looks first for what is there, so a run that was cut off goes on where it was and
a finished one is only read. These four functions are what the command line and Python call:

    run      all stages, or up to one
    score    a new question (target) to an old datastore
    select   choose again from what is stored
    append   new rows into an old run
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from siftune.pipeline.choosing import check_budget, check_settings, check_used, choose
from siftune.pipeline.progress import Reporter
from siftune.pipeline.ray_cluster import connected
from siftune.pipeline.rundir import CHOICE, anchored, locked, merged, read_run_recipe
from siftune.pipeline.scoring import GRADED, TARGETED, VECTORED
from siftune.pipeline.session import Session
from siftune.pipeline.stages import STAGES, Stage, bars_of, stage_named
from siftune.records.budget import Budget
from siftune.records.errors import SiftuneError
from siftune.records.recipe import Recipe
from siftune.selection.selection import Selection, check_same


@dataclass(frozen=True)
class RunResult:
    """A run directory and the selections that were made or found, by name."""

    path: Path
    selections: dict[str, Selection]


def run(
    recipe: Recipe,
    out: Path | str,
    *,
    until: Stage = "selection",
    ray: str | None = None,
    reporter: Reporter | None = None,
) -> RunResult:
    """Carry a run on to the stage `until`. Settings of an existing run that aren't asked for stay as they are.

    ray: address of a Ray cluster that makes features and vectors; auto: one that is found or started on this machine
    Raises SiftuneError, before any work where it can be known, for anything that can't be done as asked.
    """
    stage_named(until)
    reporter, out = reporter or Reporter(), Path(out)
    _check_out(out)
    recorded = read_run_recipe(out) if (out / "recipe.yaml").exists() else None
    asked = anchored(recipe)
    recipe = merged(recorded, asked) if recorded else asked
    recipe = _with_one_budget(recipe, {"keep": asked.keep, "drop_worst": asked.drop_worst})
    _check_complete(recipe, until, asked.target)
    if until == "selection":
        _check_free(out, recipe, list(asked.target) or list(recipe.target) or [recipe.method])
    with locked(out), connected(ray):
        if recorded is None:
            recipe = _settled(recipe, reporter)
        session = Session(out, recipe, reporter, recorded)
        session.log.event("run", until=until, target=recipe.target, keep=recipe.keep)
        reporter.bars = _bars(session, until)
        read = session.read_targets(recipe.target)
        session.make_pool()
        if recipe.keep and recipe.drop_worst is None:
            check_budget(session)
        # From here on the run is what it is: before, a wrong path or setting can still be put right
        session.save_recipe(**({} if recorded else {"date": datetime.now(UTC).isoformat(timespec="seconds")}))
        encoded = session.keep_targets(read)
        reached = STAGES.index(until)
        if reached >= STAGES.index("warmup"):
            _planned_and_made(session, encoded, until, on_ray=ray is not None)
        if until != "selection":
            return RunResult(out, {})
        names = list(asked.target) or list(recipe.target) or [recipe.method]
        if not asked.model_fields_set & set(CHOICE):  # nothing is asked anew: what was chosen stands
            names = [name for name in names if not (out / "selections" / name / "selection.json").exists()]
        made = _chosen(session, names, keep_old=True).selections
        found = {path.parent.name: path.parent for path in sorted(out.glob("selections/*/selection.json"))}
        return RunResult(out, made or {name: Selection.open(folder) for name, folder in found.items()})


def score(
    path: Path | str,
    target: Mapping[str, str],
    settings: Mapping[str, Any] | None = None,
    *,
    reporter: Reporter | None = None,
) -> RunResult:
    """Ask an old datastore a new question: add targets (NAME -> file) to a run and choose for them.

    settings: as for `select`; the model is loaded for the target's few rows only
    """
    path = Path(path)
    recorded = read_run_recipe(path)
    asked = dict(settings or {})
    recipe = anchored(_with_one_budget(recorded.with_settings({**asked, "target": dict(target)}), asked))
    if not target:
        raise SiftuneError("no target is given", where="target", todo="Give the rows: --target NAME=FILE")
    _check_complete(recipe, "selection", target)
    check_used(recipe.method, asked)
    with locked(path):
        session = Session(path, recipe, reporter or Reporter(), recorded)
        session.log.event("score", target=dict(target), keep=recipe.keep)
        encoded = session.keep_targets(session.read_targets(recipe.target))
        make_what_the_method_needs(session, encoded)
        session.save_recipe()
        return _chosen(session, list(target))


def select(
    path: Path | str,
    settings: Mapping[str, Any],
    *,
    targets: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> RunResult:
    """Choose again in a run whose influence is there: other budget, rule, method or name. The model isn't needed,
    but for the vectors of a method (blend, rds+, embed, ltd) that the run is asked for the first time.

    settings: those of CHOICE that differ from the run's
    targets:  all of the run's where empty; a method that needs none is named after itself
    """
    for key in settings:
        if key not in CHOICE:
            raise SiftuneError(
                f"{key} can't be changed by choosing again", where=key, todo=f"These can: {', '.join(CHOICE)}"
            )
    path = Path(path)
    recorded = read_run_recipe(path)
    recipe = anchored(_with_one_budget(recorded.with_settings(dict(settings)), settings))
    names = list(targets) or (list(recorded.target) if recipe.method in TARGETED else [recipe.method])
    if not names:
        raise SiftuneError(
            "this run has no target yet",
            where=str(path),
            todo="Add one: 'siftune score RUN --target NAME=FILE'",
        )
    check_used(recipe.method, settings)
    _check_keep(recipe)
    _check_name(recipe, names)
    with locked(path):
        session = Session(path, recipe, reporter or Reporter(), recorded)
        make_missing_vectors(session, names)
        return _chosen(session, names)


def append(path: Path | str, pool: Iterable[str], *, reporter: Reporter | None = None) -> int:
    """Read more files into an old run and make their features, influence and vectors, where it has such; returns how many rows came.

    The checkpoints stay. Selections stay as they were made: choose again under another name.
    """
    path = Path(path)
    recorded = read_run_recipe(path)
    sources = anchored(recorded.model_copy(update={"pool": list(pool)})).pool
    if not sources:
        raise SiftuneError("no pool is given", where="pool", todo="Give the files: --pool FILE …")
    with locked(path):
        session = Session(path, recorded, reporter or Reporter(), recorded)
        beside = _with_vectors(session, recorded)
        rows = session.append_to_pool(sources)
        if recorded.method in GRADED and session.store_numbers():
            encoded = session.keep_targets(session.read_targets(recorded.target))
            make_what_the_method_needs(session, encoded)
        for one in beside:
            one.base, one.base_digest = session.base, session.base_digest
            make_missing_vectors(one, list(recorded.target))
            session.base, session.base_digest = one.base, one.base_digest
        return rows


def _with_vectors(session: Session, recorded: Recipe) -> list[Session]:
    """The run as choices by vectors see it, where it has such: they may be there beside what the run's own method reads.

    Raises SiftuneError where the sentence encoder that makes them is gone.
    """
    found = []
    for method in ("rds+", "embed"):
        one = Session(session.path, recorded.with_settings({"method": method}), session.reporter, recorded)
        if not (one.vectors_path() / "manifest.json").exists():
            continue
        if one.recipe.encoder and not one.by_position() and one.encoder_folder() is None:
            raise SiftuneError(
                "the sentence encoder that this run's vectors were made with is not there; nothing was appended",
                where=one.recipe.encoder,
                todo="Put the folder back",
            )
        found.append(one)
    return found


def make_what_the_method_needs(
    session: Session,
    encoded: dict[str, Any],
    reached: int = STAGES.index("influence"),
    *,
    on_ray: bool = False,
) -> None:
    """Make what is missing of all that the recipe's method reads, up to the stage number `reached`.

    on_ray: the pool's part of it on the Ray cluster that is connected to
    """
    from siftune.pipeline.crew import Crew

    method, features = session.recipe.method, reached >= STAGES.index("datastore")
    with Crew(session) as crew:
        if method in GRADED:
            from siftune.pipeline.training import make_checkpoints

            make_checkpoints(session)
        if on_ray and features and method in (*GRADED, *VECTORED):
            from siftune.pipeline.on_ray import make_on_ray

            make_on_ray(session)
        if method in GRADED and features:
            from siftune.pipeline.training import make_features, make_influence

            make_features(session, encoded, crew)
            if reached >= STAGES.index("influence"):
                make_influence(session, encoded)
        if method in VECTORED and features:
            from siftune.pipeline.vectors import make_vectors

            make_vectors(session, encoded, crew)


def _planned_and_made(session: Session, encoded: dict[str, Any], until: Stage, *, on_ray: bool) -> None:
    """Say what is to come and what it will cost, make it, and log how that estimate did."""
    planned = None
    if session.recipe.method in (*GRADED, *VECTORED):
        from siftune.pipeline.planning import told_plan

        planned = told_plan(session, {name: tokens for name, (_, tokens) in encoded.items()}, until)
    make_what_the_method_needs(session, encoded, STAGES.index(until), on_ray=on_ray)
    if planned:
        took = session.log.seconds
        session.log.event(
            "planned and took",
            seconds={
                s.stage: [round(s.seconds, 2), round(took.get(s.stage, 0.0), 2)] for s in planned.stages
            },
        )


def _bars(session: Session, until: Stage) -> list[str]:
    method, checkpoints = session.recipe.method, 0
    if method in GRADED:
        from siftune.pipeline.remaining import n_checkpoints

        checkpoints = n_checkpoints(session)
    vectors = session.vectors_name() if method in VECTORED else None
    return bars_of(session.recipe, until, checkpoints=checkpoints, vectors=vectors)


def make_missing_vectors(session: Session, names: list[str]) -> None:
    """For a method that compares vectors: make those of the pool and of these targets that aren't there."""
    if session.recipe.method in VECTORED and not (
        session.has_vectors(names) and session.encoder_folder() is None
    ):
        from siftune.pipeline.crew import Crew
        from siftune.pipeline.vectors import make_vectors

        targets = {name: session.recipe.target[name] for name in names if name in session.recipe.target}
        with Crew(session) as crew:
            make_vectors(session, session.keep_targets(session.read_targets(targets)), crew)


def _chosen(session: Session, names: list[str], *, keep_old: bool = False) -> RunResult:
    selections = [choose(session, name, keep_old=keep_old) for name in names]
    return RunResult(session.path, {selection.path.name: selection for selection in selections})


def _settled(recipe: Recipe, reporter: Reporter) -> Recipe:
    """A new run's recipe: paths made whole, and what the machine decides decided."""
    from siftune.pipeline.machine import settled

    recipe, notes = settled(recipe)
    for note in notes:
        reporter.note(note)
    return recipe


def _check_out(out: Path) -> None:
    if out.is_file():
        raise SiftuneError("is a file, not a folder", where=str(out), todo="Choose another --out")
    ours = (out / "recipe.yaml").exists() or (out / ".lock").exists()
    if out.is_dir() and not ours and any(out.iterdir()):
        raise SiftuneError(
            "is a folder with other things in it", where=str(out), todo="Choose a new folder as --out"
        )


def _check_complete(recipe: Recipe, until: Stage, targets: Iterable[str]) -> None:
    """What must be given for the stages asked for, checked before any work.

    targets: those that are asked for now; all of the run's where empty
    """
    if recipe.model is None:
        raise SiftuneError(
            "no model is given", where="model", todo="Give a model folder or hub id: --model M"
        )
    if not recipe.pool:
        raise SiftuneError("no pool is given", where="pool", todo="Give the files: --pool FILE …")
    if recipe.adopt and recipe.adapter:
        raise SiftuneError(
            "adopt and adapter exclude each other",
            where="adopt",
            todo="Leave out --adapter: the adopted checkpoints have their own",
        )
    if recipe.weights and not recipe.adopt:
        raise SiftuneError(
            "weights belong to adopted checkpoints",
            where="weights",
            todo="Give --adopt DIR too, or leave out --weights",
        )
    if until in ("influence", "selection") and recipe.method in TARGETED and not recipe.target:
        raise SiftuneError("no target is given", where="target", todo="Give the rows: --target NAME=FILE")
    if until == "selection":
        _check_keep(recipe)
        _check_name(recipe, list(targets) or list(recipe.target))


def _with_one_budget(recipe: Recipe, asked: Mapping[str, Any]) -> Recipe:
    """The recipe with `keep` or `drop_worst`, whichever is asked for now, and the method that can serve it; SiftuneError where both are."""
    if asked.get("keep") and asked.get("drop_worst"):
        raise SiftuneError(
            "keep and drop_worst exclude each other",
            where="drop_worst",
            todo="Say how much to keep, or how much to leave out",
        )
    if asked.get("keep") and recipe.drop_worst:
        return recipe.with_settings({"drop_worst": None})
    if recipe.drop_worst and recipe.method == "blend":
        # Being unlike the target is no harm: what is against it, gradients alone can say
        return recipe.with_settings({"method": "less"})
    return recipe


def _check_keep(recipe: Recipe) -> None:
    check_settings(recipe)
    if recipe.drop_worst:
        return
    if recipe.keep is None:
        raise SiftuneError(
            "how much to keep is not said",
            where="keep",
            todo="Give a budget: --keep 5%, --keep 1000 or --keep '2M tokens'",
        )
    Budget.parse(recipe.keep)


def _check_free(out: Path, recipe: Recipe, names: list[str]) -> None:
    """Refuse, before any work, a choice by another method under a name that is taken."""
    for name in names:
        folder = out / "selections" / (recipe.name or name)
        if (folder / "selection.json").exists():
            check_same(folder, {"method": recipe.method})


def _check_name(recipe: Recipe, targets: list[str]) -> None:
    if recipe.name is not None and len(targets) > 1:
        raise SiftuneError(
            f"one name can't serve {len(targets)} targets ({', '.join(targets)})",
            where="name",
            todo="Choose for one target at a time: --target NAME",
        )
