"""LoRA trainings by the real Trainer, as somebody's own script would do them, with the live optimizer's state kept by parameter."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from model_helpers import tiny_model

Moments = dict[str, tuple[torch.Tensor, torch.Tensor]]


def random_rows(n: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """(token ids, trained) rows of 5 to 20 tokens of which the last half is trained."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        ids = rng.integers(3, 300, int(rng.integers(5, 21))).astype(np.int32)
        trained = np.arange(len(ids)) >= len(ids) // 2
        rows.append((ids, trained))
    return rows


def trained_by_trainer(
    folder: Path,
    arch: str = "qwen2",
    lora: dict[str, Any] | None = None,
    optimizer: Any = None,
    **arguments: Any,
) -> dict[int, Moments]:
    """Train two epochs of two steps into `folder`; returns step -> parameter name -> (exp_avg, exp_avg_sq) as they were live."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "o_proj"],
        task_type="CAUSAL_LM",
        **(lora or {}),
    )
    model = get_peft_model(tiny_model(arch), config)
    live: dict[int, Moments] = {}

    class Keep(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            found = trainer.optimizer.optimizer.state
            live[state.global_step] = {
                name: (found[p]["exp_avg"].clone(), found[p]["exp_avg_sq"].clone())
                for name, p in model.named_parameters()
                if p in found and "exp_avg_sq" in found[p]
            }

    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.01,
        "save_strategy": "epoch",
        "logging_steps": 1,
        "optim": "adamw_torch",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(folder),
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                **(defaults | arguments),
            ),
            train_dataset=[
                {"input_ids": ids[:5].tolist(), "labels": ids[:5].tolist()}
                for ids, _ in random_rows(16, seed=3)
            ],
            callbacks=[Keep()],
            optimizers=(optimizer(model) if optimizer else None, None),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return live
