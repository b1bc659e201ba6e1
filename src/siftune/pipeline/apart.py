"""What a run or a worker does about shards that fail: it says so, and where processes died over one, has it made in a process apart.

That process notes each batch before it tries it. When it ends, it is known what it was at; the next one makes that in halves, until
the row is alone that does it. After two ends over that row alone it gets a reason in place of numbers (`siftune.datastore.careful`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from siftune.datastore.making import OnFailure
from siftune.datastore.plan import Shard
from siftune.datastore.shards import shard_notes
from siftune.datastore.trouble import Trouble
from siftune.pipeline.session import Session
from siftune.records.errors import SiftuneError


def on_failure(session: Session, only: str | None = None) -> OnFailure:
    """What is done about failures here. only: the shard that this process, started for that, makes"""
    halved = False

    def told(event: str, **details: Any) -> None:
        nonlocal halved
        session.log.event(event, **details)
        if event == "row left out":
            session.reporter.warn(f"{details['where']}: this row is left out: {details['reason']}")
        elif event == "batch halved" and not halved:
            halved = True
            session.reporter.note(
                "memory does not hold every batch: those are made in halves (a new run with a smaller --batch-tokens saves that)"
            )

    return OnFailure(told, partial(_made_apart, session), only)


def worker_command(session: Session) -> list[str]:
    """What starts a worker for the choice that is being made."""
    words = [word for name, value in session.choice().items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "siftune", "worker", str(session.path), "--quiet", *words]


def _made_apart(session: Session, folder: Path, shard: Shard) -> None:
    """Have a shard made by processes apart, one after another. Raises SiftuneError where they get nowhere."""
    name = (folder / shard.name).relative_to(session.path)
    session.reporter.warn(
        f"processes died over {name}: it is made in a process apart, again and again until the row is found that does it"
    )
    session.log.event("shard apart", shard=str(name), deaths=Trouble.of(folder, shard).deaths)
    while shard_notes(folder, shard) is None:
        before = Trouble.of(folder, shard)
        before.trying = None  # of a process that ended together with who had started it
        before.write()
        how, said = _run_apart(session, name)
        trouble = Trouble.of(folder, shard)
        if trouble.trying:
            session.log.event("process ended", shard=str(name), rows=trouble.trying, how=how)
            n_rows = sum(not row.startswith("-") for row in trouble.trying.split())
            session.reporter.note(
                f"{name}: a process ended ({how}); it was at {n_rows} {'rows' if n_rows > 1 else 'row'}"
            )
            trouble.ended_by(how)
        elif trouble.ended == before.ended and shard_notes(folder, shard) is None:
            raise SiftuneError(
                f"a process apart could not make it ({said or how})",
                where=str(folder / shard.name),
                todo="Put that right (see also the system's log, and the memory that is free), and run the same command again",
            )


def _run_apart(session: Session, name: Path) -> tuple[str, str]:
    """Start a process for one shard and wait for it: how it ended, and the last line that it said."""
    environment = {**os.environ, "SIFTUNE_STARTED_BY": str(os.getpid())}
    command = [*worker_command(session), "--shard", str(name)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as process:
        try:
            text, _ = process.communicate()
        finally:
            process.kill()
    status, lines = process.returncode, text.decode(errors="replace").strip().splitlines()
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return how, lines[-1].removeprefix("error: ") if lines else ""
