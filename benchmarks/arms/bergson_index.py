"""bergson's index of a data set: what its `bergson build` does in one process, its steps called one by one so that they can be timed.

Adapter, Adam normalisation from optimizer.pt, mean loss over trained tokens, one global projection, unit-normalised rows on disk.
Its projection matrix is made anew for every batch, so large batches are its best setting.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bergson.collection import collect_gradients
from bergson.config.config import IndexConfig, PreprocessConfig
from bergson.data import allocate_batches
from bergson.utils.worker_utils import create_processor, setup_model_and_peft
from datasets import Dataset
from rows import adapter_folder, read_rows

from clock import FIRST, GRADIENTS, LOAD, START, Clock, job


def indexing(
    path: Path, model: Any, targets: set[str], data: Dataset, settings: dict[str, Any]
) -> Callable[[], Path]:
    """What makes the index of `data` when called; adapter and moments are loaded by then."""
    config = IndexConfig(str(path), **settings)
    config.partial_run_path.mkdir(parents=True)
    processor = create_processor(model, config, targets)

    def index() -> Path:
        collect_gradients(
            model,
            data,
            processor,
            config,
            batches=allocate_batches(data["length"][:], config.token_batch_size),
            target_modules=targets,
            preprocess_cfg=PreprocessConfig(unit_normalize=True),
        )
        return config.partial_run_path

    return index


def main() -> None:
    clock, asked = Clock(), job()
    clock.done(START)
    adapter = str(adapter_folder(asked))
    settings = {
        "model": adapter,
        "precision": asked["dtype"],
        "loss_reduction": "mean",
        "projection_dim": asked["features"],
        "projection_target": "global",
        "optimizer_state": adapter,
        "token_batch_size": asked["batch_tokens"],
    }
    out = Path(asked["scratch"])
    shutil.rmtree(out, ignore_errors=True)
    model, targets = setup_model_and_peft(IndexConfig(str(out / "model"), **settings))
    assert targets
    rows = [
        {"input_ids": ids.tolist(), "labels": np.where(trained, ids, -100).tolist(), "length": len(ids)}
        for ids, trained in read_rows(asked)
    ]
    data = Dataset.from_list(rows)
    first = indexing(out / "first", model, targets, data.select(range(2)), settings)
    index = indexing(out / "index", model, targets, data, settings)
    clock.done(LOAD)
    first()
    clock.done(FIRST)
    made = index()
    clock.done(GRADIENTS)
    losses = Dataset.load_from_disk(str(made / "data.hf"))["loss"][:]
    clock.write(
        rows=len(rows),
        mean_loss=float(np.mean(losses)),
        dtype=asked["dtype"],
        packages=("bergson", "torch", "transformers", "peft"),
        direction="g / sqrt(v)",
        features=asked["features"],
    )
    shutil.rmtree(out)


torch.set_num_threads(1)
main()
