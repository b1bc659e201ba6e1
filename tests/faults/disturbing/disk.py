"""Disks that are full or may not be written to: a small file system in memory, which root alone can mount, or a write that fails."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from disturbing.kills import work_of
from disturbing.scene import Outcome, Scene, again, draw, stage_of

ROOM = "1g"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system in memory at `folder`; None where this process may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Another size, or read-only."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def full(scene: Scene, seed: int, case: str) -> Outcome | None:
    """A run on a disk that holds a part of what it needs; then there is room. None where none can be mounted."""
    fault, moments, like = "disk full", draw(seed, "full", case), scene.finished
    needed = sum(4096 * -(-file.stat().st_size // 4096) for file in like.path.rglob("*") if file.is_file())
    with small_disk(scene.folder / "disk") as disk:
        if disk is None:
            return None
        size = int(needed * moments.uniform(0.02, 1.0))
        remount(disk, f"size={size}")
        out = disk / "run"
        ended = scene.forks.run(*scene.run(out))
        where = stage_of(out)
        told = ended.clear and "the disk is full" in ended.text
        happened = ended.status != 0
        remount(disk, f"size={ROOM}")
        identical, lost, note = again(scene, like, out, scene.run(out))
        note = note if told or not happened else ended.text[-600:]
        case = f"{case}: {size / needed:.0%} of what it needs"
        return Outcome(fault, case, happened, told or not happened, identical, lost, where, note)


def failing_call(scene: Scene, name: str, seed: int, case: str) -> Outcome:
    """A rename or sync that fails because the disk is full."""
    before, command, like = work_of(scene, name)
    moments = draw(seed, "failing", name, case)
    call = moments.choice(sorted(like.calls))
    at = [call, moments.randint(1, like.calls[call]), "before", "ENOSPC"]
    with scene.place(before) as out:
        ended = scene.forks.run(*command(out), at=at)
        where = stage_of(out)
        told = ended.clear and "the disk is full" in ended.text
        identical, lost, note = again(scene, like, out, command(out))
        note = note if told else ended.text[-600:]
        return Outcome(
            "disk full at a call", f"{name}: {call} {at[1]}", True, told, identical, lost, where, note
        )


def read_only(scene: Scene, name: str) -> Outcome | None:
    """A command in a directory that may not be written to; then it may. None where none can be mounted."""
    before, command, like = work_of(scene, name)
    with small_disk(scene.folder / "disk") as disk:
        if disk is None:
            return None
        out = disk / "run"
        if before:
            shutil.copytree(before, out)
        remount(disk, "ro")
        ended = scene.forks.run(*command(out))
        told = ended.clear and "Read-only" in ended.text
        remount(disk, "rw")
        identical, lost, note = again(scene, like, out, command(out))
        note = note if told else ended.text[-600:]
        return Outcome("read-only directory", name, True, told, identical, lost, "start", note)
