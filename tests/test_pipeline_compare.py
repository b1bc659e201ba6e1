"""Comparisons on a tiny model: what is in the files, that nothing is trained twice, and what is refused before any training."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from gradient_oracle import gradients
from model_helpers import CHATML, tiny_model, tiny_tokenizer
from pipeline_helpers import digests, pool_rows, recipe, target_rows, write_inputs, write_rows
from siftune.chat.encoder import ChatEncoder
from siftune.chat.tokenizer import load_tokenizer
from siftune.cli import app
from siftune.model.load import load_model
from siftune.model.lora import adapter_on
from siftune.pipeline import proving
from siftune.pipeline.comparing import Comparison, compare, own_methods, readings_of
from siftune.pipeline.progress import Reporter
from siftune.pipeline.run import run, score, select
from siftune.proof.cells import Cell
from siftune.proof.comparison import Arm
from siftune.proof.comparison import compared as figures
from siftune.proof.evaluate import LIKELIHOOD, Measuring, RowScore
from siftune.proof.measures import MEASURES
from siftune.proof.show import against, write_comparison
from siftune.records.errors import SiftuneError
from siftune.records.readers import read_target
from siftune.records.text import shown

QUIET = Reporter(quiet=True)
N_POOL, N_CHOSEN, BATCH, EPOCHS = 60, 6, 4, 2
STEPS = EPOCHS * 2
ALWAYS = ["untrained", "random", "full pool"]
TRAINING = {"epochs": EPOCHS, "batch": BATCH, "learning_rate": 1e-2}


def rows_of_both_kinds(n: int = 3) -> list[dict[str, Any]]:
    """Rows that are answered among options, and rows that are answered freely."""
    rows: list[dict[str, Any]] = [{"messages": row["messages"]} for row in target_rows(2 * n, seed=5)]
    for i, row in enumerate(rows):
        gold = row["messages"][-1]["content"]
        row |= {"answer": gold, **({"options": [gold, "No.", "Yes."]} if i % 2 else {})}
    return rows


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    settings = write_inputs(folder)
    write_rows(folder / "pool.jsonl", pool_rows(N_POOL, 8))
    return {**settings, "keep": "10%", "epochs": 1, "shard_rows": 30}


@pytest.fixture(scope="module")
def exam(given: dict[str, Any]) -> str:
    return str(write_rows(Path(given["model"]).parent / "test.jsonl", rows_of_both_kinds()))


@pytest.fixture(scope="module")
def done(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(recipe(given), out, reporter=QUIET)
    return out


@pytest.fixture(scope="module")
def asked(exam: str) -> Comparison:
    return Comparison(
        tests={"sums": exam},
        methods=("less", "bm25"),
        seeds=2,
        readings=("steps", "epochs"),
        training=TRAINING,
        measuring=Measuring(max_new_tokens=2),
    )


@pytest.fixture(scope="module")
def compared(done: Path, asked: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with a finished comparison; tests below may add to it, never change what it has."""
    out = shutil.copytree(done, tmp_path_factory.mktemp("compared") / "run")
    compare(out, asked, reporter=QUIET)
    return out


