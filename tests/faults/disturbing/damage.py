"""Files of a finished run that are cut, flipped in one bit or removed.

Three questions are put: does `siftune datastore verify` name the file; do choosing again and a new question to the run refuse it
by name, or come to what they come to without the fault; and, once what was said has been done, is the run again what it was?
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from disturbing.forks import Ended
from disturbing.scene import Outcome, Scene, Undisturbed, draw

FILES = (
    "pool/plan.json",
    "pool/index.parquet",
    "pool/shard-00002.arrow",
    "pool/shard-00002.json",
    "checkpoints/manifest.json",
    "checkpoints/warmup.json",
    "checkpoints/1/adapter_model.safetensors",
    "checkpoints/1/adapter_config.json",
    "checkpoints/1/adam_state.safetensors",
    "checkpoints/1/checkpoint.json",
    "datastore/less/1/manifest.json",
    "datastore/less/1/shard-00002.safetensors",
    "datastore/less/1/shard-00002.json",
    "datastore/rds+/0/manifest.json",
    "datastore/rds+/0/shard-00002.safetensors",
    "datastore/rds+/0/shard-00002.json",
    "targets/sums/target.json",
    "targets/sums/rows.jsonl",
    "targets/sums/features/1.safetensors",
    "targets/sums/features/1.json",
    "targets/sums/vectors/rds+.safetensors",
    "targets/sums/vectors/rds+.json",
    "targets/sums/influence/1/shard-00002.safetensors",
    "targets/sums/influence/1/shard-00002.json",
    "selections/sums/selected.jsonl",
    "selections/sums/scores.parquet",
    "selections/sums/selection.json",
)


def cut(file: Path, draw: random.Random) -> None:
    with file.open("r+b") as opened:
        opened.truncate(draw.randrange(file.stat().st_size))


def flip(file: Path, draw: random.Random) -> None:
    held = bytearray(file.read_bytes())
    held[draw.randrange(len(held))] ^= 1 << draw.randrange(8)
    file.write_bytes(held)


def remove(file: Path, draw: random.Random) -> None:
    file.unlink()


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "cut short": cut,
    "one bit flipped": flip,
    "removed": remove,
}


def damaged(scene: Scene, name: str, way: str, seed: int) -> Outcome:
    """One file of a finished run is damaged."""
    like = scene.finished
    with scene.place(like.path) as out:
        WAYS[way](out / name, draw(seed, name, way))
        found = scene.forks.run("datastore", "verify", out)
        named = found.status in (1, 2) and _kin(name, found.text) and "Traceback" not in found.text
        faults = [] if named else [f"verify: {found.status} {found.text[-300:]}"]
        faults += _used(scene, out, name, scene.select, scene.selected, "again")
        faults += _used(scene, out, name, scene.score, scene.scored, "other")
        mended, lost, note = _mended(scene, like, out, name)
        return Outcome(
            f"a file {way}",
            name,
            True,
            not faults,
            mended,
            lost,
            name.partition("/")[0],
            " | ".join([*faults, note]),
        )


def _used(
    scene: Scene,
    before: Path,
    name: str,
    command: Callable[[Path], list[object]],
    like: Undisturbed,
    selection: str,
) -> list[str]:
    """A command on a copy of the damaged run: what is wrong with how it took it."""
    out = before.with_name("disturbed-copy")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(before, out)
    ended = scene.forks.run(*command(out))
    differing = like.differing(out, f"selections/{selection}")
    shutil.rmtree(out)
    if ended.status == 0:
        return [f"{command.__name__} used it: {', '.join(differing)}"] if differing else []
    told = ended.clear and _kin(name, ended.text)
    return [] if told else [f"{command.__name__}: {ended.status} {ended.text[-400:]}"]


def _mended(scene: Scene, like: Undisturbed, out: Path, name: str) -> tuple[bool, int, str]:
    """Do what the errors say, remove the file (or its folder), and run again."""
    ended: Ended = scene.forks.run(*scene.run(out))
    if ended.status or not like.same(out):
        for doomed in _to_remove(name):
            path = out / doomed
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        ended = scene.forks.run(*scene.run(out))
    if ended.status:
        return False, 0, ended.text[-400:]
    return like.same(out), like.lost(out), ", ".join(like.differing(out)[:6])


def _to_remove(name: str) -> list[str]:
    """What has to go so that it is made anew: documented in docs/reference/files.md."""
    path = Path(name)
    if path.name == "warmup.json":
        return ["checkpoints", "datastore"]
    if name == "checkpoints/manifest.json":  # written when a model is next loaded
        return [name, *_both("targets/sums/features/1")]
    if path.name == "manifest.json" or path.parts[0] in ("checkpoints", "selections"):
        return [str(path.parent)]
    if path.parts[0] == "pool":
        return ["pool/plan.json", *_both(str(path.with_suffix("")))]
    return ["targets/sums/target.json"] if path.name == "rows.jsonl" else _both(str(path.with_suffix("")))


def _both(name: str) -> list[str]:
    """A file and its side-car."""
    return [name + ending for ending in (".safetensors", ".arrow", ".parquet", ".json")]


def _kin(name: str, text: str) -> bool:
    """Is the file named, or the one that it is the side-car of, or its folder?"""
    path = Path(name)
    return any(str(part) in text for part in (path, path.with_suffix(""), path.parent)) or (
        path.stem.startswith("shard-") and path.stem in text
    )
