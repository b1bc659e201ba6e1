"""A checkpoint: LoRA weights, Adam moments and the learning-rate weight w, as one folder that appears whole.

    checkpoints/1/adapter_model.safetensors   adapter_config.json
                  adam_state.safetensors      exp_avg.NAME, exp_avg_sq.NAME: fp32, NAME as in the adapter file
                  checkpoint.json             weight, step, betas, eps, mean learning rate, where it came from

Over the checkpoints of a run the weights sum to 1: w_i = η_i / Σ η, η_i = mean learning rate since the previous
checkpoint (LESS, section 3.1).
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from siftune.model.lora import adapter_tensors, is_lora_weight
from siftune.records.errors import SiftuneError
from siftune.records.files import disk_error, fsync, read_object, read_sealed, sealed, sha256_of

ADAPTER, CONFIG, ADAM, FACTS = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "adam_state.safetensors",
    "checkpoint.json",
)
_AGAIN = "Remove the folder and run the same command again"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint at rest in `path`; the moments are read, and all its bytes checked, when first asked for.

    number, of:         1, 2, … in the order of training, of how many in all
    weight:             w, over all checkpoints of the run they sum to 1
    step:               optimizer steps taken (t of Adam's bias correction)
    betas, eps:         of Adam, as read from the optimizer's own state
    mean_learning_rate: over the steps since the previous checkpoint; None where the person gave the weights
    origin:             where it came from, JSON (folder, how the weight was found, notes, the probe's figures …)
    sha256:             of its other files by name; empty where an older siftune wrote it
    """

    number: int
    of: int
    path: Path
    weight: float
    step: int
    betas: tuple[float, float]
    eps: float
    mean_learning_rate: float | None
    origin: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)

    def check(self, *names: str) -> None:
        """Raises SiftuneError where one of the files is no longer what was written."""
        for name in names:
            if name in self.sha256 and sha256_of(self.path / name) != self.sha256[name]:
                raise SiftuneError(
                    "is damaged: its bytes are not those that were written (its SHA-256 differs)",
                    where=str(self.path / name),
                    todo=f"Put it back, or remove the folder {self.path} and run the same 'siftune run' again: it is made anew",
                )

    @property
    def exp_avg(self) -> dict[str, Tensor]:
        """First moments m, fp32: name as in the adapter file -> [R, in] or [out, R]."""
        return self._moments["exp_avg"]

    @property
    def exp_avg_sq(self) -> dict[str, Tensor]:
        """Second moments v ≥ 0, fp32: name as in the adapter file -> [R, in] or [out, R]."""
        return self._moments["exp_avg_sq"]

    @cached_property
    def _moments(self) -> dict[str, dict[str, Tensor]]:
        self.check(ADAPTER, ADAM)
        parts: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
        for key, tensor in load_file(self.path / ADAM).items():
            kind, _, name = key.partition(".")
            parts[kind][name] = tensor
        return parts


