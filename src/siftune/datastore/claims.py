"""Who makes which shard, where several processes work on one store.

A claim is a file that is created exclusively and touched while the work goes on. One that was not touched for EXPIRY seconds, or
whose process on this machine is gone, counts no more. Claims only save work: whoever makes a shard writes the same bytes, so a
claim that is lost or doubled costs time and nothing else.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from siftune.datastore.plan import Shard, ShardPlan
from siftune.datastore.shards import shard_file, shard_notes

EXPIRY, BEAT, POLL = 300.0, 20.0, 0.5
"""Seconds: after which an untouched claim is void, between touches, between looks at what others still hold."""


def shards_to_make(
    folder: Path,
    plan: ShardPlan,
    on_rows: Callable[[int], None] = lambda rows: None,
    on_wait: Callable[[str], None] = lambda what: None,
) -> Iterator[Shard]:
    """Shards of `folder` for the caller to make, each claimed until the next is asked for; ends when all are done.

    Waits for those that other processes hold; `on_rows` is told the rows of shards that they finished meanwhile,
    `on_wait`, once, what is waited for.
    """
    waited = False
    folder.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in plan.shards if shard_notes(folder, shard) is None]
    while missing:
        mine: Shard | None = None
        for shard in missing:
            with _claimed(folder, shard) as held:
                if held and shard_notes(folder, shard) is None:
                    mine = shard
                    yield shard
            if mine:
                break
        left = [shard for shard in missing if shard_notes(folder, shard) is None]
        by_others = sum(len(shard) for shard in missing if shard not in left and shard is not mine)
        if by_others:
            on_rows(by_others)
        if left and mine is None:
            if not waited:
                on_wait(_held(folder, left[0]))
            waited = True
            time.sleep(POLL)
        missing = left


def _held(folder: Path, shard: Shard) -> str:
    claim = shard_file(folder, shard).with_suffix(".claim")
    holder = claim.read_text(encoding="utf-8").strip() if claim.exists() else ""
    who = f"another process ({holder or 'just gone'})"
    return (
        f"waiting for {claim.name}, which {who} holds; it is void after {EXPIRY / 60:.0f} minutes of silence"
    )


@contextmanager
def _claimed(folder: Path, shard: Shard) -> Iterator[bool]:
    """Whether the shard is this process's to make while the block lasts."""
    claim = shard_file(folder, shard).with_suffix(".claim")
    if not _taken(claim):
        yield False
        return
    over = threading.Event()
    beat = threading.Thread(target=_keep, args=(claim, over), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        over.set()
        beat.join()
        claim.unlink(missing_ok=True)


def _taken(claim: Path) -> bool:
    if claim.exists() and _void(claim):
        claim.unlink(missing_ok=True)
    try:
        descriptor = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{platform.node()} {os.getpid()}\n")
    return True


def _void(claim: Path) -> bool:
    """Is whoever made the claim gone, or silent for too long?"""
    try:
        age = time.time() - claim.stat().st_mtime
        host, _, pid = claim.read_text(encoding="utf-8").strip().rpartition(" ")
    except FileNotFoundError:
        return False
    return age > EXPIRY or (host == platform.node() and pid.isdigit() and not _alive(int(pid)))


def _alive(pid: int) -> bool:
    """A process that was killed and that its parent hasn't asked about yet is dead."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _keep(claim: Path, over: threading.Event) -> None:
    """Touch the claim until the work is over, or somebody has taken the claim away."""
    while not over.wait(BEAT):
        try:
            os.utime(claim)
        except OSError:  # the claim is gone, or its disk: it will expire, which costs time only
            return
