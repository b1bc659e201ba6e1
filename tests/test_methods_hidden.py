"""Pooled hidden states against their formula written out, on every architecture at hand; padding and batches change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    Llama4TextConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from model_helpers import ARCHITECTURES, VOCAB, tiny_model
from siftune.model.hidden import pooled_states, state_size
from siftune.records.errors import SiftuneError

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
MORE: dict[str, PreTrainedConfig] = {
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "phi": PhiConfig(**SIZES),
    "qwen3": Qwen3Config(**GROUPED),
    "gemma2": Gemma2Config(**GROUPED, sliding_window=4),
    "gemma3": Gemma3TextConfig(**GROUPED, sliding_window=4),
    "llama4": Llama4TextConfig(**GROUPED, intermediate_size_mlp=64, num_local_experts=2),
    "opt": OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=16),
}


def model_of(arch: str) -> PreTrainedModel:
    if arch in ARCHITECTURES:
        return tiny_model(arch)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MORE[arch]).eval()


def rows(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(3, VOCAB, length) for length in lengths]


def padded(of: list[np.ndarray], pad: int = 7) -> tuple[np.ndarray, np.ndarray]:
    lengths_B = np.array([len(ids) for ids in of])
    ids_B_T = np.full((len(of), lengths_B.max()), pad)
    for b, ids in enumerate(of):
        ids_B_T[b, : len(ids)] = ids
    return ids_B_T, lengths_B


def on_paper(model: PreTrainedModel, ids: np.ndarray, weighting: str) -> np.ndarray:
    """The vector of one row by itself, token by token in fp64."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor(ids)[None].long(), output_hidden_states=True, use_cache=False)
    states_T_H = output.hidden_states[-1][0].double().numpy()
    total_H = np.zeros(states_T_H.shape[1])
    n = len(ids)
    for t in range(1, n + 1):
        weight = 1 / n if weighting == "mean" else t / (n * (n + 1) / 2)
        total_H += weight * states_T_H[t - 1]
    return total_H / np.sqrt((total_H**2).sum())


@pytest.mark.parametrize("arch", [*ARCHITECTURES, *MORE])
def test_a_batch_gives_each_row_what_the_formula_gives_it_alone(arch: str) -> None:
    model, of = model_of(arch), rows([9, 1, 5])
    for weighting in ("mean", "position"):
        found = pooled_states(model, *padded(of), weighting)
        expected = np.stack([on_paper(model, ids, weighting) for ids in of])
        assert found.dtype == np.float32
        assert found.shape == (3, state_size(model))
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_later_tokens_weigh_more_by_position_only() -> None:
    model = tiny_model("llama")
    of = rows([6])
    mean, position = (pooled_states(model, *padded(of), w) for w in ("mean", "position"))
    assert np.abs(mean - position).max() > 1e-3


def test_what_stands_in_the_padding_does_not_matter() -> None:
    model, of = tiny_model("gpt2"), rows([8, 3])
    np.testing.assert_array_equal(
        pooled_states(model, *padded(of, pad=0), "position"),
        pooled_states(model, *padded(of, pad=99), "position"),
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_only_the_row_whose_states_are_not_finite_is_nan(bad: float) -> None:
    model = tiny_model("llama")
    model.get_input_embeddings().weight.data[5] = bad
    sound, broken = rows([4, 6])
    sound, broken = np.where(sound == 5, 6, sound), np.append(broken, 5)
    found = pooled_states(model, *padded([broken, sound]), "mean")
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], on_paper(model, sound, "mean"), atol=2e-6)


def test_states_of_padding_that_are_not_finite_do_not_matter() -> None:
    model, of = tiny_model("llama"), rows([6, 2])
    expected = pooled_states(model, *padded(of), "mean")

    def overflow(module: torch.nn.Module, given: object, output: BaseModelOutputWithPast) -> None:
        assert output.last_hidden_state is not None
        output.last_hidden_state[1, 2:] = torch.inf

    model.base_model.register_forward_hook(overflow)
    np.testing.assert_array_equal(pooled_states(model, *padded(of), "mean"), expected)


def test_sums_are_fp32_in_a_bf16_model() -> None:
    model, of = tiny_model("llama").to(torch.bfloat16), rows([200])
    found = pooled_states(model, *padded(of), "mean")
    np.testing.assert_allclose(found[0], on_paper(model, of[0], "mean"), atol=2e-6)


def test_a_training_step_after_it_still_works() -> None:
    model = tiny_model("llama").requires_grad_(True)
    ids_B_T, lengths_B = padded(rows([5, 5]))
    pooled_states(model, ids_B_T, lengths_B, "mean")
    model(input_ids=torch.from_numpy(ids_B_T), labels=torch.from_numpy(ids_B_T)).loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_a_model_without_a_separate_body_is_refused_by_name() -> None:
    with pytest.raises(SiftuneError, match="LlamaModel can't be run without its language-model head"):
        pooled_states(tiny_model("llama").base_model, *padded(rows([3])), "mean")