@pytest.fixture
def copy(compared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(compared, tmp_path / "run")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the trainings that were begun while a test ran."""
    began: list[str] = []
    real = proving.train_on

    def counted(base: Any, rows: Any, folder: Path, *rest: Any, **more: Any) -> Path:
        if not (folder / "training.json").exists():
            began.append(folder.name)
        return real(base, rows, folder, *rest, **more)

    monkeypatch.setattr(proving, "train_on", counted)
    return began


def small(exam: str, *methods: str, **changes: Any) -> Comparison:
    whole: dict[str, Any] = {"tests": {"sums": exam}, "methods": methods or ("less",), "seeds": 1}
    return Comparison(**{**whole, "training": TRAINING, "measuring": LIKELIHOOD, **changes})


def read(path: Path, test: str = "sums") -> dict[str, Any]:
    return json.loads((path / "proof" / test / "comparison.json").read_text(encoding="utf-8"))


def cells(path: Path, arm: str, test: str = "sums") -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Scores of an arm's cells by (seed, steps taken)."""
    found = {}
    for file in (path / "proof" / "cells").glob(f"{test}-*.json"):
        cell = json.loads(file.read_text())
        about = cell["about"]
        if about["arm"] == arm:
            training = path / "proof" / "trained" / about["training"] / "training.json"
            steps = json.loads(training.read_text())["steps"] if training.exists() else 0
            found[about["seed"], steps] = cell["scores"]
    return found


def test_every_figure_is_the_mean_of_what_the_cells_hold(compared: Path, exam: str) -> None:
    result = read(compared)
    assert {"test", "target", "file", "n_rows", "rows", "model", "training", "measuring", "tables"} <= set(
        result
    )
    assert (result["test"], result["target"], result["file"], result["n_rows"]) == (
        "sums",
        "sums",
        exam,
        6,
    )
    assert [table["reading"] for table in result["tables"]] == ["equal steps", "equal epochs"]
    values: dict[str, Callable[[dict[str, Any]], Any]] = {
        "loss": lambda s: s["loss"],
        "choice_loss": lambda s: s["choice_loss"],
        "accuracy": lambda s: s["correct"],
        "exact": lambda s: s["exact"],
        "f1": lambda s: s["f1"],
    }
    for table in result["tables"]:
        arms = {arm["name"]: arm for arm in table["arms"]}
        assert list(arms) == ["untrained", "less", "bm25", "random", "full pool"]
        assert [arm["keep"] for arm in arms.values()] == [None, "10%", "10%", "10%", None]
        assert [arm["n_rows"] for arm in arms.values()] == [0, N_CHOSEN, N_CHOSEN, N_CHOSEN, N_POOL]
        full_seeds, full_steps = ([0, 1], STEPS) if table["reading"] == "equal steps" else ([0], EPOCHS * 15)
        assert [arm["seeds"] for arm in arms.values()] == [[0], [0, 1], [0, 1], [0, 1, 2], full_seeds]
        assert [arm["steps"] for arm in arms.values()] == [0, STEPS, STEPS, STEPS, full_steps]
        for name, arm in arms.items():
            found = cells(compared, name)
            scores = [found[seed, arm["steps"]] for seed in arm["seeds"]]
            assert list(arm["measures"]) == list(values)
            for measure, entry in arm["measures"].items():
                of_rows = [
                    [values[measure](s) for s in cell if values[measure](s) is not None] for cell in scores
                ]
                assert entry["n"] == len(of_rows[0]) == (6 if measure == "loss" else 3)
                assert entry["mean"] == pytest.approx(np.mean(of_rows))
                assert entry["low"] <= entry["mean"] + 1e-9
                assert entry["mean"] <= entry["high"] + 1e-9
                if len(scores) > 1:
                    assert entry["spread"] == pytest.approx(np.std(np.mean(of_rows, axis=1), ddof=1))
                else:
                    assert entry["spread"] is None
                for what, other in (("random", "random"), ("subject", "less")):
                    assert (f"against_{what}" in entry) == (name != other)
                    if name != other:
                        difference = entry[f"against_{what}"]
                        mean = entry["mean"] - arms[other]["measures"][measure]["mean"]
                        assert difference["mean"] == pytest.approx(mean)
                        assert difference["significant"] == (difference["low"] > 0 or difference["high"] < 0)
                        less_is_better = "loss" in measure
                        assert difference["better"] == (mean < 0 if less_is_better else mean > 0)
        words = table["sentence"]
        assert words.startswith(f"sums, {table['reading']}: less at 10% (6 rows); loss on the gold answer")
        for name in ("untrained", "bm25", "random", "full pool"):
            assert f"{name} (" in words


def test_a_cell_is_what_the_adapter_makes_of_the_test_rows(
    compared: Path, given: dict[str, Any], exam: str
) -> None:
    """Its rows are those that `select` chooses, and its losses are autograd's under the adapter that was trained on them."""
    select(compared, {"name": "chosen"}, reporter=QUIET)
    about = [json.loads(f.read_text())["about"] for f in (compared / "proof/cells").glob("*.json")]
    training = next(a["training"] for a in about if a["arm"] == "less" and a["seed"] == 1)
    folder = compared / "proof/trained" / training
    kept = json.loads((folder / "training.json").read_text())
    assert (kept["rows"], kept["steps"], kept["batch"], kept["seed"]) == (N_CHOSEN, STEPS, BATCH, 1)
    assert len(kept["losses"]) == STEPS
    encoder = ChatEncoder(load_tokenizer(given["model"], None), max_length=2048)
    base = load_model(given["model"])
    rows = [encoder.encode(row.example) for row in read_target(exam, "sums")]
    with adapter_on(base, folder / "adapter", trainable=False) as model:
        losses = [gradients(model, row.token_ids, row.trained)[0] for row in rows if not isinstance(row, str)]
    assert [s["loss"] for s in cells(compared, "less")[1, STEPS]] == pytest.approx(losses, rel=1e-4)


def test_equal_steps_are_equal_and_each_training_stands_once(compared: Path) -> None:
    kept = [json.loads(f.read_text()) for f in (compared / "proof/trained").glob("*/training.json")]
    assert (
        len(kept) == 2 + 2 + 3 + 2 + 1
    )  # less, bm25, random, the full pool at equal steps, and at equal epochs
    assert all(len(k["losses"]) == k["steps"] for k in kept)
    assert sorted(k["steps"] for k in kept) == [STEPS] * 9 + [EPOCHS * 15]
    settings = ("batch", "learning_rate", "rank", "alpha", "dropout", "lora_targets", "micro_tokens")
    assert len({json.dumps([k[s] for s in settings]) for k in kept}) == 1
    assert not list((compared / "proof/trained").glob("*/checkpoints"))


def test_cut_off_anywhere_and_gone_on_with_gives_the_same_bytes(
    copy: Path, done: Path, exam: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, copy = copy, shutil.copytree(done, tmp_path / "cut")
    compare(whole, small(exam), reporter=QUIET)  # its trainings were done by another comparison
    real_training, real_measuring = proving.train_on, proving.evaluate
    calls = {"train": 0, "step": 0, "measure": 0}

    class CutError(Exception):
        pass

    def stop(what: str, at: int) -> None:
        calls[what] += 1
        if calls[what] == at:
            raise CutError

    def train(*given: Any, on_progress: Any, **more: Any) -> Path:
        def watched(*progress: Any) -> None:
            stop("step", 3)
            on_progress(*progress)

        stop("train", 3)
        return real_training(*given, on_progress=watched, **more)

    def measure(*given: Any, **more: Any) -> Any:
        found = real_measuring(*given, **more)
        stop("measure", 4)
        return found

    monkeypatch.setattr(proving, "train_on", train)
    monkeypatch.setattr(proving, "evaluate", measure)
    for _ in range(3):
        with pytest.raises(CutError):
            compare(copy, small(exam), reporter=QUIET)
        assert not (copy / "proof/sums/comparison.json").exists()
    monkeypatch.setattr(proving, "train_on", real_training)
    compare(copy, small(exam), reporter=QUIET)
    assert digests(copy, "proof/sums") == digests(whole, "proof/sums")
    adapters = [
        {n: d for n, d in digests(p, "proof/trained").items() if "/adapter/" in n} for p in (copy, whole)
    ]
    assert adapters[0].items() <= adapters[1].items()
    assert len(adapters[0]) == 2 * 5


def test_going_on_trains_only_what_is_new(
    copy: Path, compared: Path, asked: Comparison, trained: list[str]
) -> None:
    out, before = copy, digests(copy, "proof")
    compare(out, asked, reporter=QUIET)
    assert (digests(out, "proof"), trained) == (before, [])
    more = Comparison(
        **{**vars(asked), "methods": ("less", "length", "less:rule=round-robin"), "readings": ("steps",)}
    )
    compare(out, more, reporter=QUIET)
    assert len(trained) == 2  # length with two seeds; the third is less under another name
    names = [arm["name"] for arm in read(out)["tables"][0]["arms"]]
    assert names == ["untrained", "less", "length", "less:rule=round-robin", "random", "full pool"]
    arms = {arm["name"]: arm for arm in read(out)["tables"][0]["arms"]}
    assert arms["less:rule=round-robin"]["measures"]["loss"]["against_subject"]["mean"] == 0
    old = {arm["name"]: arm for arm in read(compared)["tables"][0]["arms"]}
    for name in ("untrained", "less", "random", "full pool"):
        assert arms[name] == old[name]
    compare(out, Comparison(**{**vars(more), "measuring": LIKELIHOOD, "seeds": 1}), reporter=QUIET)
    assert len(trained) == 2  # measured in another way, trained no more
    assert "exact" not in read(out)["tables"][0]["arms"][0]["measures"]


def test_tests_of_several_targets_share_what_does_not_depend_on_them(
    copy: Path, exam: str, trained: list[str], tmp_path: Path
) -> None:
    other = [{"messages": row["messages"]} for row in pool_rows(5, 0, seed=3)]
    file = write_rows(tmp_path / "noise.jsonl", other)
    score(copy, {"noise": str(file)}, {"method": "bm25", "keep": "3"}, reporter=QUIET)
    test = write_rows(tmp_path / "t.jsonl", [{"messages": r["messages"]} for r in pool_rows(4, 0, seed=4)])
    tests = {"sums": exam, "noise": str(test)}
    results = compare(copy, small(exam, "bm25", tests=tests), reporter=QUIET)
    assert len(trained) == 1  # of rows for the new target; the rest was there
    assert set(results) == {"sums", "noise"}
    assert len(list((copy / "proof/cells").glob("noise-*.json"))) == 6
    arms = [{a["name"]: a for a in r["tables"][0]["arms"]} for r in results.values()]
    assert [list(named) for named in arms] == [["untrained", "bm25", "random", "full pool"]] * 2
    assert [r["n_rows"] for r in results.values()] == [6, 4]
    assert results["noise"]["target"] == "noise"
    loss = {
        test: {arm["name"]: arm["measures"]["loss"]["mean"] for arm in result["tables"][0]["arms"]}
        for test, result in results.items()
    }
    assert loss["sums"]["bm25"] < loss["sums"]["untrained"]


def test_what_somebody_else_chose_is_an_arm_and_unreadable_rows_are_told(
    copy: Path, exam: str, tmp_path: Path
) -> None:
    rows = [{"instruction": f"add {n} and 1", "output": f"The answer is {n + 1}."} for n in range(5)]
    theirs = write_rows(tmp_path / "theirs.jsonl", [*rows, {"instruction": "no output"}])
    said = io.StringIO()
    asked = small(exam, "bm25", also={"theirs": str(theirs)}, keep=("10%", "2"))
    compare(copy, asked, reporter=Reporter(console=Console(file=said)))
    tables = read(copy)["tables"]
    assert [table["keep"] for table in tables] == ["10%", "2"]
    for table, steps in zip(tables, (STEPS, EPOCHS), strict=True):
        arms = {arm["name"]: arm for arm in table["arms"]}
        assert list(arms) == ["untrained", "bm25", "random", "theirs", "full pool"]
        assert (arms["theirs"]["n_rows"], arms["theirs"]["keep"]) == (5, None)
        assert {arm["steps"] for name, arm in arms.items() if name != "untrained"} == {steps}
    assert f"1 rows of {theirs} can't be read" in said.getvalue().replace("\n", "")
    assert (copy / "proof/sums/comparison-2.svg").exists()


def test_another_model_may_be_the_one_that_is_trained(
    copy: Path, given: dict[str, Any], exam: str, tmp_path: Path
) -> None:
    """Another architecture, whose layers have other names, with a template of its own."""
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "<|im_start|>the ")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    result = compare(copy, small(exam, model=str(tmp_path / "gpt2")), reporter=QUIET)["sums"]
    assert result["model"] == str(tmp_path / "gpt2")
    own = compare(copy, small(exam, model=given["model"]), reporter=QUIET)["sums"]
    assert own["tables"] == compare(copy, small(exam), reporter=QUIET)["sums"]["tables"]
    tokens = [{a["name"]: a["n_tokens"] for a in r["tables"][0]["arms"]} for r in (result, own)]
    assert tokens[0]["less"] > tokens[1]["less"]
    kept = [json.loads(f.read_text()) for f in (copy / "proof/trained").glob("*/training.json")]
    layers = {tuple(k["lora_targets"]) for k in kept}
    assert layers == {("attn.c_proj", "c_attn"), ("k_proj", "o_proj", "q_proj", "v_proj")}
    assert len(kept) == 10 + 5
    losses = [r["tables"][0]["arms"][0]["measures"]["loss"]["mean"] for r in (result, own)]
    assert losses[0] != losses[1]


def test_a_run_without_checkpoints_is_compared_and_less_joins_later(
    given: dict[str, Any], exam: str, trained: list[str], tmp_path: Path
) -> None:
    """What the warm-up decides (names of layers) must not make old trainings new."""
    out = tmp_path / "run"
    run(recipe(given, method="bm25"), out, reporter=QUIET)
    compare(out, small(exam, "bm25"), reporter=QUIET)
    assert len(trained) == 5
    compare(out, small(exam, "bm25", "less"), reporter=QUIET)
    assert len(trained) == 6
    first = (out / "proof/sums/comparison.json").read_bytes()
    compare(out, small(exam, "bm25", "less"), reporter=QUIET)
    assert len(trained) == 6
    assert (out / "proof/sums/comparison.json").read_bytes() == first


def test_rows_that_were_seen_before_are_told(copy: Path, tmp_path: Path) -> None:
    seen = [{"messages": row["messages"]} for row in (pool_rows(N_POOL, 8)[3], target_rows()[0])]
    file = write_rows(
        tmp_path / "t.jsonl", [*seen, *[{"messages": r["messages"]} for r in target_rows(2, seed=8)]]
    )
    said = io.StringIO()
    reporter = Reporter(quiet=True, console=Console(file=said, width=400))
    compare(copy, small(str(file), "bm25", tests={"exam": str(file)}), reporter=reporter)
    assert "leakage: 1 of the 4 rows of the test 'exam' are also in the pool" in said.getvalue()
    assert "leakage: 1 of the 4 rows of the test 'exam' are also in the target sums" in said.getvalue()
    assert "repeat another" not in said.getvalue()
    assert "--also" not in said.getvalue()
    compare(
        copy,
        small(str(file), "bm25", tests={"exam": str(file)}, also={"theirs": str(file)}),
        reporter=reporter,
    )
    assert (
        "leakage: 4 of the 4 rows of the test 'exam' are also in the rows of --also theirs" in said.getvalue()
    )
    assert read(copy, "exam")["target"] == "sums"


def test_the_end_of_an_interval_never_reads_as_0_unless_it_is() -> None:
    loss, accuracy = MEASURES[0], MEASURES[2]
    found = {"mean": -0.0102, "low": -0.018, "high": -0.0004, "significant": True, "better": True}
    assert against(found, loss) == "-0.010 [-0.018, -0.0004] ✓"
    found = {"mean": 0.1, "low": 0.00021, "high": 0.2, "significant": True, "better": True}
    assert against(found, accuracy) == "+10.0 % [+0.02 %, +20.0 %] ✓"
    found = {"mean": 0.0, "low": 0.0, "high": 0.0, "significant": False, "better": False}
    assert against(found, loss) == "+0.000 [+0.000, +0.000] ≈"


def test_test_rows_that_stand_there_twice_are_told(copy: Path, tmp_path: Path) -> None:
    rows = [{"messages": row["messages"]} for row in target_rows(3, seed=8)]
    file = write_rows(tmp_path / "t.jsonl", [*rows, rows[1]])
    said = io.StringIO()
    reporter = Reporter(quiet=True, console=Console(file=said, width=400))
    compare(copy, small(str(file), "bm25", tests={"exam": str(file)}), reporter=reporter)
    assert "1 of the 4 rows of the test 'exam' repeat another" in said.getvalue()


def test_rows_that_are_cut_are_told(copy: Path, tmp_path: Path) -> None:
    long = [{"messages": [{"role": "user", "content": "add"}, {"role": "assistant", "content": "9 " * 3000}]}]
    file = write_rows(tmp_path / "long.jsonl", [*target_rows(3, seed=7), *long_rows(long)])
    said = io.StringIO()
    reporter = Reporter(quiet=True, console=Console(file=said, width=400))
    compare(copy, small(str(file), "bm25", tests={"exam": str(file)}), reporter=reporter)
    assert "1 of the 4 rows of the test 'exam' are longer than max_length" in said.getvalue()


def long_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "subtask": "kind 0"} for row in rows]


