"""The demo's model with PEFT's adapter on it, as Transformers and PEFT load them: what arms without siftune measure."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from rows import adapter_folder
from transformers import AutoModelForCausalLM
from transformers.utils import logging

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def adapted_model(job: dict[str, Any]) -> Any:
    """The base in `job["dtype"]`, its LoRA weights trainable, in eval mode."""
    logging.disable_progress_bar()
    base: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=DTYPES[job["dtype"]])
    return PeftModel.from_pretrained(base, str(adapter_folder(job)), is_trainable=True).eval()
