"""Tasks of the lm-eval harness, from local files: a document's values are those that siftune measures itself where both measure one
thing, and a comparison carries them as it does its own tests."""

from __future__ import annotations

import json
import logging
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from model_helpers import tiny_model, tiny_tokenizer
from pipeline_helpers import recipe, target_rows, write_inputs, write_rows
from siftune.chat.encoder import ChatEncoder
from siftune.pipeline import proving
from siftune.pipeline.comparing import Comparison, compare
from siftune.pipeline.progress import Reporter
from siftune.pipeline.run import run
from siftune.proof import harness
from siftune.proof.evaluate import LIKELIHOOD, Measuring, evaluate
from siftune.proof.harness import Harness, HarnessTask, harness_of
from siftune.proof.measures import DocumentScore
from siftune.records.errors import SiftuneError
from siftune.records.example import Example

pytest.importorskip("lm_eval")

END = "<|im_end|>"
QUESTIONS = [
    ("Is the moon a cat?", ["Yes", "No", "a cat"]),
    ("Name the capital of France.", ["Lyon", "Paris", "The capital of France is Paris."]),
    ("Add 12 and 30.", ["42", "4", "the moon", "5"]),
    ("What is two plus three?", ["five", "two plus three is five", "3"]),
    ("Where did the cat sit?", ["on the mat", "on the moon"]),
]
CHOICES = [(question, options, i % len(options)) for i, (question, options) in enumerate(QUESTIONS)]


def encoder() -> ChatEncoder:
    return ChatEncoder(tiny_tokenizer(), max_length=200)


