"""`RUN/targets/NAME/`: a target's rows, their features under each checkpoint, and the pool's influence on them.

rows.jsonl                               {id, where, subtask, fingerprint, n_tokens, n_trained, messages, tools} a row
target.json                              where it came from, digest of its rows, subtasks in order of first appearance
features/CKPT.safetensors                features [V, D] fp32 unit length; loss, grad_norm, direction_norm, projection_norm [V]
vectors/METHOD.safetensors               features [V, H] fp32 unit length, for methods that compare vectors
influence/CKPT/shard-00000.safetensors   influence [n, V] fp32 = <Φ(n), φ(v)>, pool order, NaN where a row has no feature
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from siftune.datastore.plan import Shard
from siftune.datastore.pool import TokenRows
from siftune.datastore.shards import read_shard, shard_notes
from siftune.datastore.side_car import fitting_side_car, is_sound, write_side_car
from siftune.datastore.store import Datastore, store_digest
from siftune.records.errors import SiftuneError
from siftune.records.example import Example
from siftune.records.files import digest_of, read_sealed, sha256_of, write_sealed, write_text, written_whole
from siftune.records.formats import conversation_of
from siftune.records.readers import TargetRow
from siftune.records.row import UnusableError

_ABOUT = ("name", "source", "digest", "fingerprint_V", "subtask_V")


@dataclass(frozen=True)
class Target:
    """A target that was read into a run: `subtask_V[v]` names row v's subtask, `sha256` the digest of `rows.jsonl`."""

    path: Path
    name: str
    source: str
    digest: str
    fingerprint_V: list[str]
    subtask_V: list[str]
    sha256: dict[str, str] = field(default_factory=dict)

    @property
    def subtasks(self) -> list[str]:
        """In order of first appearance."""
        return list(dict.fromkeys(self.subtask_V))

    @classmethod
    def open(cls, path: Path) -> Target:
        """Raises SiftuneError where the run has no such target."""
        if not (path / "target.json").exists():
            known = sorted(p.parent.name for p in path.parent.glob("*/target.json"))
            raise SiftuneError(
                f"this run has no target {path.name!r}; it has {', '.join(known) or 'none'}",
                where=str(path),
                todo="Add it with 'siftune score RUN --target NAME=FILE'",
            )
        about = read_sealed(path / "target.json", *_ABOUT)
        rows = (about["fingerprint_V"], about["subtask_V"])
        texts = [
            about["name"],
            about["source"],
            about["digest"],
            *(v for of in rows if isinstance(of, list) for v in of),
        ]
        if not all(isinstance(of, list) for of in rows) or len(rows[0]) != len(rows[1]) or not rows[0]:
            texts.append(None)
        if set(about) - {"sha256"} != set(_ABOUT) or not all(isinstance(text, str) for text in texts):
            raise _no_target("is not a target that siftune wrote", path / "target.json")
        return cls(path, **about)


def write_target(path: Path, source: str, rows: list[TargetRow], tokens: TokenRows) -> Target:
    """Keep a target's rows in the run; refused where the name is taken by other rows."""
    digest = digest_of([[row.example.fingerprint, row.subtask] for row in rows])[:32]
    if (path / "target.json").exists():
        target = Target.open(path)
        if target.digest != digest:
            raise SiftuneError(
                f"the target {path.name!r} of this run has other rows (it was read from {target.source})",
                where=source,
                todo="Give the new rows another name: --target OTHER=FILE",
            )
        return target
    lines = [
        {
            "id": row.example.id,
            "where": row.example.where,
            "subtask": row.subtask,
            "fingerprint": row.example.fingerprint,
            "n_tokens": len(token_ids),
            "n_trained": int(trained.sum()),
            "messages": row.example.messages,
            "tools": row.example.tools,
        }
        for row, token_ids, trained in zip(rows, tokens.token_ids, tokens.trained, strict=True)
    ]
    write_text(path / "rows.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    about: dict[str, Any] = {
        "name": path.name,
        "source": source,
        "digest": digest,
        "fingerprint_V": [row.example.fingerprint for row in rows],
        "subtask_V": [row.subtask for row in rows],
        "sha256": {"rows.jsonl": sha256_of(path / "rows.jsonl")},
    }
    write_sealed(path / "target.json", about)
    return Target.open(path)


def target_features(target: Target, checkpoint: int) -> np.ndarray:
    """`features_V_D`, fp32, unit length. Raises SiftuneError where the file is damaged."""
    return _numbers(target, features_file(target, checkpoint))


def missing_influence(target: Target, checkpoint: int, store: Datastore) -> list[Shard]:
    """Shards whose influence is still to be made, those of another target's rows or of an older store among them."""
    folder, made_of = target.path / "influence" / str(checkpoint), influence_notes(target, store)
    return [
        shard
        for shard in store.plan.shards
        if not made_of.items() <= (shard_notes(folder, shard) or {}).items()
    ]


