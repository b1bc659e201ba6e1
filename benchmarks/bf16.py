"""Gradients under a bf16 base, siftune's and PEFT's own, against gradients with everything in fp32: which is nearer to the truth?

OMP_NUM_THREADS=1 python benchmarks/bf16.py RUN          RUN: a finished run with direction sgd; it is only read

Some pool rows and a row of each target, each alone through the run's model with the adapters of two checkpoints. The truth is PEFT and
autograd in fp32. Under the bf16 base PEFT computes the LoRA term in fp32 and casts it, siftune in bf16 as the layer below is.
About two CPU minutes with SmolLM2-135M.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from accuracy_exact import Rows, Tokens
from record import write_result
from siftune.chat.batches import pad_batch
from siftune.gradients.features import FeatureExtractor
from siftune.gradients.projection import make_projector
from siftune.model.checkpoint import list_checkpoints
from siftune.model.load import Dtype, load_model
from siftune.model.lora import adapter_on, lora_parameters

Gradient = Callable[[Tokens], np.ndarray]
"""A row's whole gradient [P], in the order of `lora_parameters`."""


def by_peft(model: PeftModel) -> Gradient:
    """Autograd through PEFT's own layers, as a trainer would have it; dropout is off."""
    weights = lora_parameters(model.eval())

    def gradient(row: Tokens) -> np.ndarray:
        ids, trained = (torch.tensor(part)[None] for part in row)
        loss = model(input_ids=ids.long(), labels=ids.long().where(trained, -100)).loss
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(weights.values()))]).numpy()

    return gradient


def by_siftune(model: PeftModel) -> Gradient:
    """The engine's, not projected."""
    sizes = {name: weight.numel() for name, weight in lora_parameters(model).items()}
    extract = FeatureExtractor(model, make_projector("none", sizes, 0, 0), None)

    def gradient(row: Tokens) -> np.ndarray:
        made = extract(*pad_batch([row], 0)[:2], "sgd")
        return made.features_B_D[0] * made.grad_norm_B[0]

    return gradient


ARMS: dict[str, tuple[Dtype, Callable[[PeftModel], Gradient]]] = {
    "truth": ("fp32", by_peft),
    "siftune bf16": ("bf16", by_siftune),
    "peft bf16": ("bf16", by_peft),
}


def nearness(found_N_P: np.ndarray, truth_N_P: np.ndarray) -> dict[str, float]:
    """Of rows' gradients to the true ones: cosine, norm over the true norm, and length of the difference over the true norm."""
    norm_N, true_N = np.linalg.norm(found_N_P, axis=1), np.linalg.norm(truth_N_P, axis=1)
    cosine_N = np.einsum("np,np->n", found_N_P, truth_N_P) / norm_N / true_N
    error_N = np.linalg.norm(found_N_P - truth_N_P, axis=1) / true_N
    ratio_N = norm_N / true_N
    values = {
        "cosine_mean": fmean(cosine_N),
        "cosine_least": min(cosine_N),
        "norm_ratio_median": median(ratio_N),
        "norm_ratio_least": min(ratio_N),
        "norm_ratio_most": max(ratio_N),
        "error_median": median(error_N),
        "error_most": max(error_N),
    }
    return {name: round(float(value), 6) for name, value in values.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--pool-rows", type=int, default=20)
    arguments.add_argument("--checkpoints", type=int, nargs="+", default=[1, 4])
    given = arguments.parse_args()
    torch.set_num_threads(1)
    rows = Rows(given.run, given.pool_rows, 1)
    paths = {found.number: found.path for found in list_checkpoints(given.run)}
    made: dict[tuple[str, int], np.ndarray] = {}
    for name, (dtype, arm) in ARMS.items():
        base = load_model(rows.settings["model"], dtype=dtype)
        for number in given.checkpoints:
            with adapter_on(base, paths[number], trainable=True) as model:
                gradient = arm(model)
                made[name, number] = np.stack([gradient(row) for row in rows.tokens])
            print(f"{name}, checkpoint {number}", flush=True)
    lengths = sorted(len(ids) for ids, _ in rows.tokens)
    values: dict[str, Any] = {
        "rows": {"n": len(lengths), "tokens": {"least": lengths[0], "most": lengths[-1]}},
        "coordinates": next(iter(made.values())).shape[1],
        "checkpoints": {
            str(number): {
                name: nearness(made[name, number], made["truth", number]) for name in ARMS if name != "truth"
            }
            for number in given.checkpoints
        },
    }
    print(write_result("bf16", values))


if __name__ == "__main__":
    main()
