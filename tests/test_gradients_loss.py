"""The loss with the head run over trained tokens alone, chunk by chunk, against all logits of the model's own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import siftune.gradients.loss as loss_room
from siftune.gradients.loss import losses, try_head

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
OWN_HEAD: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"final_logit_softcapping": 3.0, "attn_logit_softcapping": None},
    "gemma3_text": {"final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 4.0},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen3_moe": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
    "gpt_neox": {},
    "mamba": {"state_size": 4, "conv_kernel": 2},
}
WHOLE: dict[str, dict[str, Any]] = {"opt": {"ffn_dim": 48, "word_embed_proj_dim": 32}}
"""Their forward looks inside their body."""


def model_of(kind: str, more: dict[str, Any]) -> Any:
    config = CONFIG_MAPPING[kind](**SIZES, **more)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=None).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", [*OWN_HEAD, *WHOLE])
def test_losses_and_slopes_are_those_of_all_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(kind, {**OWN_HEAD, **WHOLE}[kind])
    assert try_head(model) == (kind in OWN_HEAD)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 97, (3, 11), generator=generator)
    trained = torch.rand(3, 11, generator=generator) < 0.5
    trained[:, 0], trained[:, -1] = False, True
    weight = model.get_input_embeddings().weight  # where all gradients meet
    weight.requires_grad_(True)
    if model.get_output_embeddings().weight is weight:
        model.get_output_embeddings().weight = torch.nn.Parameter(
            weight.detach().clone(), requires_grad=False
        )

    logits = model(input_ids=ids).logits
    expected_B = torch.stack(
        [
            cross_entropy(logits[b, :-1][trained[b, 1:]].float(), ids[b, 1:][trained[b, 1:]])
            for b in range(len(ids))
        ]
    )
    (expected,) = torch.autograd.grad((expected_B * torch.tensor([1.0, -2.0, 0.5])).sum(), weight)
    for chunk in (97, 97 * 4, 2**25):  # one token at a time, four, all
        monkeypatch.setattr(loss_room, "CHUNK", chunk)
        loss_B = losses(model, ids, trained)
        torch.testing.assert_close(loss_B, expected_B, rtol=1e-5, atol=1e-5)
        (found,) = torch.autograd.grad((loss_B * torch.tensor([1.0, -2.0, 0.5])).sum(), weight)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(losses(model, ids, trained), expected_B, rtol=1e-5, atol=1e-5)


def test_the_largest_thing_made_is_a_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batch: the head never sees more tokens than a chunk holds."""
    model = model_of("llama", {})
    monkeypatch.setattr(loss_room, "CHUNK", 97 * 5)
    try_head(model)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-2]))
    ids, trained = torch.ones((4, 30), dtype=torch.long), torch.ones((4, 30), dtype=torch.bool)
    trained[0, 5:] = False
    losses(model, ids, trained)
    assert max(seen) == 5
    assert sum(seen) == 4 + 3 * 29
