"""What is decided by looking at the machine: device, threads, dtype, batch size. Decided once, then part of the recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from siftune.model.load import choose_dtype, positions_of
from siftune.records.errors import SiftuneError
from siftune.records.recipe import Recipe


def settled(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe with everything that the machine decides filled in, and sentences that say what and why."""
    device = device_of(recipe)
    dtype, reason = choose_dtype(recipe.dtype, device)
    # On a CPU, batching beyond a few rows gains nothing and costs memory; a GPU wants to be filled.
    batch_tokens = recipe.batch_tokens or (2048 if device.type == "cpu" else 8192)
    changes: dict[str, Any] = {"device": str(device), "dtype": dtype, "batch_tokens": batch_tokens}
    notes = [f"device {device}, dtype {dtype} ({reason})"]
    positions = positions_of(recipe.model, recipe.revision) if recipe.model else None
    if positions is not None and positions < recipe.max_length:
        changes["max_length"] = positions
        notes.append(f"max_length {positions}: all the positions that the model has")
    threads = recipe.threads or torch.get_num_threads()  # all cores, or what OMP_NUM_THREADS says
    workers = recipe.workers or _workers(recipe, device, threads)
    each = recipe.worker_threads or (max(1, threads // workers) if device.type == "cpu" else threads)
    changes |= {"threads": threads, "workers": workers, "worker_threads": each}
    return recipe.with_settings(changes), notes


def device_of(recipe: Recipe) -> torch.device:
    """The device of a recipe; SiftuneError where this machine hasn't it."""
    name = recipe.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SiftuneError(
            f"this machine has no such device ({str(error).splitlines()[0]})",
            where=f"device: {name}",
            todo="Leave --device out, or use cpu",
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise SiftuneError(
            f"{device.type} is not supported: sums need numbers of 64 bits, which it hasn't or nobody has tried",
            where=f"device: {name}",
            todo="Use cpu or cuda",
        )
    return device


def on_own_device(recipe: Recipe) -> Recipe:
    """Where a launcher started several workers on a machine (torchrun, accelerate, srun): the recipe on the GPU of this one's number.

    Where fewer GPUs are visible than workers were started, they share them. On a CPU nothing is to be chosen.
    """
    number = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
    if number is None or device_of(recipe).type != "cuda":
        return recipe
    return recipe.with_settings({"device": f"cuda:{int(number) % torch.cuda.device_count()}"})


def pin(recipe: Recipe) -> None:
    """Use the recipe's number of threads: the order of sums, and so the last bits, depend on it."""
    if recipe.threads is not None and torch.get_num_threads() != recipe.threads:
        torch.set_num_threads(recipe.threads)


def _workers(recipe: Recipe, device: torch.device, threads: int) -> int:
    """One for every GPU, unless one was named; on a CPU, where a model gains little from threads, one for every thread."""
    if device.type == "cuda":
        return 1 if recipe.device else torch.cuda.device_count()
    return threads if device.type == "cpu" else 1


@contextmanager
def threads_of_shards(recipe: Recipe) -> Iterator[None]:
    """While open, this process computes with the threads of one that makes shards."""
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.worker_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
