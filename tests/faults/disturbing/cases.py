"""Every try of `make faults`, in an order in which each kind comes early; those of `make test` are some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, zip_longest

from disturbing import broken_numbers, damage, disk, kills
from disturbing.scene import Outcome, Scene

Case = tuple[str, Callable[[], Outcome | None]]
"""A name that stays the same from run to run, and the try; None where this machine can't make the fault."""

KILLS = {"run": 40, "run on": 20, "append": 8, "select": 4, "compare": 4}
"""Of a hundred kills at moments drawn uniformly, how many fall to each command; the others to one of several workers."""
WORKERS, CALLS, STOPS, OTHERS = 24, 20, 6, 6


def cases(scene: Scene, seed: int) -> Iterator[Case]:
    """All tries, a few of each kind after another."""
    kinds = [
        _kills(scene, seed),
        _workers(scene, seed),
        _calls(scene, seed),
        _stops(scene, seed),
        _disks(scene, seed),
        _damages(scene, seed),
        _several(scene, seed),
        _numbers(scene),
    ]
    return (case for case in chain.from_iterable(zip_longest(*kinds)) if case is not None)


def _kills(scene: Scene, seed: int) -> Iterator[Case]:
    counted = [[(name, k) for k in range(n)] for name, n in KILLS.items()]
    for name, k in filter(None, chain.from_iterable(zip_longest(*counted))):
        case = f"seed {seed}, try {k}"
        yield (
            f"kill -9, {name}, {case}",
            partial(kills.at_a_moment, scene, kills.KILL, name, seed, case),
        )


def _workers(scene: Scene, seed: int) -> Iterator[Case]:
    for k in range(WORKERS):
        case = f"seed {seed}, try {k}"
        yield f"kill -9 of workers, {case}", partial(kills.among_workers, scene, seed, case)


def _calls(scene: Scene, seed: int) -> Iterator[Case]:
    for k in range(CALLS):
        name, case = ("run on", "append", "run", "select")[k % 4], f"seed {seed}, try {k}"
        yield f"kill -9 at a call, {name}, {case}", partial(kills.at_a_call, scene, name, seed, case)


def _stops(scene: Scene, seed: int) -> Iterator[Case]:
    for k in range(2 * STOPS):
        fault, name = (kills.TERM, kills.CTRL_C)[k % 2], ("run", "run on", "append")[k // 2 % 3]
        case = f"seed {seed}, try {k}"
        yield f"{fault}, {name}, {case}", partial(kills.at_a_moment, scene, fault, name, seed, case)


def _disks(scene: Scene, seed: int) -> Iterator[Case]:
    for k in range(OTHERS):
        case = f"seed {seed}, try {k}"
        yield f"disk full, {case}", partial(disk.full, scene, seed, case)
        name = ("run on", "append", "select")[k % 3]
        yield f"disk full at a call, {name}, {case}", partial(disk.failing_call, scene, name, seed, case)
    for name in ("run", "run on", "append", "select", "compare"):
        yield f"read-only directory, {name}", partial(disk.read_only, scene, name)


def _damages(scene: Scene, seed: int) -> Iterator[Case]:
    for way in ("one bit flipped", "cut short", "removed"):
        for name in damage.FILES:
            yield f"{way}, seed {seed}, {name}", partial(damage.damaged, scene, name, way, seed)


def _several(scene: Scene, seed: int) -> Iterator[Case]:
    for k in range(OTHERS):
        case = f"seed {seed}, try {k}"
        yield f"frozen worker, {case}", partial(kills.frozen, scene, seed, case)
        yield f"two runs in one directory, {case}", partial(kills.at_once, scene, seed, case)


def _numbers(scene: Scene) -> Iterator[Case]:
    for case in broken_numbers.CASES:
        yield f"weights that are no numbers, {case}", partial(broken_numbers.not_a_number, scene, case)
