"""`siftune worker`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siftune.cli.app import app, only_given, reporter, told
from siftune.cli.options import CHOOSE, Debug, Quiet, RunDir, Text, option


@app.command()
def worker(
    run_dir: RunDir,
    quiet: Quiet = False,
    debug: Debug = False,
    method: Annotated[
        Text,
        option("--method", "Whose features or vectors to make; default: what the run was made with.", CHOOSE),
    ] = None,
    encoder: Annotated[
        Text, option("--encoder", "A sentence encoder's folder, for embed and ltd.", CHOOSE)
    ] = None,
    shard: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """One more process on the features of a run: here or on any machine that sees its directory."""
    with told(debug):
        from siftune.pipeline.working import LeaderGoneError, work

        try:
            work(run_dir, reporter(quiet), shard, only_given({"method": method, "encoder": encoder}))
        except LeaderGoneError:
            raise SystemExit(1) from None
