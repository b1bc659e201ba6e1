"""The gradient stage of a run: forward, backward, direction, projection, normalised features, in shards as the pipeline has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rows import batches, read_rows

from clock import FIRST, GRADIENTS, LOAD, START, Clock, job
from siftune.datastore.features_writer import features_of
from siftune.datastore.pool import TokenRows
from siftune.gradients.directions import AdamState
from siftune.gradients.features import FeatureExtractor
from siftune.gradients.projection import make_projector
from siftune.model.checkpoint import read_checkpoint
from siftune.model.load import load_model, quiet_transformers
from siftune.model.lora import adapter_on, lora_parameters
from siftune.records.recipe import Recipe

SHARD_ROWS = Recipe.model_fields["shard_rows"].default


def token_rows(rows: list[tuple[np.ndarray, np.ndarray]]) -> TokenRows:
    return TokenRows(np.arange(len(rows)), [ids for ids, _ in rows], [trained for _, trained in rows])


def main() -> None:
    clock, asked = Clock(), job()
    clock.done(START)
    base = load_model(asked["model"], dtype=asked["dtype"])
    checkpoint = read_checkpoint(Path(asked["inputs"]) / asked["adapter"])
    moments = [
        {name: tensor.flatten() for name, tensor in one.items()}
        for one in (checkpoint.exp_avg, checkpoint.exp_avg_sq)
    ]
    state = AdamState(moments[0], moments[1], *checkpoint.betas, checkpoint.eps, checkpoint.step)
    rows, direction = read_rows(asked), asked["direction"]
    with quiet_transformers(), adapter_on(base, checkpoint.path, trainable=False) as model:
        sizes = {name: parameter.numel() for name, parameter in lora_parameters(model).items()}
        extractor = FeatureExtractor(model, make_projector("sketch", sizes, asked["features"], 0), state)
        clock.done(LOAD)
        last = sorted(rows, key=lambda row: -len(row[0]))[-len(batches(asked)[-1].ids_B_T) :]
        features_of(token_rows(last), extractor, direction, asked["batch_tokens"])
        clock.done(FIRST)
        loss = 0.0
        for start in range(0, len(rows), SHARD_ROWS):
            shard = token_rows(rows[start : start + SHARD_ROWS])
            features = features_of(shard, extractor, direction, asked["batch_tokens"])
            loss += float(features.loss_B.sum())
        clock.done(GRADIENTS)
    clock.write(
        rows=len(rows),
        mean_loss=loss / len(rows),
        dtype=asked["dtype"],
        packages=("siftune", "torch", "transformers", "peft"),
        direction=direction,
        parameters=sum(sizes.values()),
        features=asked["features"],
    )


torch.set_num_threads(1)
main()
