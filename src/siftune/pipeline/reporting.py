"""`siftune report`: what was selected and why, from a run's files to `report.json` and `report.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siftune.pipeline.progress import Reporter
from siftune.pipeline.rundir import anchored, read_made_with, read_run_recipe
from siftune.pipeline.session import Session
from siftune.records.errors import SiftuneError
from siftune.records.files import read_json, write_json, write_text
from siftune.records.readers import read_target
from siftune.reports.facts import facts_of
from siftune.reports.material import Material, TestFile
from siftune.reports.outcome import plots_of
from siftune.reports.page import page_of

if TYPE_CHECKING:
    from siftune.chat.encoder import ChatEncoder


@dataclass(frozen=True)
class Report:
    """A report that was written. `facts` are those of report.json."""

    page: Path
    facts: dict[str, Any]


def report(
    path: Path | str,
    *,
    names: Sequence[str] = (),
    tests: Mapping[str, str] | None = None,
    no_text: bool = False,
    out: Path | str | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Write report.html and report.json.

    names:   selections to report, all of the run's where empty
    tests:   NAME -> file of held-out rows to look for in the pool, beside those that `compare` measured on
    no_text: leave the text of every row out, also where the recipe doesn't ask for that
    out:     the folder that they go to; the run's own where None
    Raises SiftuneError for a run without selections.
    """
    path, reporter = Path(path), reporter or Reporter()
    recipe = anchored(read_run_recipe(path))
    session = Session(path, recipe, reporter, recipe)
    with_text = not (no_text or recipe.no_text)
    held_out, gone = _tests(path, tests or {}, reporter)
    material = Material(
        path,
        recipe.model_dump(),
        tuple(names),
        tuple(held_out),
        tuple(gone),
        _encoder(session) if with_text else None,
        with_text,
    )
    reporter.note("writing the report")
    facts = facts_of(material, read_made_with(path))
    plots = {of["test"]: plots_of(path, of["test"]) for of in facts["outcome"]["comparisons"]}
    folder = path if out is None else Path(out)
    page = folder / "report.html"
    write_json(folder / "report.json", facts)
    write_text(page, page_of(facts, plots))
    return Report(page, facts)


def _tests(path: Path, asked: Mapping[str, str], reporter: Reporter) -> tuple[list[TestFile], list[str]]:
    """The tests asked for and those of the run's comparisons; and the names of those whose files are gone."""
    files, gone = dict(asked), list[str]()
    for file in sorted((path / "proof").glob("*/comparison.json")):
        name = file.parent.name
        try:
            source = str(read_json(file)["file"])
        except (SiftuneError, KeyError, TypeError):
            reporter.warn(f"{file} can't be read; run siftune compare again")
            continue
        if name in files or source.startswith("lm-eval task"):
            continue
        if Path(source).exists():
            files[name] = source
        else:
            gone.append(name)
            reporter.warn(f"the test {name} is not looked for in the pool: {source} is gone")
    return [TestFile(name, file, read_target(file, name, "test")) for name, file in files.items()], gone


def _encoder(session: Session) -> ChatEncoder | None:
    """The run's tokenizer and template; None, and said, where they can't be had or are others than the pool was read with."""
    try:
        encoder = session.encoder
    except SiftuneError as error:
        session.reporter.warn(f"rows are shown without their text: {error}")
        return None
    if encoder.fingerprint != session.pool.plan.encoder:
        session.reporter.warn(
            "rows are shown without their text: the tokenizer or template is not the one that the pool was read with"
        )
        return None
    return encoder