def example(number: int, question: str, gold: str, **columns: Any) -> Example:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": gold}]
    return Example(str(number), "test", messages, f"test.jsonl:{number}", columns)


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    """A task of the harness over local rows."""
    folder.mkdir(parents=True, exist_ok=True)
    data = write_rows(folder / f"{name}.jsonl", rows)
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "target_delimiter": "",
        "doc_to_text": "question",
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def mean_of(*metrics: str, aggregation: str = "mean") -> list[dict[str, Any]]:
    return [{"metric": m, "aggregation": aggregation, "higher_is_better": True} for m in metrics]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Options that end as a turn ends, so that their likelihood is what siftune measures; texts to generate; a group; a corpus metric."""
    folder = tmp_path_factory.mktemp("tasks")
    choice: dict[str, Any] = {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": mean_of("acc", "acc_norm"),
    }
    rows = [
        {"question": question, "choices": [option + END for option in options], "gold": gold}
        for question, options, gold in CHOICES
    ]
    write_task(folder, "tiny_choice", rows, **choice)
    write_task(folder, "tiny_choice_too", rows[:2], **choice)
    model, said = tiny_model("llama"), []
    for i, (question, _) in enumerate(QUESTIONS):
        row = example(i, question, "x", answer="x")
        (score,) = evaluate(model, encoder(), [row], 400, Measuring(max_new_tokens=8))
        said.append(score.generated)
    written = [
        {"question": question, "answer": text if i % 2 else "no"}
        for i, ((question, _), text) in enumerate(zip(QUESTIONS, said, strict=True))
    ]
    generation: dict[str, Any] = {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": [], "max_gen_toks": 8},
    }
    filters = [
        {"name": "whole", "filter": [{"function": "take_first"}]},
        {
            "name": "first-letter",
            "filter": [{"function": "regex", "regex_pattern": "(.)"}, {"function": "take_first"}],
        },
    ]
    write_task(
        folder, "tiny_text", written, **generation, filter_list=filters, metric_list=mean_of("exact_match")
    )
    write_task(folder, "tiny_bleu", written, **generation, metric_list=mean_of("bleu", aggregation="bleu"))
    (folder / "group.yaml").write_text(
        yaml.safe_dump({"group": "tiny_group", "task": ["tiny_choice", "tiny_choice_too"]})
    )
    return folder


def likelihoods() -> list[bool]:
    rows = [
        example(i, question, options[gold], options=options, answer=options[gold])
        for i, (question, options, gold) in enumerate(CHOICES)
    ]
    return [bool(s.correct) for s in evaluate(tiny_model("llama"), encoder(), rows, 400, LIKELIHOOD)]


@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_accuracy_is_that_of_siftune_document_by_document(tasks, batch_tokens):
    task = HarnessTask("tiny_choice", Harness(["tiny_choice"], tasks))
    scores, n_cut = task.measure(tiny_model("llama"), encoder(), batch_tokens)
    assert [score.values["acc"] for score in scores] == [float(correct) for correct in likelihoods()]
    assert 0 < sum(likelihoods()) < len(QUESTIONS)
    assert n_cut == 0
    assert task.n_documents == len(scores) == len(QUESTIONS)
    assert [(m.name, m.words, m.more_is_better, m.unit) for m in task.measures(scores)] == [
        ("acc", "acc", True, "share"),
        ("acc_norm", "acc_norm", True, "share"),
    ]


@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_generated_answers_are_those_of_siftune(tasks, batch_tokens):
    task = HarnessTask("tiny_text", Harness(["tiny_text"], tasks))
    told: list[int] = []
    scores, _ = task.measure(tiny_model("llama"), encoder(), batch_tokens, on_requests=told.append)
    exact = [score.values["exact_match,whole"] for score in scores]
    assert exact == [float(i % 2) for i in range(len(QUESTIONS))]
    assert [m.words for m in task.measures(scores)] == ["exact_match (whole)", "exact_match (first-letter)"]
    assert sum(told) == len(QUESTIONS)


def test_measuring_again_gives_the_same_and_leaves_everything_as_it_was(tasks, capfd):
    model, coder = tiny_model("llama"), encoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # Python's own is left out: the type checks of tests draw from it
    states = (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    eos, fingerprint = coder._tokenizer.eos_token, coder.fingerprint
    task = HarnessTask("tiny_choice", Harness(["tiny_choice"], tasks))
    first, _ = task.measure(model, coder, 400)
    assert task.measure(model, coder, 400)[0] == first
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert states == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert (coder._tokenizer.eos_token, ChatEncoder(coder._tokenizer, max_length=200).fingerprint) == (
        eos,
        fingerprint,
    )
    assert logging.getLogger("lm_eval").level != logging.ERROR
    printed = capfd.readouterr()
    assert "%|" not in printed.err
    assert printed.out == ""


def test_a_group_is_all_its_documents(tasks):
    group = HarnessTask("tiny_group", Harness(["tiny_group"], tasks))
    scores, _ = group.measure(tiny_model("llama"), encoder(), 400)
    assert group.n_documents == len(scores) == len(QUESTIONS) + 2
    by_task = [f"tiny_choice/{i}" for i in range(len(QUESTIONS))] + ["tiny_choice_too/0", "tiny_choice_too/1"]
    assert [score.id for score in scores] == by_task
    expected = likelihoods()
    assert [score.values["acc"] for score in scores] == [float(one) for one in expected + expected[:2]]


def test_the_digest_tells_what_would_change_a_value(tasks, tmp_path):
    def digest(folder: Path = tasks, **settings: Any) -> str:
        return HarnessTask("tiny_choice", Harness(["tiny_choice"], folder, **settings)).digest

    assert digest() == digest()
    limited = Harness(["tiny_choice"], tasks, limit=3)
    assert HarnessTask("tiny_choice", limited).n_documents == 3
    copied = tmp_path / "tasks"
    shutil.copytree(tasks, copied, ignore=shutil.ignore_patterns("cache"))
    settings = yaml.safe_load((tasks / "tiny_choice.yaml").read_text())
    settings["dataset_kwargs"]["cache_dir"] = str(tmp_path / "cache")
    rows = [json.loads(line) for line in (tasks / "tiny_choice.jsonl").read_text().splitlines()]
    rows[0]["gold"] = 1
    settings["dataset_kwargs"]["data_files"]["test"] = str(write_rows(copied / "tiny_choice.jsonl", rows))
    (copied / "tiny_choice.yaml").write_text(yaml.safe_dump(settings))
    assert len({digest(), digest(limit=3), digest(chat_template=False), digest(copied)}) == 4


def test_a_prompt_longer_than_the_model_takes_is_counted(tmp_path):
    rows = [{"question": "a cat and a moon " * n, "choices": ["x", "y"], "gold": 0} for n in (1, 80)]
    write_task(
        tmp_path,
        "tiny_long",
        rows,
        output_type="multiple_choice",
        doc_to_choice="choices",
        doc_to_target="gold",
        metric_list=mean_of("acc"),
    )
    task = HarnessTask("tiny_long", Harness(["tiny_long"], tmp_path))
    scores, n_cut = task.measure(tiny_model("llama"), encoder(), 4000)
    assert (len(scores), n_cut) == (2, 2)  # both options of the second document


def test_values_outside_0_to_1_are_no_shares(tasks):
    task = HarnessTask("tiny_choice", Harness(["tiny_choice"], tasks))
    (measure,) = task.measures([DocumentScore("a", {"acc": 40.0}), DocumentScore("b", {"acc": 0.5})])
    assert measure.show(40.0) == "40.000"


def _manager_of_folder(tasks: Path, folder: Path | None) -> Any:
    """The folder's tasks where the harness's own are asked for too: those take seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(tasks), include_defaults=False)


