"""Memory that batches of unlike shapes leave behind: oneDNN keeps a compiled product for each shape, torch a description, as many as they are allowed.

python benchmarks/shapes.py

Gradient batches of 26 shapes go through the demo's model, in a process of its own for each limit of both caches: their own default
of 1,024 and smaller ones. All batches have about as many tokens, so that the passes themselves need the same memory each time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from siftune.model.memory import CACHES

LENGTHS = tuple(range(14, 118, 4))
BATCH_TOKENS, RANK, TRAINED = 128, 16, 8
CAPACITIES = (1024, 64, 16)
"""Products that may be kept: as it comes, as siftune sets it, fewer still."""


def main() -> None:
    from record import write_result

    found = [{"capacity": capacity, **_alone(capacity)} for capacity in CAPACITIES]
    values = {"shapes": len(LENGTHS), "batch_tokens": BATCH_TOKENS, "dtype": "bf16", "rank": RANK}
    print(write_result("shapes", {**values, "limits": found}))


def _alone(capacity: int) -> dict[str, Any]:
    """What a process of its own found under this limit."""
    limits = dict.fromkeys(CACHES, str(capacity))
    environment = {**os.environ, **limits, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--here"], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    print(capacity, found, flush=True)
    return found


def here() -> dict[str, Any]:
    """MiB that this process holds more after all shapes than after the first, and CPU seconds of all but the first."""
    import time

    import numpy as np
    import torch

    from clock import held_mib
    from siftune.demo.model import demo_model
    from siftune.gradients.features import FeatureExtractor
    from siftune.gradients.projection import make_projector
    from siftune.model.load import load_model
    from siftune.model.lora import add_lora, lora_parameters

    torch.set_num_threads(1)
    base = load_model(str(demo_model()), dtype="bf16")
    model = add_lora(base, rank=RANK, alpha=4.0 * RANK, dropout=0.0, targets=("auto",), seed=0)
    sizes = {name: weight.numel() for name, weight in lora_parameters(model).items()}
    extract = FeatureExtractor(model, make_projector("sketch", sizes, 8192, 0), None)
    draw, held, seconds = np.random.default_rng(0), [], []
    for length in LENGTHS:
        ids_B_T = draw.integers(0, 1000, (BATCH_TOKENS // length, length))
        trained_B_T = np.zeros(ids_B_T.shape, bool)
        trained_B_T[:, -TRAINED:] = True
        began = time.process_time()
        extract(ids_B_T, trained_B_T, "sgd")
        seconds.append(time.process_time() - began)
        held.append(held_mib())
    return {"left_mib": round(held[-1] - held[0]), "cpu_seconds": round(sum(seconds[1:]), 1)}


if __name__ == "__main__":
    if sys.argv[1:] == ["--here"]:
        print(json.dumps(here()))
    else:
        sys.path.insert(0, str(Path(__file__).parent))
        main()