def write_checkpoint(
    path: Path,
    *,
    of: int,
    adapter: Path,
    weight: float,
    step: int,
    betas: tuple[float, float],
    eps: float,
    mean_learning_rate: float | None,
    origin: dict[str, Any],
    exp_avg: dict[str, Tensor],
    exp_avg_sq: dict[str, Tensor],
) -> Checkpoint:
    """Write the checkpoint folder `path` (its name is its number) whole, in place of an older one, and read it back.

    adapter: the folder whose adapter weights and adapter_config.json are taken
    """
    with folder_written_whole(path) as aside:
        save_file(adapter_tensors(adapter), aside / ADAPTER, metadata={"format": "pt"})
        (aside / CONFIG).write_text(_adapter_config(adapter), encoding="utf-8")
        moments = {f"exp_avg.{name}": tensor for name, tensor in exp_avg.items()}
        moments |= {f"exp_avg_sq.{name}": tensor for name, tensor in exp_avg_sq.items()}
        save_file({key: tensor.float().cpu().contiguous() for key, tensor in moments.items()}, aside / ADAM)
        facts = {
            "number": int(path.name),
            "of": of,
            "weight": weight,
            "step": step,
            "betas": list(betas),
            "eps": eps,
            "mean_learning_rate": mean_learning_rate,
            "origin": origin,
            "sha256": {name: sha256_of(aside / name) for name in (ADAPTER, CONFIG, ADAM)},
        }
        (aside / FACTS).write_text(
            json.dumps(sealed(facts), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
    return read_checkpoint(path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder; SiftuneError where a file is missing or the moments do not match the adapter."""
    for name in (ADAPTER, CONFIG, ADAM, FACTS):
        if not (path / name).is_file():
            raise SiftuneError(
                f"holds no {name}, so it is not a whole checkpoint", where=str(path), todo=_AGAIN
            )
    facts = read_sealed(path / FACTS)
    try:
        checkpoint = Checkpoint(
            number=int(facts["number"]),
            of=int(facts["of"]),
            path=path,
            weight=float(facts["weight"]),
            step=int(facts["step"]),
            betas=(float(facts["betas"][0]), float(facts["betas"][1])),
            eps=float(facts["eps"]),
            mean_learning_rate=facts["mean_learning_rate"],
            origin=facts["origin"],
            sha256=facts.get("sha256", {}),
        )
        checkpoint.check(CONFIG)
        shapes, moments = _shapes(path / ADAPTER), _shapes(path / ADAM)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, OSError, SafetensorError) as error:
        raise SiftuneError(f"is broken ({error})", where=str(path), todo=_AGAIN) from error
    expected = {
        f"{kind}.{name}": shape
        for kind in ("exp_avg", "exp_avg_sq")
        for name, shape in shapes.items()
        if is_lora_weight(name)
    }
    if moments != expected:
        name = min({key for key, _ in moments.items() ^ expected.items()})
        raise SiftuneError(
            f"the Adam moments do not match the adapter at {name}", where=str(path), todo=_AGAIN
        )
    return checkpoint


def list_checkpoints(run: Path) -> list[Checkpoint]:
    """All checkpoints of a run directory in order, their weights sum to 1; [] where not all of them are there yet."""
    folders = sorted(
        (path for path in (run / "checkpoints").glob("*") if path.name.isdigit()), key=lambda p: int(p.name)
    )
    checkpoints = [read_checkpoint(path) for path in folders]
    if not checkpoints or len(checkpoints) < max(checkpoint.of for checkpoint in checkpoints):
        return []
    numbers = [checkpoint.number for checkpoint in checkpoints]
    if (
        numbers != list(range(1, checkpoints[0].of + 1))
        or len({checkpoint.of for checkpoint in checkpoints}) > 1
    ):
        raise SiftuneError(
            "holds checkpoints of different trainings", where=str(run / "checkpoints"), todo=_AGAIN
        )
    if not math.isclose(sum(checkpoint.weight for checkpoint in checkpoints), 1, rel_tol=1e-6):
        raise SiftuneError(
            "the checkpoints' weights do not sum to 1", where=str(run / "checkpoints"), todo=_AGAIN
        )
    return checkpoints


def normalised(weights: Sequence[float], where: str) -> list[float]:
    """Weights divided by their sum. SiftuneError where one is negative or not finite, or all are 0."""
    if any(not math.isfinite(weight) or weight < 0 for weight in weights) or sum(weights) <= 0:
        shown = ", ".join(f"{weight:g}" for weight in weights)
        raise SiftuneError(
            f"these weights cannot be used: {shown}", where=where, todo="Give positive numbers as --weights"
        )
    total = math.fsum(weights)
    return [weight / total for weight in weights]


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Yield an empty folder aside `path`; when the block ends without error it becomes `path`, every file synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.part"):
        shutil.rmtree(left)
    aside, old = (path.with_name(f".{path.name}.{what}{os.getpid()}.part") for what in ("", "old"))
    try:
        aside.mkdir()
        yield aside
        for file in [*aside.iterdir(), aside]:
            fsync(file)
        if path.exists():
            path.rename(old)
        aside.rename(path)
        fsync(path.parent)
    except (OSError, SafetensorError) as error:
        told = disk_error(error, path)
        if told is error:
            raise
        raise told from error
    finally:
        for left in (aside, old):
            shutil.rmtree(left, ignore_errors=True)


def _adapter_config(adapter: Path) -> str:
    """adapter_config.json with PEFT's sets in sorted order, so that equal adapters have equal bytes."""
    config = read_object(adapter / CONFIG)
    for key in ("target_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  not a dict
