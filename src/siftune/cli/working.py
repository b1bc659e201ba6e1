"""`siftune worker`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siftune.cli.app import app, reporter, told
from siftune.cli.options import Debug, Quiet, RunDir


@app.command()
def worker(
    run_dir: RunDir,
    quiet: Quiet = False,
    debug: Debug = False,
    shard: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """One more process on the features of a run: here or on any machine that sees its directory."""
    with told(debug):
        from siftune.pipeline.working import LeaderGoneError, work

        try:
            work(run_dir, reporter(quiet), shard)
        except LeaderGoneError:
            raise SystemExit(1) from None
