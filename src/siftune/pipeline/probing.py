"""Timing a few real batches of a pool, so that a plan rests on this model, these rows and this machine.

Bounded in number (six batches of a kind) and in time: the next, larger batch is run only where it fits into what is allowed,
seconds or a small part of the work that it stands for. Nothing is kept: the random state, the base model and its settings are
as before, so a run makes the same bytes with a plan and without.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from siftune.chat.batches import pad_batch
from siftune.gradients.capture import layers_checkpointed
from siftune.gradients.directions import AdamState
from siftune.gradients.features import FeatureExtractor
from siftune.gradients.projection import make_projector
from siftune.model.attention import quick_attention
from siftune.model.hidden import Weighting, pooled_states
from siftune.model.load import quiet_transformers
from siftune.model.lora import lora_parameters
from siftune.model.warmup import LoraSettings, collate, trainable
from siftune.pipeline.estimate import Load, Measured, fit_rate
from siftune.records.recipe import Recipe

SECONDS = 2.0
"""Probing one kind of work may take so long, or PART of the estimated work where that is more."""
PART = 0.01
INFLUENCE_ROWS = 64

Tokens = list[tuple[np.ndarray, np.ndarray]]
"""(token ids, trained) a row."""
Batch = list[int]
"""Pool rows."""
Given = TypeVar("Given")
"""What a pass takes: tokens of a batch, or its texts."""


@dataclass(frozen=True)
class Probed:
    """One kind of work, measured. `setup`: seconds that it takes once before its first batch (drawing the projection)."""

    setup: float
    measured: list[Measured]


def probe_batches(length_N: np.ndarray, row_N: np.ndarray, full: Callable[[int], int]) -> list[Batch]:
    """Batches worth measuring, cheapest first: single rows, short to long, then four, then as many as the work would hold.

    length_N: tokens of the usable rows `row_N`; full(length) = rows of that length in one batch of the work
    """
    order = np.argsort(length_N, kind="stable")
    batches: dict[tuple[int, ...], int] = {}
    for count, part in ((1, 0.1), (1, 0.5), (1, 0.95), (4, 0.5), (None, 0.5), (None, 0.95)):
        end = int(part * (len(order) - 1)) + 1
        longest = int(length_N[order[end - 1]])
        n = min(end, count if count is not None and count < full(longest) else full(longest))
        rows = order[end - n : end]
        batches[tuple(row_N[rows].tolist())] = n * longest
    return [list(batch) for batch, _ in sorted(batches.items(), key=lambda item: item[1])]


def measure(
    run: Callable[[Given], None],
    batches: Sequence[Batch],
    prepare: Callable[[Batch], tuple[Given, list[int]]],
    work: Load,
    device: torch.device,
    baseline: int,
) -> Probed:
    """Run batches while time allows.

    prepare:  what `run` takes for a batch, and the lengths of its rows
    work:     what the probe stands for: it may take as much longer as that is large
    baseline: bytes held before, as `held_bytes` says
    """
    setup, spent, highest = 0.0, 0.0, 0
    measured: list[Measured] = []
    for batch in batches:
        given, lengths = prepare(batch)
        load = Load.of([lengths])
        if measured:
            rate = fit_rate(measured)
            if spent + rate.seconds(load) > max(SECONDS, PART * rate.seconds(work)):
                break
        seconds, peak = _timed(run, given, device)
        spent += seconds
        if not measured and seconds < SECONDS / 4:  # the first pass also makes what later ones find made
            again, peak = _timed(run, given, device)
            setup, seconds, spent = max(0.0, seconds - again), again, spent + again
        highest = max(highest, peak - baseline)
        measured.append(Measured(load, seconds, highest))
    return Probed(setup, measured)


@contextmanager
def undisturbed(base: PreTrainedModel | None, device: torch.device) -> Iterator[None]:
    """Random state and model are afterwards as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), quiet_transformers():
        try:
            yield
        finally:
            if base is not None:
                base.requires_grad_(False).eval()


Pass = tuple[Callable[[Tokens], None], dict[str, int]]
"""What runs a batch, and the sizes of the adapter's parameters by name."""


@contextmanager
def training_step(base: PreTrainedModel, adapter: LoraSettings | Path, recipe: Recipe) -> Iterator[Pass]:
    """A step of the warm-up: forward with dropout, backward, Adam; on an adapter that is thrown away."""
    device = base.device
    with trainable(base, adapter, seed=0) as model:
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)

        def run(tokens: Tokens) -> None:
            with layers_checkpointed(model, recipe.gradient_checkpointing), quick_attention(base):
                batch = {name: tensor.to(device) for name, tensor in collate(tokens).items()}
                model(**batch, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        yield run, _sizes(model)


@contextmanager
def feature_pass(base: PreTrainedModel, adapter: LoraSettings | Path, recipe: Recipe) -> Iterator[Pass]:
    """A batch of features as the datastore makes them."""
    with trainable(base, adapter, seed=0) as model:
        sizes = _sizes(model)
        zeros = {name: torch.zeros(size, device=base.device) for name, size in sizes.items()}
        projector = make_projector(recipe.projection, sizes, recipe.features, recipe.seed)
        extractor = FeatureExtractor(
            model,
            projector,
            AdamState(zeros, zeros, 0.9, 0.999, 1e-8, 1),
            gradient_checkpointing=recipe.gradient_checkpointing,
        )

        def run(tokens: Tokens) -> None:
            ids_B_T, trained_B_T, _ = pad_batch(tokens, pad_id=0)
            extractor(ids_B_T, trained_B_T, recipe.direction)

        yield run, sizes


def _sizes(model: PeftModel) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in lora_parameters(model).items()}


def state_pass(base: PreTrainedModel, weighting: Weighting) -> Callable[[Tokens], None]:
    """A batch of hidden states."""

    def run(tokens: Tokens) -> None:
        ids_B_T, _, lengths_B = pad_batch(tokens, pad_id=0)
        pooled_states(base, ids_B_T, lengths_B, weighting)

    return run


def influence_seconds(n_features: int, n_target: int) -> float:
    """Seconds a pool row takes to be read, checked and compared with `n_target` rows."""
    stored_n_D = torch.zeros(INFLUENCE_ROWS, n_features, dtype=torch.float16)
    target_V_D = torch.zeros(n_target, n_features)
    began = time.perf_counter()
    hashlib.sha256(stored_n_D.numpy().tobytes()).hexdigest()
    _ = stored_n_D.float() @ target_V_D.T
    return (time.perf_counter() - began) / INFLUENCE_ROWS


def held_bytes(device: torch.device) -> int:
    """Memory held now: on a GPU by its allocator, else by the process."""
    return (
        torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    )


def _timed(run: Callable[[Given], None], given: Given, device: torch.device) -> tuple[float, int]:
    """Wall seconds of a pass, and the most memory that was held while it ran."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        began = time.perf_counter()
        run(given)
        torch.cuda.synchronize(device)
        return time.perf_counter() - began, torch.cuda.max_memory_allocated(device)
    with _watched() as seen:
        began = time.perf_counter()
        run(given)
        seconds = time.perf_counter() - began
    return seconds, max(seen)


@contextmanager
def _watched() -> Iterator[list[int]]:
    """The process's memory, looked at every few milliseconds: no system tells the peak of a part of a program."""
    process, over = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not over.wait(0.005):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()
        seen.append(process.memory_info().rss)
