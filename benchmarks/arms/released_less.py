"""The released LESS procedure on a CPU (princeton-nlp/LESS, October 2024), written down again without its dependencies.

One example at a time, autograd, the LoRA gradients flattened into one vector, its Adam update (ε inside the root, no bias
correction). Sixteen of them are collected, then projected by the fallback projector that it takes without CUDA (TRAK's
BasicProjector): dense ±1, drawn anew for each block of 128 of the 8192 features, Bernoulli draws turned into signs.
"""

from __future__ import annotations

from typing import Any

import torch
from adapted import adapted_model
from rows import Batch, adapter_folder, batches
from torch import Tensor

from clock import FIRST, GRADIENTS, LOAD, START, Clock, job

BLOCK, PROJECT_ROWS = 128, 16


def adam_direction(model: Any, batch: Batch, m: Tensor, v: Tensor) -> tuple[Tensor, float]:
    loss = model(input_ids=batch.ids_B_T, labels=batch.labels()).loss
    loss.backward()
    gradient = torch.cat([p.grad.view(-1) for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    m_new, v_new = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    return m_new / torch.sqrt(v_new + 1e-8), loss.item()


def projected(directions_B_P: Tensor, n_features: int) -> Tensor:
    signs = torch.empty(directions_B_P.shape[1], BLOCK)
    found = torch.zeros(len(directions_B_P), n_features)
    for start in range(0, n_features, BLOCK):
        signs.bernoulli_(0.5, generator=torch.Generator().manual_seed(start))
        signs *= 2.0
        signs -= 1.0
        found[:, start : start + BLOCK] = directions_B_P @ signs
    return found


def main() -> None:
    clock, asked = Clock(), job()
    clock.done(START)
    model = adapted_model(asked)
    saved = torch.load(adapter_folder(asked) / "optimizer.pt", weights_only=True)["state"]
    m, v = (
        torch.cat([saved[i][key].view(-1) for i in range(len(saved))]) for key in ("exp_avg", "exp_avg_sq")
    )
    todo = batches({**asked, "batch": 1})
    clock.done(LOAD)
    adam_direction(model, todo[-1], m, v)
    clock.done(FIRST)
    loss = 0.0
    for start in range(0, len(todo), PROJECT_ROWS):
        part = [adam_direction(model, batch, m, v) for batch in todo[start : start + PROJECT_ROWS]]
        features = projected(torch.stack([direction for direction, _ in part]), asked["features"])
        torch.nn.functional.normalize(features, dim=1)
        loss += sum(one for _, one in part)
    clock.done(GRADIENTS)
    clock.write(
        rows=len(todo),
        mean_loss=loss / len(todo),
        dtype=asked["dtype"],
        packages=("torch", "transformers", "peft"),
        direction="adam-less",
        parameters=len(m),
        features=asked["features"],
    )


torch.set_num_threads(1)
main()
