"""Training on a choice: the rows decide, the base stays as it is, and the same choice gives the same adapter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from model_helpers import tiny_model, tiny_tokenizer
from siftune.chat.encoder import ChatEncoder, Encoded
from siftune.model.lora import adapter_on
from siftune.proof.evaluate import evaluate
from siftune.proof.train import Training, train_on
from siftune.records.example import Example
from siftune.records.recipe import make_recipe

RECIPE = make_recipe({"epochs": 2, "rank": 4, "alpha": 16, "learning_rate": 2e-2, "batch_tokens": 500})
TRAINING = Training.of(RECIPE, n_rows=6, batch=2, seed=0)


def example(question: str, answer: str) -> Example:
    return Example(
        question,
        "",
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        question,
    )


CATS = [example(f"Is {n} a cat?", "No") for n in range(6)]
SUMS = [example(f"What is two plus {n}?", "The answer is 35.") for n in range(6)]


def encoded(rows: list[Example]):
    found = [ChatEncoder(tiny_tokenizer(), max_length=100).encode(row) for row in rows]
    assert all(isinstance(row, Encoded) for row in found)
    return [(row.token_ids, row.trained) for row in found if isinstance(row, Encoded)]


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_each_choice_teaches_its_own(tmp_path):
    base = tiny_model("llama")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    encoder = ChatEncoder(tiny_tokenizer(), max_length=100)
    loss = {}
    for name, rows in {"cats": CATS, "sums": SUMS}.items():
        adapter = train_on(base, encoded(rows), tmp_path / name, TRAINING)
        with adapter_on(base, adapter, trainable=False) as trained:
            for test, tests in {"cats": CATS, "sums": SUMS}.items():
                loss[name, test] = sum(score.loss for score in evaluate(trained, encoder, tests, 500))
        after = base.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)
    assert loss["cats", "cats"] < loss["sums", "cats"]
    assert loss["sums", "sums"] < loss["cats", "sums"]


def test_same_rows_same_adapter_and_other_seed_another(tmp_path):
    base = tiny_model("llama")
    one = weights(train_on(base, encoded(CATS), tmp_path / "one", TRAINING))
    two = weights(train_on(base, encoded(CATS), tmp_path / "two", TRAINING))
    other = weights(train_on(base, encoded(CATS), tmp_path / "other", replace(TRAINING, seed=1)))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_finished_training_is_used_again(tmp_path):
    base = tiny_model("llama")
    steps: list[int] = []
    first = train_on(base, encoded(CATS), tmp_path, TRAINING, on_progress=lambda step, *_: steps.append(step))
    assert steps == [1, 2, 3, 4, 5, 6]
    again = train_on(
        base, encoded(CATS), tmp_path, TRAINING, on_progress=lambda *_: pytest.fail("trained again")
    )
    assert again == first