@pytest.mark.parametrize(
    ("name", "folder", "said"),
    [
        ("no_such_task", "tasks", "knows no such task"),
        ("tiny_bleu", "tasks", r"mean over documents \(bleu\)"),
        ("tiny_choice", "missing", "no such folder"),
        ("tiny_lost", "tasks", "can't be loaded"),
    ],
)
def test_what_can_t_be_measured_is_told_by_name(tasks, tmp_path, monkeypatch, name, folder, said):
    monkeypatch.setattr(harness, "_manager", partial(_manager_of_folder, tasks))
    lost = {
        "task": "tiny_lost",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "no.jsonl"}},
    }
    (tasks / "lost.yaml").write_text(
        yaml.safe_dump({**lost, "output_type": "generate_until", "test_split": "test", "doc_to_text": "a"})
    )
    where = {"tasks": tasks, "missing": tmp_path / "missing"}[folder]
    with pytest.raises(SiftuneError, match=said):
        HarnessTask(name, Harness([name], where))


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(SiftuneError, match=r"not installed.*siftune\[lm-eval\]"):
        HarnessTask("gsm8k", Harness(["gsm8k"]))


def test_what_the_command_line_asks_for():
    assert harness_of([], None, True, None) is None
    assert harness_of(["a", "b"], "dir", False, 5) == Harness(("a", "b"), Path("dir"), False, 5)
    with pytest.raises(SiftuneError, match="no task is named"):
        harness_of([], "dir", True, None)
    with pytest.raises(SiftuneError, match="no number of documents"):
        harness_of(["a"], None, True, 0)


def test_a_comparison_measures_its_arms_on_a_task_too(tasks, tmp_path, monkeypatch):
    settings = write_inputs(tmp_path / "inputs")
    path = tmp_path / "run"
    run(recipe(settings, method="length"), path, reporter=Reporter(quiet=True))
    test = str(write_rows(tmp_path / "test.jsonl", target_rows(4, seed=5)))
    on_task = Harness(["tiny_choice"], tasks)
    asked = Comparison(
        tests={"sums": test},
        methods=("length",),
        seeds=1,
        training={"epochs": 1},
        measuring=LIKELIHOOD,
        harness=on_task,
    )
    result = compare(path, asked, reporter=Reporter(quiet=True))
    assert list(result) == ["sums", "lm-eval-tiny_choice"]
    own, task = (result[name]["tables"][0]["arms"] for name in result)
    assert [arm["name"] for arm in own] == [arm["name"] for arm in task]
    assert [arm["seeds"] for arm in task] == [[0], [0], [0, 1, 2], [0]]
    assert {name for arm in task for name in arm["measures"]} == {"acc", "acc_norm"}
    untrained, length, chance, _ = task
    assert untrained["measures"]["acc"]["mean"] == pytest.approx(sum(likelihoods()) / len(QUESTIONS))
    entry = length["measures"]["acc"]["against_random"]
    difference = length["measures"]["acc"]["mean"] - chance["measures"]["acc"]["mean"]
    assert entry["mean"] == pytest.approx(difference)
    assert math.isfinite(entry["low"])
    folder = path / "proof" / "lm-eval-tiny_choice"
    assert "acc" in (folder / "comparison.md").read_text()
    assert result["lm-eval-tiny_choice"]["measuring"]["task"] == "tiny_choice"
    files = {file.name: file.read_bytes() for file in folder.iterdir()}

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("was measured before")

    monkeypatch.setattr(proving, "evaluate", never)
    monkeypatch.setattr(proving, "train_on", never)
    monkeypatch.setattr(HarnessTask, "measure", never)
    again = compare(
        path, Comparison(tests={}, methods=("length",), seeds=1, training={"epochs": 1}, harness=on_task)
    )
    assert list(again) == ["lm-eval-tiny_choice"]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files


def test_two_of_one_name_are_refused(tmp_path):
    settings = write_inputs(tmp_path)
    run(recipe(settings, method="length"), tmp_path / "run", until="pool", reporter=Reporter(quiet=True))
    asked = Comparison(tests={}, harness=Harness(["piqa", "piqa"]))
    with pytest.raises(SiftuneError, match="one name"):
        compare(tmp_path / "run", asked, reporter=Reporter(quiet=True))
