"""What every arm reads, made once: the demo's pool as tokens, and adapters with the Adam moments of a few real steps.

In the folder of inputs:

    rows.json            token ids and trained tokens of the demo's pool, in its order
    tiny/                a random model of two layers with the demo model's vocabulary
    adapter-R/           a PEFT folder of rank R with adam_state.safetensors and, for the peers, optimizer.pt (one group)
    adapter-tiny/        the same for the tiny model, rank 16
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from siftune.chat.encoder import ChatEncoder
from siftune.chat.tokenizer import load_tokenizer
from siftune.demo.data import demo_data
from siftune.demo.model import demo_model
from siftune.model.checkpoint import ADAPTER, CONFIG, Checkpoint
from siftune.model.load import load_model
from siftune.model.lora import adapter_on, lora_parameters
from siftune.model.warmup import LoraSettings, warm_up
from siftune.records.readers import read_target

WARMUP_ROWS, WARMUP_BATCH = 16, 4


def make_inputs(folder: Path, ranks: tuple[int, ...], max_length: int, tiny: bool) -> Path:
    """Make what is missing in `folder`; returns the model's folder: the demo's, or the tiny one's for a trial."""
    real = demo_model()
    folder.mkdir(parents=True, exist_ok=True)
    rows_file = folder / "rows.json"
    if not rows_file.exists():
        rows_file.write_text(json.dumps(_pool(real, max_length)), encoding="utf-8")
    if not (folder / "tiny").exists():
        _tiny_model(real, folder / "tiny")
    model = folder / "tiny" if tiny else real
    for rank in ranks:
        make_adapter(model, folder, f"adapter-{rank}", rank)
    make_adapter(folder / "tiny", folder, "adapter-tiny", 16)
    return model


def _pool(model: Path, max_length: int) -> list[dict[str, Any]]:
    tokenizer = load_tokenizer(str(model))
    encoder = ChatEncoder(tokenizer, max_length=max_length)
    encoded = [encoder.encode(row.example) for row in read_target(str(demo_data(tokenizer).pool), "pool")]
    return [
        {"ids": row.token_ids.tolist(), "trained": row.trained.tolist()}
        for row in encoded
        if not isinstance(row, str)
    ]


def _tiny_model(model: Path, folder: Path) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = AutoConfig.from_pretrained(model, **shape, **heads)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def make_adapter(model: Path, folder: Path, name: str, rank: int) -> None:
    """An adapter after one epoch on a few rows, so that neither its weights nor its moments are zeros."""
    if (folder / name).exists():
        return
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))[:WARMUP_ROWS]
    base = load_model(str(model), dtype="fp32")
    aside = folder / f".{name}" / "checkpoints"
    (checkpoint,) = warm_up(
        base,
        [(np.array(row["ids"], np.int32), np.array(row["trained"])) for row in rows],
        aside,
        seed=0,
        epochs=1,
        batch=WARMUP_BATCH,
        learning_rate=2e-4,
        lora=LoraSettings(rank=rank, alpha=4.0 * rank),
    )
    with adapter_on(base, checkpoint.path, trainable=False) as adapted:
        names = list(lora_parameters(adapted))
    _as_trainers_write(checkpoint, names, model, folder / name.replace("adapter", "trained"))
    checkpoint.path.rename(folder / name)
    shutil.rmtree(aside.parent)


def _as_trainers_write(checkpoint: Checkpoint, names: list[str], model: Path, out: Path) -> None:
    """The same adapter and moments as Trainer leaves them, for arms that know no checkpoint of siftune."""
    out.mkdir(exist_ok=True)
    shutil.copyfile(checkpoint.path / ADAPTER, out / ADAPTER)
    settings = json.loads((checkpoint.path / CONFIG).read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(model.absolute())  # the peers load the base by it
    (out / CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    torch.save(_optimizer_state(checkpoint, names), out / "optimizer.pt")


def _optimizer_state(checkpoint: Checkpoint, names: list[str]) -> dict[str, Any]:
    """AdamW's state as torch keeps it, in one parameter group, in the order of the model's parameters."""
    state = {
        i: {
            "step": torch.tensor(float(checkpoint.step)),
            "exp_avg": checkpoint.exp_avg[name],
            "exp_avg_sq": checkpoint.exp_avg_sq[name],
        }
        for i, name in enumerate(names)
    }
    group = {"lr": 2e-4, "betas": checkpoint.betas, "eps": checkpoint.eps, "weight_decay": 0.0}
    return {"state": state, "param_groups": [{**group, "params": list(range(len(names)))}]}
