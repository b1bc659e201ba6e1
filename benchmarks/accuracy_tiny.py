"""How well projections keep cosines on other architectures: tiny models, trained for a moment, with LoRA on their attention.

The architectures, the tokenizer and the rows are those of the tests; the models are wider, so that the adapter has more numbers than a feature.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from peft import PeftModel

from accuracy_exact import projected
from accuracy_measures import cosine_error
from model_helpers import tiny_model, tiny_tokenizer
from pipeline_helpers import pool_rows
from siftune.chat.batches import pad_batch
from siftune.chat.encoder import ChatEncoder, Encoded
from siftune.gradients.features import FeatureExtractor
from siftune.gradients.loss import losses
from siftune.gradients.projection import make_projector
from siftune.model.lora import add_lora, lora_parameters
from siftune.records.example import Example
from siftune.records.recipe import Projection

ARCHITECTURES = ("llama", "qwen2", "mistral", "gemma", "phi3", "gpt2")
HIDDEN, RANK, STEPS, BATCH = 256, 16, 60, 8


def tiny_errors(arch: str, n_rows: int, numbers: Sequence[int], seeds: int, work: Path) -> dict[str, Any]:
    """Cosine error of both projections by D on one architecture, mean over `seeds` sketches and of one dense map."""
    tokens = _tokens(n_rows + STEPS * BATCH)
    model = _trained(arch, tokens[n_rows:])
    sizes = {name: weight.numel() for name, weight in lora_parameters(model).items()}
    extract = FeatureExtractor(model, make_projector("none", sizes, 0, 0), None)
    exact_N_P = np.concatenate(
        [extract(*pad_batch([row], 0)[:2], "sgd").features_B_D for row in tokens[:n_rows]]
    )
    exact_N_N = exact_N_P @ exact_N_P.T
    apart = exact_N_N[np.triu_indices(n_rows, 1)]
    found: dict[str, Any] = {
        "coordinates": sum(sizes.values()),
        "rows": n_rows,
        "cosines": {"mean": round(float(apart.mean()), 4), "spread": round(float(apart.std()), 4)},
    }
    kinds: tuple[Projection, ...] = ("sketch", "rademacher")
    for kind in kinds:
        found[kind] = {}
        for n in numbers:
            drawn = [
                projected(kind, n, seed, exact_N_P, sizes, work / f"{arch}-{kind}-{n}-{seed}.npy")[0]
                for seed in range(seeds if kind == "sketch" else 1)
            ]
            found[kind][str(n)] = round(float(np.mean([cosine_error(f, exact_N_N) for f in drawn])), 5)
    return found


def _tokens(n_rows: int) -> list[tuple[np.ndarray, np.ndarray]]:
    encoder = ChatEncoder(tiny_tokenizer(), max_length=256)
    examples = [
        Example(row["id"], row["source"], row["messages"], row["id"])
        for row in pool_rows(n_rows, n_rows // 4)
    ]
    encoded = [encoder.encode(example) for example in examples]
    return [(e.token_ids, e.trained) for e in encoded if isinstance(e, Encoded)]


def _trained(arch: str, tokens: list[tuple[np.ndarray, np.ndarray]]) -> PeftModel:
    """Base and adapter trained together for a few steps, so that neither is at its start."""
    model = add_lora(
        tiny_model(arch, hidden=HIDDEN), rank=RANK, alpha=4.0 * RANK, dropout=0.0, targets=("auto",), seed=0
    )
    optimizer = torch.optim.AdamW(model.requires_grad_(True).parameters(), lr=1e-3)
    for step in range(STEPS):
        ids_B_T, trained_B_T, _ = pad_batch(tokens[step * BATCH : (step + 1) * BATCH], 0)
        optimizer.zero_grad()
        losses(model, torch.from_numpy(ids_B_T), torch.from_numpy(trained_B_T)).mean().backward()
        optimizer.step()
    return model
