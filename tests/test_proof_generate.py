"""Generation against a loop that takes one row and one token at a time without a cache."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from transformers import GenerationConfig

from model_helpers import tiny_model, tiny_tokenizer
from siftune.chat.encoder import ChatEncoder
from siftune.model.lora import add_lora
from siftune.proof.evaluate import Measuring, evaluate, summarise
from siftune.proof.generate import generate
from siftune.proof.prompts import Prompts
from siftune.records.errors import SiftuneError
from siftune.records.example import Example

END = 2
NEW = 16


def row(i: int, question: str, **columns) -> Example:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "35"}]
    return Example(str(i), "test", messages, f"test.jsonl:{i}", columns)


ROWS = [row(i, "Name the capital of France. "[: 3 + 5 * i] * (1 + i % 3), answer="35") for i in range(5)]


def chatty(arch: str, seed: int = 3) -> torch.nn.Module:
    """A random model sharp enough that its answers differ between prompts; the llama ends some of them itself."""
    model = tiny_model(arch, seed)
    for parameter in model.parameters():
        parameter.mul_(3)
    return model


def encoder(tokenizer=None) -> ChatEncoder:
    return ChatEncoder(tokenizer or tiny_tokenizer(), max_length=200)


def oracle(model, question: str, new: int = NEW) -> tuple[str, bool]:
    tokenizer = tiny_tokenizer()
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    start = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = list(start)
    with torch.no_grad():
        for _ in range(new):
            following = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if following == END:
                return tokenizer.decode(ids[len(start) :], skip_special_tokens=True), False
            ids.append(following)
    return tokenizer.decode(ids[len(start) :], skip_special_tokens=True), True


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 4000])
def test_answers_are_those_of_one_row_and_token_at_a_time(arch, batch_tokens):
    model = chatty(arch)
    found = generate(model, encoder(), ROWS, max_new_tokens=NEW, batch_tokens=batch_tokens)
    assert found == [oracle(model, test.messages[0]["content"]) for test in ROWS]
    assert len({one.text for one in found}) > 3
    if arch == "llama":
        assert {one.cut for one in found} == {True, False}


def test_the_models_own_settings_have_no_say_and_come_back(caplog, recwarn):
    model = chatty("llama")
    plain = generate(model, encoder(), ROWS, max_new_tokens=NEW, batch_tokens=4000)
    own = GenerationConfig(
        do_sample=True, temperature=5.0, top_p=0.9, repetition_penalty=3.0, min_new_tokens=99, max_length=3, num_beams=4
    )  # fmt: skip
    model.generation_config = own
    assert generate(model, encoder(), ROWS, max_new_tokens=NEW, batch_tokens=4000) == plain
    assert model.generation_config is own
    assert not caplog.records
    assert not recwarn.list


def test_an_adapter_answers_for_itself():
    model = chatty("llama")
    plain = generate(model, encoder(), ROWS, max_new_tokens=NEW, batch_tokens=4000)
    peft_model = add_lora(model, rank=4, alpha=16.0, dropout=0.0, targets="all-linear", seed=0)
    assert generate(peft_model, encoder(), ROWS, max_new_tokens=NEW, batch_tokens=4000) == plain
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    assert generate(peft_model, encoder(), ROWS, max_new_tokens=NEW, batch_tokens=4000) != plain


def test_an_end_of_turn_that_is_plain_text_ends_an_answer():
    """A template may end turns with words; whatever the model says first is made that end."""
    model, tokenizer = chatty("llama"), copy.deepcopy(tiny_tokenizer())
    said = [one.text for one in generate(model, encoder(), ROWS, max_new_tokens=NEW, batch_tokens=4000)]
    ending = next(text[4:7] for text in said if text[4:7].isascii() and text[4:7].strip() == text[4:7] != "")
    written = tokenizer.chat_template.replace("<|im_end|>", ending)
    tokenizer.chat_template = written
    prompts = Prompts(tokenizer)
    assert prompts.ending == ending
    found = generate(model, encoder(tokenizer), ROWS, max_new_tokens=NEW, batch_tokens=4000)
    assert all(ending not in one.text for one in found)


def test_prompt_is_the_beginning_of_the_training_text():
    for test in ROWS:
        prompt = Prompts(tiny_tokenizer())(test)
        encoded = encoder().encode(test)
        assert not isinstance(encoded, str)
        assert prompt.tolist() == encoded.token_ids[: encoded.trained.argmax()].tolist()


def test_rows_are_compared_with_their_answers():
    model = chatty("llama")
    text, cut = oracle(model, ROWS[0].messages[0]["content"])
    rows = [
        dataclasses.replace(ROWS[0], columns={"answer": ["another", text]}),
        dataclasses.replace(ROWS[0], columns={"answer": "another"}),
        dataclasses.replace(ROWS[0], columns={}),
        dataclasses.replace(ROWS[0], columns={"answer": "No", "options": ["Yes", "No"]}),
    ]
    told: list[int] = []
    measuring = Measuring(max_new_tokens=NEW)
    scores = evaluate(model, encoder(), rows, 500, measuring, on_rows=told.append)
    assert sum(told) == 4
    assert [score.exact for score in scores] == [True, False, None, None]
    assert [score.generated for score in scores] == [text, text, None, None]
    assert [score.cut for score in scores] == [cut, cut, None, None]
    assert (scores[0].f1, scores[3].correct is None, scores[2].loss) == (1.0, False, scores[0].loss)
    summary = summarise(scores)
    assert (summary.exact.n, summary.accuracy.n, summary.n_cut, summary.n_unextracted) == (2, 1, 2 * cut, 0)

    none = evaluate(model, encoder(), rows[:2], 500, Measuring(extract="no such text", max_new_tokens=NEW))
    assert [(s.exact, s.f1, s.unextracted) for s in none] == [(False, 0.0, True)] * 2
    assert [s.exact for s in evaluate(model, encoder(), rows, 500)] == [None] * 4


def test_settings_and_rows_that_can_not_be_asked_are_told():
    with pytest.raises(SiftuneError, match="--extract"):
        Measuring(extract="[")
    with pytest.raises(SiftuneError, match="at least one token"):
        Measuring(max_new_tokens=0)
    with pytest.raises(SiftuneError, match=r"test\.jsonl:0: .*256 positions"):
        generate(tiny_model("llama"), encoder(), ROWS[:1], max_new_tokens=250, batch_tokens=100)
    assert Measuring(generate=False).settings() == Measuring(generate=False, extract="x").settings()
    assert Measuring(extract="x").settings() != Measuring(extract="y").settings()
