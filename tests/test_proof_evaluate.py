"""Losses and accuracy of test rows against an oracle that takes one row at a time and reads off log_softmax."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, MambaConfig

from model_helpers import VOCAB, tiny_config, tiny_model, tiny_tokenizer
from siftune.chat.encoder import ChatEncoder
from siftune.proof.evaluate import Difference, Mean, RowScore, evaluate, paired, summarise
from siftune.records.errors import SiftuneError
from siftune.records.example import Example

ARCHITECTURES = ("llama", "gpt2", "mistral")  # mistral: attention over a window shorter than the rows
TURNS = st.text("abc é\n<|>", min_size=1, max_size=30).filter(str.strip)


def row(
    number: int, question: str, answer: str, options: list[str] | None = None, history: int = 0
) -> Example:
    past = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}] * history
    messages = [*past, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    columns = {} if options is None else {"options": options, "answer": answer}
    return Example(str(number), "test", messages, f"test.jsonl:{number}", columns)


def encoder(max_length: int = 200) -> ChatEncoder:
    return ChatEncoder(tiny_tokenizer(), max_length=max_length)


def windowed() -> torch.nn.Module:
    config = tiny_config("mistral")
    config.sliding_window = 16
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False).eval()


def said(model: torch.nn.Module, prompt: str, answer: str) -> list[float]:
    """log p of every token of answer and end-of-turn, from text alone, one row, in double precision."""
    tokenizer = tiny_tokenizer()
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(f"{prompt}{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
    assert ids[: len(start)] == start
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [log_p[t - 1, ids[t]].item() for t in range(len(start), len(ids))]


def prompt_of(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


ROWS = [
    row(1, "Is the moon a cat?", "No", ["Yes", "No"]),
    row(2, "Name the capital of France. " * 3, "Paris", ["Lyon", "Paris", "The capital of France is Paris."]),
    row(3, "What is two plus three?", "five"),
    row(4, "a", "35", ["5", "35", "3", "355"]),
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("batch_tokens", [1, 120, 4000])
def test_scores_are_those_of_one_row_at_a_time(arch, batch_tokens):
    model = windowed() if arch == "mistral" else tiny_model(arch)
    for test, score in zip(ROWS, evaluate(model, encoder(), ROWS, batch_tokens), strict=True):
        prompt, gold = (
            prompt_of(test.messages[0]["content"]),
            said(model, prompt_of(test.messages[0]["content"]), test.messages[1]["content"]),
        )
        assert score.id == test.id
        assert score.loss == pytest.approx(-sum(gold) / len(gold), rel=1e-5)
        if "options" not in test.columns:
            assert (score.preferred, score.correct) == (None, None)
            continue
        total = {option: sum(said(model, prompt, option)) for option in test.columns["options"]}
        best = max(total, key=lambda option: total[option])
        assert score.preferred == best
        assert score.correct == (best == test.columns["answer"])
        answer_share = math.exp(total[test.columns["answer"]]) / sum(map(math.exp, total.values()))
        assert score.choice_loss == pytest.approx(-math.log(answer_share), rel=1e-4, abs=1e-5)


def test_the_shared_prompt_is_run_once_and_a_recurrent_model_runs_whole():
    """What goes through the model: each prompt once where keys and values are all it keeps, else whole sequences."""
    recurrent = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4), dtype=torch.float32
    )
    test = row(1, "Name the capital of France. " * 3, "5", ["5", "35", "3", "355"])
    tokens = {}
    for name, model in {"attention": tiny_model("llama"), "recurrent": recurrent.eval()}.items():
        seen: list[torch.Tensor] = []
        handle = model.get_input_embeddings().register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        (score,) = evaluate(model, encoder(), [test], 1000)
        handle.remove()
        tokens[name] = sum(ids.numel() for ids in seen)
        total = {
            o: sum(said(model, prompt_of(test.messages[0]["content"]), o)) for o in test.columns["options"]
        }
        assert score.preferred == max(total, key=lambda option: total[option])
    assert tokens["attention"] < tokens["recurrent"] / 2


def test_options_are_compared_by_sums_not_means():
    """A row where the two rules part: the oracle finds one, so that the test can tell them apart."""
    model = tiny_model("llama")
    options = ["5", "The capital of France is Paris.", "moon", "Two plus three is five."]
    parted = 0
    for seed in range(20):
        question = "Add 12 and 30." * (seed + 1)
        logs = {option: said(model, prompt_of(question), option) for option in options}
        by_sum = max(options, key=lambda option: sum(logs[option]))
        by_mean = max(options, key=lambda option: sum(logs[option]) / len(logs[option]))
        parted += by_sum != by_mean
        (score,) = evaluate(model, encoder(600), [row(seed, question, "5", options)], 500)
        assert score.preferred == by_sum
    assert parted


def test_earlier_turns_do_not_decide():
    """With a past conversation the options differ in the last turn alone, so the oracle of the last turn holds."""
    model = tiny_model("llama")
    test = row(1, "Is the moon a cat?", "No", ["Yes", "No", "a cat"], history=1)
    past = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nGood day<|im_end|>\n"
    total = {
        option: sum(said(model, past + prompt_of("Is the moon a cat?"), option))
        for option in ["Yes", "No", "a cat"]
    }
    (score,) = evaluate(model, encoder(), [test], 1000)
    assert score.preferred == max(total, key=lambda option: total[option])


@given(st.lists(st.tuples(TURNS, TURNS), min_size=1, max_size=6), st.integers(1, 400))
def test_batch_mates_change_nothing(pairs, batch_tokens):
    model, rows = (
        tiny_model("llama"),
        [row(i, question, answer) for i, (question, answer) in enumerate(pairs)],
    )
    together = evaluate(model, encoder(), rows, batch_tokens)
    alone = [evaluate(model, encoder(), [one], 1)[0] for one in rows]
    for a, b in zip(together, alone, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)


def test_dropout_is_off():
    model = tiny_model("gpt2").train()
    assert evaluate(model, encoder(), ROWS, 500) == evaluate(model, encoder(), ROWS, 500)


def test_long_row_is_cut_but_never_its_options():
    long = row(1, "question", "a cat and a moon " * 20)
    (score,) = evaluate(tiny_model("llama"), encoder(60), [long], 500)
    assert math.isfinite(score.loss)
    with pytest.raises(SiftuneError, match=r"test\.jsonl:1: .*max_length"):
        evaluate(
            tiny_model("llama"),
            encoder(60),
            [row(1, "question", "cat", ["cat", "a cat and a moon " * 20])],
            500,
        )


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"options": ["Yes"], "answer": "Yes"}, "two texts or more"),
        ({"options": "Yes, No", "answer": "Yes"}, "two texts or more"),
        ({"options": ["Yes", ""], "answer": "Yes"}, "two texts or more"),
        ({"options": ["Yes", "Yes"], "answer": "Yes"}, "given twice"),
        ({"options": ["Yes", "No"], "answer": "yes"}, "'yes' is not among"),
        ({"options": ["Yes", "No"]}, "None is not among"),
    ],
)
def test_bad_options_are_named_with_their_place(columns, said):
    bad = dataclasses.replace(row(7, "question", "Yes"), columns=columns)
    with pytest.raises(SiftuneError, match=rf"test\.jsonl:7: .*{said}"):
        evaluate(tiny_model("llama"), encoder(), [bad], 500)


def test_row_without_room_for_an_answer_is_an_error():
    with pytest.raises(SiftuneError, match=r"test\.jsonl:3"):
        evaluate(tiny_model("llama"), encoder(20), [row(3, "a long question " * 20, "five")], 500)


def test_summary_means_what_was_measured_and_counts_it():
    scores = [
        RowScore("1", 1.0, "Yes", True, 0.5),
        RowScore("2", 2.0, "No", False, 1.5),
        RowScore("3", 6.0),
        RowScore("4", 3.0, exact=False, f1=0.0, generated="?", cut=True, unextracted=True),
        RowScore("5", 3.0, exact=True, f1=1.0, generated="7", cut=False, unextracted=False),
    ]
    summary = summarise(scores)
    assert (summary.n_rows, summary.loss) == (5, 3.0)
    assert (summary.accuracy, summary.choice_loss) == (Mean(0.5, 2), Mean(1.0, 2))
    assert (summary.exact, summary.f1) == (Mean(0.5, 2), Mean(0.5, 2))
    assert (summary.n_cut, summary.n_unextracted) == (1, 1)
    bare = summarise(scores[2:3])
    assert (bare.accuracy, bare.choice_loss, bare.exact, bare.f1) == (None, None, None, None)
    with pytest.raises(SiftuneError, match="no test rows"):
        summarise([])


def test_a_score_is_plain_json():
    for score in evaluate(tiny_model("llama"), encoder(), ROWS, 500):
        assert RowScore(**json.loads(json.dumps(dataclasses.asdict(score)))) == score


def test_every_row_is_told_once():
    told: list[int] = []
    evaluate(tiny_model("llama"), encoder(), ROWS, 120, on_rows=told.append)
    assert sum(told) == len(ROWS)
    assert len(told) > 1


def test_a_model_of_nothing_but_nan_is_refused():
    model = tiny_model("llama")
    next(p for name, p in model.named_parameters() if "norm" in name).fill_(math.nan)
    with pytest.raises(SiftuneError, match=r"test\.jsonl:1: .*not a number"):
        evaluate(model, encoder(), ROWS[:1], 500)


def test_paired_difference():
    difference = paired([1.0, 2.0, 4.0], [0.0, 2.0, 1.0])  # differences -1, 0, -3
    assert difference.mean == pytest.approx(-4 / 3)
    assert difference.standard_error == pytest.approx(math.sqrt(7 / 3 / 3))
    assert paired([1.0], [3.0]) == Difference(2.0, None)
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])
