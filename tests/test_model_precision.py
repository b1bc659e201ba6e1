"""Measuring in fp32: the numbers of an fp32 model with the same weights, and a model that is as it was afterwards."""

from __future__ import annotations

import copy

import pytest
import torch

from model_helpers import tiny_model, tiny_tokenizer
from siftune.chat.encoder import ChatEncoder
from siftune.model.lora import add_lora
from siftune.model.precision import in_fp32
from siftune.proof.evaluate import Measuring, evaluate
from siftune.records.example import Example

LIKELIHOOD, AS_KEPT = Measuring(generate=False), Measuring(generate=False, precise=False)


def rows() -> list[Example]:
    """Rows of many lengths, so that batches differ."""
    return [
        Example(
            str(n),
            "test",
            [
                {"role": "user", "content": "Name the capital of France. " * n},
                {"role": "assistant", "content": "Paris"},
            ],
            f"test.jsonl:{n}",
        )
        for n in range(1, 7)
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_16_bit_model_is_measured_as_the_fp32_model_of_its_weights(arch: str, dtype: torch.dtype) -> None:
    kept = tiny_model(arch).to(dtype)
    kept = add_lora(kept, rank=2, alpha=4.0, dropout=0.0, targets=("auto",), seed=0)
    for name, weight in kept.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(1))
    wide = copy.deepcopy(kept).float()
    encoder = ChatEncoder(tiny_tokenizer(), max_length=400)
    before = {name: value.clone() for name, value in kept.state_dict().items()}
    expected = [score.loss for score in evaluate(wide, encoder, rows(), 1, AS_KEPT)]
    for batch_tokens in (1, 200, 4000):
        found = [score.loss for score in evaluate(kept, encoder, rows(), batch_tokens, LIKELIHOOD)]
        assert found == pytest.approx(expected, rel=6e-7)
    rough = [score.loss for score in evaluate(kept, encoder, rows(), 1, AS_KEPT)]
    assert rough != pytest.approx(expected, rel=6e-7)  # else this test could not tell
    after = kept.state_dict()
    assert all(value.dtype == before[n].dtype and torch.equal(value, before[n]) for n, value in after.items())


def test_tied_weights_stay_tied_and_an_error_inside_undoes_it_too() -> None:
    model = tiny_model("gpt2").to(torch.bfloat16)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight

    def broken() -> None:
        with in_fp32(model):
            assert model.get_output_embeddings().weight.dtype == torch.float32
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
