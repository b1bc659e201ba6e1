"""One long row: CPU seconds and peak memory of its feature, with and without gradient checkpointing.

    OMP_NUM_THREADS=1 python benchmarks/long_rows.py WORK

The demo's model, r 16, base in bf16; the demo's rows one after another make a row of each length, whose last quarter is trained.
A process of its own for each, since a process's peak never comes down. `cosine` is between the features with checkpointing and
without. Inputs are kept in WORK, which may be that of `engine.py`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

LENGTHS = (512, 1024, 2048, 4096, 8192)
WAYS = ("plain", "checkpointed")


def main(work: Path) -> None:
    from record import write_result

    rows = []
    for length in LENGTHS:
        found = {way: _in_a_process(work, length, way) for way in WAYS}
        rows.append({"tokens": length, **found})
        if all("cpu_seconds" in of_way for of_way in found.values()):
            one, other = (np.load(_kept(work, length, way)) for way in WAYS)
            rows[-1]["cosine"] = round(float(one @ other), 6)
        print(rows[-1], flush=True)
    print(write_result("long_rows", {"trained": "the last quarter", "rows": rows}))


def _in_a_process(work: Path, length: int, way: str) -> dict[str, Any]:
    command = [sys.executable, __file__, str(work), str(length), way]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def _kept(work: Path, length: int, way: str) -> Path:
    return work / f"long-{length}-{way}.npy"


def measure(work: Path, length: int, way: str) -> None:
    """Make the feature of one row of `length` tokens; print what it took, keep it in `work`."""
    import torch

    from engine_inputs import make_inputs
    from siftune.gradients.features import FeatureExtractor
    from siftune.gradients.projection import make_projector
    from siftune.model.load import load_model, quiet_transformers
    from siftune.model.lora import adapter_on, lora_parameters

    torch.set_num_threads(1)
    model_folder = make_inputs(work / "inputs", (16,), 2048, tiny=False)
    base = load_model(str(model_folder), dtype="bf16")
    pool = json.loads((work / "inputs" / "rows.json").read_text(encoding="utf-8"))
    ids = [token for row in pool for token in row["ids"]]
    ids_B_T = np.array([(ids * (1 + length // len(ids)))[:length]])
    trained_B_T = np.arange(length)[None] >= length * 3 // 4
    with quiet_transformers(), adapter_on(base, work / "inputs" / "adapter-16", trainable=False) as model:
        sizes = {name: parameter.numel() for name, parameter in lora_parameters(model).items()}
        projector = make_projector("sketch", sizes, 8192, 0)
        extractor = FeatureExtractor(model, projector, None, gradient_checkpointing=way == "checkpointed")
        extractor(ids_B_T[:, -64:], trained_B_T[:, -64:], "sgd")
        before, began = _peak(), time.process_time()
        made = extractor(ids_B_T, trained_B_T, "sgd")
        seconds = time.process_time() - began
    np.save(_kept(work, length, way), made.features_B_D[0])
    print(json.dumps({"cpu_seconds": round(seconds, 2), "peak_mib": _peak(), "before_mib": before}))


def _peak() -> int:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]).absolute())
    else:
        measure(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
