"""Tiny random models of every supported architecture, with a tiny tokenizer, for tests that need a real forward pass."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

VOCAB = 320
HIDDEN = 32
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = [
    "The cat sat on the mat and looked at the moon.",
    "What is two plus three? Two plus three is five.",
    "Name the capital of France. The capital of France is Paris.",
    "user system assistant tool: please answer the question in one short sentence.",
    "Add 12 and 30, then subtract 7. The answer is 35.",
]

ARCHITECTURES = ("llama", "qwen2", "mistral", "gemma", "phi3", "gpt2")


def tiny_config(arch: str, hidden: int = HIDDEN) -> PreTrainedConfig:
    """Two layers, four heads, `hidden` numbers a token; 4-bit bases on a CPU need a multiple of 64."""
    shared: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
    }
    if arch == "gpt2":
        return GPT2Config(
            vocab_size=VOCAB,
            n_embd=hidden,
            n_layer=2,
            n_head=4,
            n_positions=256,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=2,
        )
    if arch == "gemma":
        return GemmaConfig(**shared, head_dim=hidden // 4)
    classes = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig, "phi3": Phi3Config}
    return classes[arch](**shared)


def tiny_model(arch: str, seed: int = 0, hidden: int = HIDDEN) -> PreTrainedModel:
    """A random fp32 model of two layers, frozen, in eval mode; the same weights for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(arch, hidden), dtype=torch.float32)
    return model.requires_grad_(False).eval()


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of VOCAB tokens with ChatML marks: any text round-trips; `<|im_end|>` (2) ends a turn."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = CHATML
    return fast


def write_tiny_model(folder: Path, arch: str, seed: int = 0, hidden: int = HIDDEN) -> Path:
    """Write `tiny_model` and `tiny_tokenizer` to a folder that `from_pretrained` reads; returns the folder."""
    tiny_model(arch, seed, hidden).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
