"""Commands that are killed or stopped at a moment: kill -9, SIGTERM, Ctrl-C; of one process, or of one of several on a run."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from disturbing.scene import Outcome, Scene, Undisturbed, again, draw, stage_of

DRAWS = 6
"""Moments that are drawn for a try until one comes before the command has ended."""
KILL, TERM, CTRL_C = "kill -9", "SIGTERM", "Ctrl-C"
SIGNALS = {KILL: signal.SIGKILL, TERM: signal.SIGTERM, CTRL_C: signal.SIGINT}


class Work(NamedTuple):
    """A command to disturb: what is there before, the command, what an undisturbed one leaves."""

    before: Path | None
    command: Callable[[Path], list[object]]
    like: Undisturbed


def work_of(scene: Scene, name: str) -> Work:
    """`run`, `run on` (from after the warm-up), `append`, `select` or `compare`."""
    if name == "run":
        return Work(None, scene.run, scene.finished)
    if name == "run on":
        return Work(scene.warm, scene.run, scene.carried_on)
    commands = {
        "append": (scene.append, scene.appended),
        "select": (scene.select, scene.selected),
        "compare": (scene.compare, scene.compared),
    }
    return Work(scene.finished.path, *commands[name])


def at_a_moment(scene: Scene, fault: str, name: str, seed: int, case: str) -> Outcome:
    """The command `name` gets a signal at a moment drawn uniformly over the time that it takes undisturbed."""
    before, command, like = work_of(scene, name)
    moments = draw(seed, fault, name, case)
    for _ in range(DRAWS):
        with scene.place(before) as out:
            process = scene.forks.start(*command(out))
            time.sleep(moments.random() * like.seconds)
            where = stage_of(out)
            process.signal(SIGNALS[fault])
            ended = process.finished()
            if ended.status == 0:
                continue  # the moment came too late
            identical, lost, note = again(scene, like, out, command(out))
            told = _told(fault, ended.status, ended.text, out)
            return Outcome(
                fault, f"{name}: {case}", True, told, identical, lost, where, note or _said(told, ended)
            )
    return Outcome(fault, f"{name}: {case}", False, True, True, 0)


def at_a_call(scene: Scene, name: str, seed: int, case: str) -> Outcome:
    """The command `name` is killed just before or after it renames or syncs a file, the moments at which a state changes."""
    before, command, like = work_of(scene, name)
    moments = draw(seed, "call", name, case)
    call = moments.choice(sorted(like.calls))
    at = [call, moments.randint(1, like.calls[call]), moments.choice(["before", "after"]), "SIGKILL"]
    with scene.place(before) as out:
        ended = scene.forks.run(*command(out), at=at)
        where = stage_of(out)
        identical, lost, note = again(scene, like, out, command(out))
        what = f"{name}: {at[2]} {call} {at[1]}"
        return Outcome(
            "kill -9 beside a rename or sync", what, ended.status == -9, True, identical, lost, where, note
        )


def among_workers(scene: Scene, seed: int, case: str) -> Outcome:
    """A run and two workers beside it: one of the three, or all, get kill -9."""
    moments = draw(seed, "workers", case)
    like, seconds = scene.finished, scene.shared_seconds
    for _ in range(DRAWS):
        with scene.place(scene.warm) as out:
            processes = [scene.forks.start("worker", out, "--quiet") for _ in range(2)]
            processes.append(scene.forks.start(*scene.run(out)))
            time.sleep(moments.random() * seconds)
            victims = moments.choice([processes[:1], processes[1:2], processes[2:], processes])
            where = stage_of(out)
            for process in victims:
                process.signal(signal.SIGKILL)
            ended = [process.finished() for process in processes]
            killed = [process for process, of in zip(processes, ended, strict=True) if of.status == -9]
            others = [of for process, of in zip(processes, ended, strict=True) if process not in killed]
            if not killed:
                continue
            told = all(of.status == 0 for of in others)
            identical, lost, note = again(scene, like, out, scene.run(out))
            note = note or "" if told else " ".join(of.text[-300:] for of in others)
            return Outcome(f"{KILL} of workers", case, True, told, identical, lost, where, note)
    return Outcome(f"{KILL} of workers", case, False, True, True, 0)


def frozen(scene: Scene, seed: int, case: str, at: list[object] | None = None) -> Outcome:
    """A worker that stops between two steps of making a shard until its claim is void and others have made it, and then wakes up."""
    moments = draw(seed, "frozen", case)
    short = {"siftune.datastore.claims.EXPIRY": 1.0, "siftune.datastore.claims.BEAT": 0.2}
    like = scene.finished
    call = moments.choice(sorted(like.calls))
    at = at or [call, moments.randint(2, 12), moments.choice(["before", "after"]), "SIGSTOP"]
    with scene.place(scene.warm) as out:
        worker = scene.forks.start("worker", out, "--quiet", patch=short, at=at)
        while not _stopped(worker.pid):
            if early := worker.ended(0.05):
                return Outcome("frozen worker", case, False, early.status == 0, True, 0)
        where = next((file.parent.name for file in out.glob("datastore/less/*/*.claim")), "between shards")
        time.sleep(1.2)
        ended = scene.forks.run(*scene.run(out), patch=short)
        told = ended.status == 0
        # what the sleeper has aside, and its claim, are still its own
        identical = all(name.endswith(".claim") for name in like.differing(out))
        worker.signal(signal.SIGCONT)
        woken = worker.finished()
        told = told and woken.status == 0
        note = "" if told else f"{ended.text[-300:]} {woken.text[-300:]}"
        return Outcome(
            "frozen worker",
            f"{case}: {at[2]} {at[0]} {at[1]}",
            True,
            told,
            identical and like.same(out),
            like.lost(out),
            where,
            note,
        )


def at_once(scene: Scene, seed: int, case: str) -> Outcome:
    """The same command twice at a time in one directory: one works, the other says so; then it is killed, and two start again."""
    moments = draw(seed, "two", case)
    like = scene.finished
    refusal = "another siftune is working in this run"
    with scene.place() as out:
        first = scene.forks.start(*scene.run(out))
        while not (out / ".lock").exists():
            time.sleep(0.01)
        time.sleep(moments.random() * like.seconds * 0.8)
        second = scene.forks.run(*scene.run(out))
        told = (second.clear and refusal in second.text) or (
            second.status == 0 and first.ended(1) is not None
        )
        first.signal(signal.SIGKILL)
        where = stage_of(out)
        first.finished()
        both = [scene.forks.start(*scene.run(out)) for _ in range(2)]
        ended = [process.finished() for process in both]
        told = told and all(of.status == 0 or (of.clear and refusal in of.text) for of in ended)
        identical, lost, note = again(scene, like, out, scene.run(out))
        note = note if told else " ".join(of.text[-300:] for of in [second, *ended])
        return Outcome("two runs in one directory", case, True, told, identical, lost, where, note)


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T"


def _told(fault: str, status: int, text: str, out: Path) -> bool:
    if fault != CTRL_C:
        return status == -SIGNALS[fault] and "Traceback" not in text
    return (
        status == 130
        and "go on with the same command" in text
        and "Traceback" not in text
        and str(out) in text
    )


def _said(told: bool, ended: NamedTuple) -> str:
    return "" if told else str(ended)[-600:]