def test_what_each_method_chose_is_written(compared: Path) -> None:
    choices = json.loads((compared / "proof" / "sums" / "choices.json").read_text())
    for name, rows in choices.items():
        method, keep, seed = name.rsplit(" ", 2)
        arm = next(a for a in read(compared)["tables"][0]["arms"] if (a["name"], a["keep"]) == (method, keep))
        assert len(rows) == arm["n_rows"]
        assert int(seed) in arm["seeds"]
    assert len({str(rows) for name, rows in choices.items() if name.startswith("random ")}) >= 3


def test_both_sides_of_a_pair_tell_the_same() -> None:
    """Also where an interval hardly leaves out zero, which other draws would turn."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        arms = [
            Arm(name, "5%", 5, 50, 3, [0, 1, 2], [of_losses(draw.normal(5, 0.1, 8)) for _ in range(3)])
            for name in ("less", "random", "rds+")
        ]
        tables = {arm["name"]: arm["measures"]["loss"] for arm in figures(arms, "less")}
        one, other = tables["less"]["against_random"], tables["random"]["against_subject"]
        assert (one["mean"], one["low"], one["high"]) == (-other["mean"], -other["high"], -other["low"])
        assert one["significant"] == other["significant"]
        assert one["better"] != other["better"]


def of_losses(losses: np.ndarray) -> Cell:
    return Cell("sums", {}, [RowScore(str(r), float(loss)) for r, loss in enumerate(losses)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ("bm25:family=a=b",)}, "bm25 does not look at family"),
        ({"tests": {}}, "no test is given"),
        ({"methods": ()}, "no method is given"),
        ({"methods": ("less", "best")}, "'best' is not accepted"),
        ({"methods": ("less", "bm25", "less")}, "given twice"),
        ({"methods": ("less:rule=worst",)}, "'worst' is not accepted"),
        ({"methods": ("less:rule=[",)}, "not readable YAML"),
        ({"methods": ("less:keep=5",)}, "not SETTING=VALUE"),
        ({"methods": ("less:top",)}, "not SETTING=VALUE"),
        ({"methods": ("random:drop_worst=10%",)}, "does not say which rows are against"),
        ({"methods": ("ltd:family=x",)}, "not COLUMN=VALUE"),
        ({"also": {"random": "x.jsonl"}}, "random is the name of another arm"),
        ({"also": {"bm25": "x.jsonl"}, "methods": ("bm25",)}, "bm25 is the name of another arm"),
        ({"also": {"../x": "x.jsonl"}}, "can't name"),
        ({"also": {"x": "nowhere.jsonl"}}, "nowhere.jsonl"),
        ({"seeds": 0}, "at least one seed"),
        ({"keep": ("much",)}, "not a budget"),
        ({"keep": ("1000",)}, "more than the 60 rows"),
        ({"training": {"epochs": 0}}, "epochs"),
        ({"training": {"model": "x"}}, "model is no setting of a training"),
        ({"model": "nowhere/at-all"}, "nowhere/at-all"),
    ],
)
def test_what_cannot_be_is_refused_before_any_training(
    changes: dict[str, Any], said: str, done: Path, exam: str, trained: list[str]
) -> None:
    with pytest.raises(SiftuneError, match=said):
        compare(
            done,
            small(exam, **changes)
            if "methods" not in changes
            else Comparison(**{**vars(small(exam)), **changes}),
            reporter=QUIET,
        )
    assert trained == []
    assert not (done / "proof").exists()


def test_targets_tests_and_readings_that_are_none_are_refused(
    copy: Path, exam: str, trained: list[str], tmp_path: Path
) -> None:
    with pytest.raises(SiftuneError, match="no reading 'hours'"):
        readings_of("hours")
    file = write_rows(tmp_path / "fresh.jsonl", target_rows(3, seed=7))
    score(copy, {"fresh": str(file)}, {"method": "bm25", "keep": "3"}, reporter=QUIET)
    with pytest.raises(SiftuneError, match="no target 'third'; it has sums, fresh"):
        compare(copy, small(exam, tests={"third": exam}), reporter=QUIET)
    bad = write_rows(tmp_path / "bad.jsonl", [{**rows_of_both_kinds()[1], "answer": "Perhaps."}])
    with pytest.raises(SiftuneError, match="not among the options"):
        compare(copy, small(exam, tests={"sums": str(bad)}), reporter=QUIET)
    assert trained == []


HOSTILE = "less:family=a=|<b>*x*</b>](http://e.vil)`_&amp;_[red]\x1b[2J\ud800"


def test_hostile_names_stay_text(compared: Path, tmp_path: Path) -> None:
    result = read(compared)
    text = (
        json.dumps(result)
        .replace('"less"', json.dumps(HOSTILE))
        .replace("less at", json.dumps(HOSTILE)[1:-1] + " at")
    )
    result = json.loads(text)
    result |= {"file": "/tmp/a_*b*_|<i>.jsonl", "model": "x](y)"}
    write_comparison(tmp_path, result)
    for name in ("comparison.svg", "comparison-2.svg"):
        root = ElementTree.fromstring((tmp_path / name).read_text(encoding="utf-8"))
        texts = [element.text for element in root.iter() if element.text]
        assert any(text.startswith(shown(HOSTILE)[:20]) for text in texts)
        assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
            *("svg", "title", "style", "text", "line", "circle"),
        }
    parsed = (
        MarkdownIt("commonmark")
        .enable("table")
        .parse((tmp_path / "comparison.md").read_text(encoding="utf-8"))
    )
    inline = [child for token in parsed for child in token.children or ()]
    assert {token.type for token in inline} <= {
        *("text", "text_special", "softbreak", "image", "strong_open", "strong_close", "hardbreak"),
    }
    assert {token.attrs["src"] for token in inline if token.type == "image"} == {
        "comparison.svg",
        "comparison-2.svg",
    }
    assert sum(token.type == "td_open" for token in parsed) == 2 * 5 * (4 + 2 * 5)
    words = "".join(token.content for token in inline if token.type != "image")
    assert words.count(shown(HOSTILE)) == 2 * 3  # heading, sentence, table
    assert result["file"] in words
    assert (tmp_path / "comparison.json").read_text() == json.dumps(result, indent=2) + "\n"


def invoked(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_a_run_is_compared_with_random_rows_and_a_blend_with_its_parts_too() -> None:
    assert own_methods("blend") == ("blend", "less", "rds+", "bm25", "random")
    assert own_methods("rds+") == ("rds+", "random")
    assert own_methods("random") == ("random",)


def test_the_command_line_compares_checks_and_leaves_out(
    compared: Path, asked: Comparison, exam: str, trained: list[str]
) -> None:
    command = [
        "compare",
        str(compared),
        "--test",
        f"sums={exam}",
        "--methods",
        "less,bm25",
        "--seeds",
        "2",
    ]
    command += [
        "--reading",
        "both",
        "--epochs",
        str(EPOCHS),
        "--batch",
        str(BATCH),
        "--learning-rate",
        "1e-2",
    ]
    command += ["--max-new-tokens", "2", "--quiet"]
    found = invoked(*command, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout) == {"sums": read(compared)}
    assert trained == []
    table = invoked(*command)
    assert table.exit_code == 0, table.output
    for name in ("untrained", "full pool", "random", "no significant difference", "comparison.md"):
        assert name in table.stdout

    checked = invoked("check", str(compared), "--batches", "6", "--rows", "2", "--quiet", "--json")
    assert checked.exit_code == 0, checked.output
    values = json.loads(checked.stdout)
    assert len(values["targets"]) == 1
    shown_check = invoked("check", str(compared), "--batches", "6", "--rows", "2", "--quiet")
    assert str(compared / "proof") in shown_check.stdout.replace("\n", "")

    left = invoked("select", str(compared), "--drop-worst", "10%", "--name", "without", "--json", "--quiet")
    assert left.exit_code == 0, left.output
    selection = json.loads(left.stdout)["selections"]["without"]
    assert (selection["n_selected"], selection["settings"]["drop_worst"]) == (N_POOL - 6, "10%")
    for arguments, said in (
        (["compare", str(compared)], "no test is given"),
        ([*command, "--methods", "less,best"], "best"),
        ([*command, "--reading", "hours"], "no reading 'hours'"),
        ([*command, "--test", f"sums={exam}"], "given twice"),
        (["select", str(compared), "--drop-worst", "10%", "--keep", "5%"], "exclude each other"),
        (["select", str(compared), "--drop-worst", "ten"], "drop_worst"),
    ):
        refused = invoked(*arguments)
        assert (refused.exit_code, said in refused.stderr) == (2, True), refused.output
        assert "Traceback" not in refused.output