def influence_notes(target: Target, store: Datastore) -> dict[str, str]:
    """What the side-car of a shard of influence says that it was made of."""
    return {"target": target.digest, "store": store.digest}


def read_influence(target: Target, checkpoint: int, store: Datastore) -> np.ndarray:
    """`influence_N_V` of the whole pool under one checkpoint, fp32."""
    folder = target.path / "influence" / str(checkpoint)
    return np.concatenate([read_shard(folder, shard)["influence"].numpy() for shard in store.plan.shards])


def kept_rows(target: Target) -> list[TargetRow]:
    """A target's rows as the run keeps them, without their other columns. Raises SiftuneError where they are damaged."""
    rows, path = list[TargetRow](), target.path / "rows.jsonl"
    try:
        with path.open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                messages, tools = conversation_of({"messages": line["messages"], "tools": line["tools"]})
                example = Example(str(line["id"]), target.name, messages, str(line["where"]), tools=tools)
                rows.append(TargetRow(example, str(line["subtask"])))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UnusableError) as error:
        raise _no_target(
            f"row {len(rows) + 1} can't be read ({type(error).__name__}: {error})", path
        ) from error
    if [row.example.fingerprint for row in rows] != target.fingerprint_V:
        raise _no_target("holds other rows than the target was made of", path)
    if target.sha256 and sha256_of(path) != target.sha256[path.name]:
        raise _no_target("is damaged: it is no longer what was written", path)
    return rows


def _no_target(what: str, file: Path) -> SiftuneError:
    return SiftuneError(
        what,
        where=str(file),
        todo="Remove the target's folder and give its file again: siftune score RUN --target NAME=FILE",
    )


def features_file(target: Target, checkpoint: int) -> Path:
    """Where a target's features under a checkpoint are."""
    return target.path / "features" / f"{checkpoint}.safetensors"


def vectors_file(target: Target, method: str) -> Path:
    """Where a target's vectors for a method are."""
    return target.path / "vectors" / f"{method}.safetensors"


def has_numbers(target: Target, file: Path, store: Path) -> bool:
    """Are a target's features or vectors there, and made with what the store at `store` is made with?"""
    made_with, notes = store_digest(store), fitting_side_car(file, target.digest)
    return made_with is not None and notes is not None and notes.get("store") == made_with


def write_target_vectors(target: Target, method: str, vectors_V_H: np.ndarray, made_with: str) -> None:
    """Keep the vectors of a target's rows. A row without one is an error: a handful of rows must all count.

    made_with: as `write_numbers` has it
    """
    for v in np.flatnonzero(~np.isfinite(vectors_V_H).all(axis=1)).tolist():
        raise SiftuneError(
            f"row {v + 1} of the target {target.name!r} has no finite vector for {method}",
            where=target.source,
            todo="Remove that row, or check the model",
        )
    write_numbers(
        target, vectors_file(target, method), {"features": np.ascontiguousarray(vectors_V_H)}, made_with
    )


def target_vectors(target: Target, method: str) -> np.ndarray:
    """`vectors_V_H`, fp32, unit length. Raises SiftuneError where the file is damaged."""
    return _numbers(target, vectors_file(target, method))


def write_numbers(target: Target, file: Path, tensors: dict[str, np.ndarray], made_with: str) -> None:
    """Commit numbers of a target's rows: its features under a checkpoint, or its vectors.

    made_with: the digest of the store that they are compared with

    The side-car comes first, so that they are done when the file is there.
    """
    file.unlink(missing_ok=True)  # of an older store
    with written_whole(file) as aside:
        aside.write_bytes(save(tensors, metadata={"target": target.digest}))
        write_side_car(file, target.digest, {"store": made_with}, content=aside)


def _numbers(target: Target, file: Path) -> np.ndarray:
    """Features or vectors of a target, their bytes checked; beside a target that an older siftune wrote they may have no side-car to check them by."""
    if target.sha256 or file.with_suffix(".json").exists():
        notes = fitting_side_car(file, target.digest)
        if notes is None or not is_sound(file, notes):
            raise SiftuneError(
                "is damaged: its bytes are not those that were written (length or checksum differs)",
                where=str(file),
                todo="Remove it and run the same 'siftune run' again: it is made anew",
            )
    try:
        features_V_D = load_file(file)["features"]
    except (SafetensorError, OSError, KeyError) as error:
        raise _no_target(f"is not what siftune wrote ({error})", file) from error
    if features_V_D.ndim != 2 or len(features_V_D) != len(target.subtask_V):
        raise _no_target(f"has the shape {features_V_D.shape} for {len(target.subtask_V)} rows", file)
    return features_V_D
