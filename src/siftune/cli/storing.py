"""Commands on what a run keeps: datastore verify, datastore export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from siftune.cli.app import app, say, told
from siftune.cli.options import DATA, AsJson, Debug, RunDir

datastore = typer.Typer(
    help="Check the datastore of a run, or take it out for other programs.", no_args_is_help=True
)
app.add_typer(datastore, name="datastore")


@datastore.command("verify")
def verify_command(run_dir: RunDir, as_json: AsJson = False, debug: Debug = False) -> None:
    """Read all shards, targets' features and vectors, adapters, and name what is damaged or missing; exit code 1 if anything is."""
    with told(debug):
        from siftune.datastore.verify import verify

        found = verify(run_dir)
    if as_json:
        faults = [
            {"file": str(f.file.relative_to(run_dir)), "rows": [f.start, f.stop], "what": f.what}
            for f in found.faults
        ]
        without_sum = [str(file.relative_to(run_dir)) for file in found.without_sum]
        values = {
            "sound": not faults,
            "files": found.n_files,
            "bytes": found.n_bytes,
            "faults": faults,
            "without_sum": without_sum,
            "not_made": [
                {"folder": str(of.file.relative_to(run_dir)), "rows": [of.start, of.stop]}
                for of in found.not_made
            ],
        }
        typer.echo(json.dumps(values, indent=2))
    else:
        for fault in found.faults:
            rows = f"rows {fault.start} to {fault.stop - 1}" if fault.stop else "all rows"
            say(f"{fault.file} {fault.what} ({rows})")
        for of in found.not_made:
            say(
                f"{of.file} has no vectors of rows {of.start} to {of.stop - 1} yet: the next choice by its method makes them"
            )
        if found.without_sum:
            typer.echo(f"{len(found.without_sum)} files were written without a checksum and are unchecked")
        faults = f"{len(found.faults)} damaged or missing" if found.faults else "all sound"
        typer.echo(f"{found.n_files} files, {found.n_bytes / 2**20:,.0f} MiB: {faults}")
    if found.faults:
        raise typer.Exit(1)


@datastore.command("export")
def export_command(
    run_dir: RunDir,
    to: Annotated[
        Path,
        typer.Option("--to", help="The file to write: .npy or .parquet.", rich_help_panel=DATA),
    ],
    checkpoint: Annotated[
        int,
        typer.Option(help="The checkpoint whose features are wanted.", rich_help_panel=DATA),
    ],
    method: Annotated[
        str,
        typer.Option(
            help="The store: less, or a method of vectors such as rds+, whose checkpoint is 0.",
            rich_help_panel=DATA,
        ),
    ] = "less",
    dtype: Annotated[str, typer.Option(help="Numbers: fp32 or fp16.", rich_help_panel=DATA)] = "fp32",
    debug: Debug = False,
) -> None:
    """Write the features of a checkpoint, rows in pool order, as one file."""
    with told(debug):
        from siftune.datastore.export import export
        from siftune.datastore.pool import Pool
        from siftune.datastore.store import Datastore
        from siftune.records.errors import SiftuneError
        from siftune.records.names import check_name

        pool, path = (
            Pool(run_dir / "pool"),
            run_dir / "datastore" / check_name(method, "method") / str(checkpoint),
        )
        if not (path / "manifest.json").exists():
            found = sorted(
                f"{p.parent.parent.name} {p.parent.name}" for p in run_dir.glob("datastore/*/*/manifest.json")
            )
            raise SiftuneError(
                f"this run has no store {method} {checkpoint}; it has {', '.join(found) or 'none'}",
                where=str(path),
                todo="Choose one of these: --method METHOD --checkpoint N",
            )
        rows, width = export(pool, Datastore(path, pool.plan), to, dtype=dtype)
        say(f"{to}: {rows:,} rows, {width:,} numbers each")
