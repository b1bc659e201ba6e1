"""Who makes which shard, where several processes work on one store.

A claim is a file that is created exclusively and touched while the work goes on. One that was not touched for EXPIRY seconds, or
whose process on this machine is gone, counts no more. Claims only save work: whoever makes a shard writes the same bytes, so a
claim that is lost or doubled costs time and nothing else. A process that slept past its claim's end finds the other's name in it
and leaves it alone. That a process died over a shard is noted by who takes it over (`siftune.datastore.trouble`).
"""

from __future__ import annotations

import os
import platform
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import psutil

from siftune.datastore.plan import Shard, ShardPlan
from siftune.datastore.shards import shard_file, shard_notes
from siftune.datastore.trouble import Trouble
from siftune.records.files import check_regular, disk_error

EXPIRY, BEAT, POLL = 300.0, 20.0, 0.5
"""Seconds: after which an untouched claim is void, between touches, between looks at what others still hold."""


def shards_to_make(
    folder: Path,
    plan: ShardPlan,
    on_rows: Callable[[int], None] = lambda rows: None,
    on_wait: Callable[[str], None] = lambda what: None,
) -> Generator[Shard, None, None]:
    """Shards of `folder` for the caller to make, each claimed until the next is asked for; ends when all are done.

    The list is gone through once, each shard looked at when its turn comes: looking again at all that are missing after every
    shard would be shards² / 2 looks (design/scale.md). Then it waits for those that other processes hold. `on_rows` is told the rows
    of shards that they finished meanwhile, `on_wait`, once, what is waited for.
    """
    waited = False
    with _disk_told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in plan.shards if shard_notes(folder, shard) is None]
    if missing and held_by_another(_claim_file(folder, missing[0])):
        own = zlib.crc32(_me().encode()) % len(missing)  # at the front is a crowd
        missing = missing[own:] + missing[:own]
    while missing:
        left: list[Shard] = []
        for shard in missing:
            if shard_notes(folder, shard) is not None:
                on_rows(len(shard))
                continue
            with _claimed(folder, shard) as held:
                if not held:
                    left.append(shard)
                elif shard_notes(folder, shard) is None:
                    yield shard
                else:
                    on_rows(len(shard))
                if held:
                    Trouble.of(folder, shard).over()
        if left and len(left) == len(missing):
            if not waited:
                on_wait(_held(folder, left[0]))
            waited = True
            time.sleep(POLL)
        missing = left


def _held(folder: Path, shard: Shard) -> str:
    claim = _claim_file(folder, shard)
    where, _, pid = (_holder(claim) or "").rpartition(" ")
    who = f"process {pid} on {where.partition('/')[0]}" if where else "another process, just gone,"
    return (
        f"waiting for {claim.name}, which {who} holds; it is void after {EXPIRY / 60:.0f} minutes of silence"
    )


def _claim_file(folder: Path, shard: Shard) -> Path:
    return shard_file(folder, shard).with_suffix(".claim")


def held_by_another(claim: Path) -> bool:
    """Is there such a claim, and does it count?"""
    return claim.exists() and not _void(claim)


@contextmanager
def _claimed(folder: Path, shard: Shard) -> Iterator[bool]:
    """Whether the shard is this process's to make while the block lasts."""
    claim = _claim_file(folder, shard)
    left_by = _holder(claim) if _void(claim) else None
    with _disk_told(claim):
        if left_by is not None:
            _remove(claim, left_by)
        taken = _taken(claim)
    if not taken:
        yield False
        return
    over = threading.Event()
    beat = threading.Thread(target=_keep, args=(claim, over), daemon=True)
    beat.start()
    try:
        if left_by is not None:
            Trouble.of(folder, shard).died()
        yield True
    finally:
        over.set()
        beat.join()
        with _disk_told(claim):
            _remove(claim, _me())


def _me() -> str:
    return f"{_here()} {os.getpid()}"


@cache
def _here() -> str:
    """Where a process id means something: this machine since it was started; a container with processes of its own is another."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
        return f"{platform.node()}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return platform.node()


@cache
def _clock_ahead(folder: Path) -> float:
    """Seconds that the clock of whoever keeps the files is ahead of this machine's."""
    try:
        with NamedTemporaryFile(dir=folder, prefix=".clock.", suffix=".part") as touched:
            return os.fstat(touched.fileno()).st_mtime - time.time()
    except OSError:  # a full disk, or one that is only read
        return 0.0


def _taken(claim: Path) -> bool:
    try:
        descriptor = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{_me()}\n")
    except OSError:  # a full disk; an empty claim would keep everybody waiting
        claim.unlink(missing_ok=True)
        raise
    return True


def _holder(claim: Path) -> str | None:
    """Who holds a claim, as `machine pid`; None where there is none, "" from one that is just being written."""
    try:
        check_regular(claim)
        return claim.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _remove(claim: Path, of: str) -> None:
    """Remove a claim, unless it is somebody else's by now."""
    if _holder(claim) == of:
        claim.unlink(missing_ok=True)


def _void(claim: Path) -> bool:
    """Is whoever made the claim gone, or silent for too long?"""
    holder = _holder(claim)
    try:
        age = time.time() + _clock_ahead(claim.parent) - claim.stat().st_mtime
    except FileNotFoundError:
        return False
    host, _, pid = (holder or "").rpartition(" ")
    return age > EXPIRY or (host == _here() and pid.isdigit() and not _alive(int(pid)))


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
            if _holder(claim) != _me():
                return
            os.utime(claim)
        except OSError:  # the claim is gone, or its disk: it will expire, which costs time only
            return


@contextmanager
def _disk_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        told = disk_error(error, path)
        if told is error:
            raise
        raise told from error
