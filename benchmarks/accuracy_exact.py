"""Exact gradients of a run's rows under one of its checkpoints, kept in parts on disk, and their projections.

Every row goes through the model alone. A gradient is kept whole (fp32, unit length, 7 MB for 1.8M numbers), so that all
projections are of the very same gradients.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accuracy_measures import Question
from siftune.chat.batches import pad_batch
from siftune.chat.encoder import ChatEncoder
from siftune.chat.tokenizer import load_tokenizer
from siftune.datastore.features_writer import encode_target
from siftune.datastore.index import read_index, scorable_rows
from siftune.datastore.pool import Pool
from siftune.datastore.targets import Target, kept_rows
from siftune.gradients.features import FeatureExtractor
from siftune.gradients.projection import Projector, make_projector
from siftune.model.checkpoint import list_checkpoints
from siftune.model.load import Dtype, load_model
from siftune.model.lora import adapter_on, lora_parameters
from siftune.records.files import read_json, write_json, written_whole
from siftune.records.recipe import Projection, read_recipe

PART = 16
"""Rows of a file of exact gradients."""
Tokens = tuple[np.ndarray, np.ndarray]


class Rows:
    """Pool rows drawn by chance and a few rows of each target of a finished run; pool rows first."""

    def __init__(self, run: Path, n_pool: int, n_each: int):
        self.run, self.settings = run, read_recipe(run / "recipe.yaml")
        if self.settings["direction"] != "sgd":
            raise SystemExit(f"{run} has the direction {self.settings['direction']}; give a run with sgd")
        drawn = np.random.default_rng(0).permutation(scorable_rows(read_index(run)))[:n_pool]
        self.tokens: list[Tokens] = Pool(run / "pool").tokens_of(np.sort(drawn).tolist())
        self.n_pool = len(self.tokens)
        encoder = ChatEncoder(
            load_tokenizer(self.settings["model"], None), max_length=self.settings["max_length"]
        )
        self.questions: list[Question] = []
        for name in self.settings["target"]:
            rows = _first_of_each_subtask(kept_rows(Target.open(run / "targets" / name)))[:n_each]
            encoded = encode_target(rows, encoder)
            first = len(self.tokens) - self.n_pool
            self.questions.append(
                Question(name, list(range(first, first + len(rows))), [row.subtask for row in rows])
            )
            self.tokens += zip(encoded.token_ids, encoded.trained, strict=True)

    def influence(self, pool_N_D: np.ndarray, target_V_D: np.ndarray) -> np.ndarray:
        """`influence_N_V` of features of all rows."""
        return pool_N_D[: self.n_pool] @ target_V_D[self.n_pool :].T


def _first_of_each_subtask(rows: list[Any]) -> list[Any]:
    """The first row of each subtask, then the other rows."""
    first = list({row.subtask: row for row in reversed(rows)}.values())[::-1]
    return first + [row for row in rows if row not in first]


def gradients(rows: Rows, dtype: Dtype, checkpoint: int, work: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Unit gradients [rows, P] with the base weights in `dtype`, and `sizes` of parameters and `seconds` (CPU, median of rows)."""
    folder = work / f"gradients-{dtype}-{checkpoint}"
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(rows.tokens), PART)
    if not all((folder / f"{start}.json").exists() for start in starts):
        with _exact(rows, dtype, checkpoint) as (extract, sizes):
            for start in starts:
                if not (folder / f"{start}.json").exists():
                    _make_part(folder, start, rows.tokens[start : start + PART], extract, sizes)
                    print(f"gradients {dtype}: {start + PART} of {len(rows.tokens)} rows", flush=True)
    notes = [read_json(folder / f"{start}.json") for start in starts]
    whole = np.empty((len(rows.tokens), sum(notes[0]["sizes"].values())), np.float32)
    for start in starts:
        part = np.load(folder / f"{start}.npy")
        whole[start : start + len(part)] = part
    seconds = [second for note in notes for second in note["seconds"]]
    return whole, {"sizes": notes[0]["sizes"], "seconds": float(np.median(seconds))}


@contextmanager
def _exact(rows: Rows, dtype: Dtype, checkpoint: int) -> Iterator[tuple[FeatureExtractor, dict[str, int]]]:
    """What makes a row's exact feature under a checkpoint, and the sizes of the adapter's parameters."""
    base = load_model(rows.settings["model"], dtype=dtype)
    path = next(found.path for found in list_checkpoints(rows.run) if found.number == checkpoint)
    with adapter_on(base, path, trainable=False) as model:
        sizes = {name: weight.numel() for name, weight in lora_parameters(model).items()}
        yield FeatureExtractor(model, make_projector("none", sizes, 0, 0), None), sizes


def _make_part(
    folder: Path, start: int, tokens: list[Tokens], extract: FeatureExtractor, sizes: dict[str, int]
) -> None:
    features, seconds = [], []
    for row in tokens:
        ids_B_T, trained_B_T, _ = pad_batch([row], 0)
        began = time.process_time()
        features.append(extract(ids_B_T, trained_B_T, "sgd").features_B_D)
        seconds.append(round(time.process_time() - began, 4))
    with written_whole(folder / f"{start}.npy") as aside, aside.open("wb") as out:
        np.save(out, np.concatenate(features))
    write_json(folder / f"{start}.json", {"sizes": sizes, "seconds": seconds})


def projected(
    kind: Projection, n_features: int, seed: int, exact_N_P: np.ndarray, sizes: dict[str, int], file: Path
) -> tuple[np.ndarray, float]:
    """Features [N, D] of exact gradients, unit length, and CPU seconds a row; kept in `file` (.npy)."""
    if not file.with_suffix(".json").exists():
        features_N_D, seconds = timed(make_projector(kind, sizes, n_features, seed), exact_N_P, sizes)
        with written_whole(file) as aside, aside.open("wb") as out:
            np.save(out, features_N_D)
        write_json(file.with_suffix(".json"), {"seconds": round(seconds, 6)})
        print(f"{kind} {n_features}, seed {seed}: {seconds:.4f} s a row", flush=True)
    return np.load(file), read_json(file.with_suffix(".json"))["seconds"]


def timed(projector: Projector, exact_N_P: np.ndarray, sizes: dict[str, int]) -> tuple[np.ndarray, float]:
    """Features [N, D] of exact gradients, unit length, and CPU seconds a row."""
    if projector.kind == "sketch":  # draws its map once, the dense one again for every batch
        _project(projector, exact_N_P[:1], sizes)
    began = time.process_time()
    projected_N_D = _project(projector, exact_N_P, sizes)
    seconds = (time.process_time() - began) / len(exact_N_P)
    return torch.nn.functional.normalize(projected_N_D).numpy(), seconds


def asked(description: str | None, pool_rows: int) -> argparse.ArgumentParser:
    """What is asked of a benchmark on exact gradients: RUN, WORK, and how many rows."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("work", type=Path)
    arguments.add_argument("--pool-rows", type=int, default=pool_rows)
    arguments.add_argument("--target-rows", type=int, default=4, help="of each target")
    return arguments


def _project(projector: Projector, exact_N_P: np.ndarray, sizes: dict[str, int]) -> Tensor:
    sums_N_S = projector.sums(len(exact_N_P), torch.device("cpu"))
    begin = 0
    for name, size in sizes.items():
        part_N_P = np.ascontiguousarray(exact_N_P[:, begin : begin + size])
        projector.add(name, torch.from_numpy(part_N_P), sums_N_S)
        begin += size
    return projector.projected(sums_N_S)
