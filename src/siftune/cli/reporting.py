"""The command that shows a selection to a person: report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from siftune.cli.app import app, reporter, say, told
from siftune.cli.options import DATA, AsJson, Debug, NoText, Quiet, RunDir, Texts, option


@app.command()
def report(
    run_dir: RunDir,
    name: Annotated[
        Texts, option("--name", "Selections to report, give it several times; default all.", DATA)
    ] = None,
    test: Annotated[
        Texts, option("--test", "Held-out rows to look for in the pool.", DATA, "NAME=FILE")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the two files; default the run's.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Print it too.", rich_help_panel=DATA)] = False,
    no_text: NoText = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """What was selected, why, and what to look at: writes RUN/report.html and RUN/report.json."""
    with told(debug):
        from siftune.pipeline import reporting
        from siftune.records.errors import SiftuneError
        from siftune.records.recipe import make_recipe

        if wrong := [text for text in test or [] if "=" not in text]:
            raise SiftuneError(
                f"{wrong[0]!r} is not NAME=FILE", where="--test", todo="Write --test NAME=FILE"
            )
        tests = make_recipe({"target": test or []}, where="--test").target
        written = reporting.report(
            run_dir, names=name or [], tests=tests, no_text=bool(no_text), out=out, reporter=reporter(quiet)
        )
        if as_json:
            typer.echo(json.dumps(written.facts))
            return
        if text:
            from siftune.reports.terminal import show

            show(written.facts)
        say(f"report         {written.page}")
