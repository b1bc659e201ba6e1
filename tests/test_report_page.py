"""The report of a real run on a tiny model: whole, self-contained, inert whatever the rows hold, silent about text when asked."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline_helpers import pool_rows, recipe, target_rows, turn, write_inputs, write_rows
from siftune.cli import app
from siftune.pipeline.progress import Reporter
from siftune.pipeline.reporting import report
from siftune.pipeline.run import append, run, select
from siftune.records.errors import SiftuneError

QUIET = Reporter(quiet=True)
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "</div></article></main></html>",
    "\u202egnp.exe\u202c \u2066x\u2069 \u200b",
    "\x00\x07\x1b[31mred\x1b[0m\x9b2J",
    "{{ 7 * 7 }} {% raw %} &amp; &#x3c;b>",
    "javascript:alert(1) ' \" ` $(reboot)",
    "<" * 100_000,
    "\u05e9\u05dc\u05d5\u05dd مرحبا",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three selections, and a test file beside it."""
    folder = tmp_path_factory.mktemp("report")
    settings = write_inputs(folder)
    out = folder / "RUN"
    run(recipe(settings), out, reporter=QUIET)
    select(out, {"method": "random", "name": "random"}, reporter=QUIET)
    select(out, {"method": "bm25", "name": "words"}, reporter=QUIET)
    return out


class Page(HTMLParser):
    """What a page holds: tags with their attributes, its text, and which tags were left open."""

    EMPTY = frozenset({"meta", "line", "img", "br", "wbr"})

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.inside:
            self.inside[self.open[-1]].append(data)
        else:
            self.said.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check_sound(page: Page) -> None:
    """What holds for every report."""
    assert not page.open
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "style" not in attributes, "the page's policy would not let it in"
        for name in ("src", "href"):
            if value := attributes.get(name):
                assert value.startswith(("#", "data:image/svg+xml;base64,")), value
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not page.all("link") + page.all("iframe") + page.all("object")
    policy = next(
        of["content"] for of in page.all("meta") if of.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256("".join(page.inside[tag]).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for of in page.all("a") if (value := of["href"])}
    wanted |= {value for _, of in page.tags if (value := of.get("aria-labelledby"))}
    assert wanted <= set(ids)
    for of in page.all("svg"):
        assert of["role"] == "img"
        assert of["aria-label"]
    assert all(of["alt"] for of in page.all("img"))


def test_page_answers_every_question(made: Path) -> None:
    written = report(made, tests={"sums": str(made.parent / "target.jsonl")}, reporter=QUIET)
    text = written.page.read_text(encoding="utf-8")
    page = Page(text)
    check_sound(page)
    assert json.loads((made / "report.json").read_text()) == written.facts
    assert [of["name"] for of in written.facts["selections"]] == ["random", "sums", "words"]
    for head in (
        "Scores",
        "Composition",
        "Length",
        "Subtasks",
        "Examples",
        "Overlap with other selections",
        "Redundancy",
    ):
        assert page.said.count(head) == 3, head
    for head in ("Leakage", "Outcome", "Integrity"):
        assert head in page.said
    assert len(page.all("details")) >= len(page.all("svg")), "a chart has its table"
    sums = next(of for of in written.facts["selections"] if of["name"] == "sums")
    best = sums["examples"]["subtasks"][0]
    assert best["subtask"] == "kind 0"
    assert "".join(part["text"] for part in best["target"][0]["parts"]).count("The answer is") == 1
    trained = "".join(part["text"] for part in best["target"][0]["parts"] if part["trained"])
    assert trained.startswith("The answer is")
    assert trained.count("add") == 0
    assert f"<mark>{escape(trained)}</mark>" in text
    assert [of["checkpoint"] for of in sums["examples"]["checkpoints"]] == [1, 2]
    assert {of["selection"] for of in sums["overlap"]} == {"random", "words"}
    # the target given as a test is in the pool's neighbourhood, not in it
    assert [of["kind"] for of in written.facts["leakage"]] == ["target", "test"]


def test_figures_are_those_of_the_selection(made: Path) -> None:
    facts = report(made, names=["sums"], reporter=QUIET).facts["selections"][0]
    rows = [json.loads(line) for line in (made / "selections/sums/selected.jsonl").read_text().splitlines()]
    sources = {of["value"]: of["chosen"] for of in facts["composition"][0]["rows"]}
    assert sources.get("planted", 0) == sum(row["source"] == "planted" for row in rows)
    assert facts["verdict"]["selected"] == len(rows) == sum(facts["scores"]["chosen"])
    around = facts["examples"]["around_the_cut"]
    assert [of["rank"] for of in around] == list(range(len(rows) - 2, len(rows) + 4))
    assert [of["chosen"] for of in around] == [True] * 3 + [False] * 3
    assert sum(row["chosen"] for row in facts["subtasks"]["rows"]) == len(rows)


def test_the_command_makes_the_same_choice_again(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "RUN")
    facts = report(tmp_path / "RUN", names=["sums"], reporter=QUIET).facts["selections"][0]
    command = facts["verdict"]["command"].split()
    assert command[:2] == ["siftune", "select"]
    result = CliRunner().invoke(app, [*command[1:], "--quiet"])
    assert result.exit_code == 0, result.output
    again = report(tmp_path / "RUN", names=["AGAIN"], reporter=QUIET).facts["selections"][0]
    assert again["verdict"]["fingerprint"] == facts["verdict"]["fingerprint"]


def test_hostile_rows_are_text(tmp_path: Path) -> None:
    settings = write_inputs(tmp_path)
    rows = pool_rows(60, 6)
    for place, text in enumerate(HOSTILE):
        rows[place] = {
            "id": text[:50],
            "source": text[:40],
            "messages": turn(text, text[:2000]),
            "kind": text[:30],
        }
    write_rows(tmp_path / "pool.jsonl", rows)
    target = [{"messages": turn(text[:100], text[:60]), "subtask": text[:40]} for text in HOSTILE]
    write_rows(tmp_path / "target.jsonl", target)
    run(recipe(settings, keep="20", epochs=1), tmp_path / "RUN", reporter=QUIET)
    written = report(tmp_path / "RUN", tests={"t": str(tmp_path / "target.jsonl")}, reporter=QUIET)
    text = written.page.read_text(encoding="utf-8")
    assert len(text.encode()) < 2_000_000
    page = Page(text)
    check_sound(page)
    said = "".join(page.said)
    assert "<script>alert(1)</script>" in said
    assert "{{ 7 * 7 }}" in said
    assert all(character.isprintable() or character == "\n" for character in text)
    result = CliRunner().invoke(app, ["report", str(tmp_path / "RUN"), "--text", "--quiet"])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output


def test_a_row_of_the_test_in_the_pool_is_a_red_banner(made: Path) -> None:
    known = [json.loads(line) for line in (made.parent / "pool.jsonl").read_text().splitlines()][:2]
    test = write_rows(made.parent / "leaking.jsonl", [{"messages": row["messages"]} for row in known])
    written = report(made, tests={"leaking": str(test)}, reporter=QUIET)
    leak = written.facts["leakage"][-1]
    assert (leak["exact"], leak["pool_rows"]) == (2, [0, 1])
    page = Page(written.page.read_text(encoding="utf-8"))
    assert [of for of in page.all("p") if of.get("class") == "banner" and of.get("role") == "alert"]
    assert any(
        "Leakage" in warning for of in written.facts["selections"] for warning in of["verdict"]["warnings"]
    )


def test_no_text_is_kept_where_none_is_wanted(tmp_path: Path) -> None:
    settings = write_inputs(tmp_path)
    rows = pool_rows(60, 6)
    rows += [{"messages": [{"role": "SECRETROLE", "content": "x"}]}, {"messages": turn("a", " ")}]
    for row in rows[:60]:
        row["messages"][0]["content"] += " SECRETQUESTION"
    write_rows(tmp_path / "pool.jsonl", rows)
    target = target_rows()
    for row in target:
        row["messages"][1]["content"] += " SECRETANSWER"
    write_rows(tmp_path / "target.jsonl", target)
    out = tmp_path / "RUN"
    run(recipe(settings, no_text=True, epochs=1), out, reporter=QUIET)
    report(out, reporter=QUIET)
    for name in ("report.html", "report.json", "quarantine.jsonl", "log.jsonl"):
        assert "SECRET" not in (out / name).read_text(encoding="utf-8"), name
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 2
    check_sound(Page((out / "report.html").read_text(encoding="utf-8")))


def test_short_answers_are_no_kind_of_rows(tmp_path: Path) -> None:
    settings = write_inputs(tmp_path)
    rows = [
        {"instruction": f"SECRET{i % 7}", "output": f"HIDDEN{i % 3}", "note": f"QUIET{i % 5}", "id": i}
        for i in range(40)
    ]
    write_rows(tmp_path / "pool.jsonl", rows)
    out = tmp_path / "RUN"
    run(recipe(settings, method="length", target={}), out, reporter=QUIET)
    columns = [of["column"] for of in report(out, reporter=QUIET).facts["selections"][0]["composition"]]
    assert columns == ["source", "note", "turns", "trained tokens"]
    report(out, no_text=True, reporter=QUIET)
    for name in ("report.html", "report.json"):
        text = (out / name).read_text(encoding="utf-8")
        assert not [word for word in ("SECRET", "HIDDEN", "QUIET") if word in text], name


def test_sources_are_those_of_the_index_where_only_some_rows_name_one(tmp_path: Path) -> None:
    settings = write_inputs(tmp_path)
    rows = pool_rows(40, 4)
    for row in rows[::2]:
        del row["source"]
    write_rows(tmp_path / "pool.jsonl", rows)
    result = run(recipe(settings, method="bm25", keep="10"), tmp_path / "RUN", reporter=QUIET)
    facts = report(tmp_path / "RUN", reporter=QUIET).facts["selections"][0]
    shown = {of["value"]: (of["pool"], of["chosen"]) for of in facts["composition"][0]["rows"]}
    summary = result.selections["sums"].summary["sources"]
    assert shown == {of["source"]: (of["pool"], of["selected"]) for of in summary}


def test_a_random_choice_is_as_like_the_pool_as_chance_has_it(made: Path) -> None:
    verdict = report(made, names=["random"], reporter=QUIET).facts["selections"][0]["verdict"]
    assert "as like the pool as random rows" in verdict["sentence"]
    assert verdict["unlike_by_chance"] > 0


def test_equal_scores_are_strict_json(tmp_path: Path) -> None:
    settings = write_inputs(tmp_path)
    write_rows(tmp_path / "pool.jsonl", [{"messages": turn("same", "row")} for _ in range(30)])
    run(recipe(settings, keep="5", repeats=True), tmp_path / "RUN", reporter=QUIET)
    written = report(tmp_path / "RUN", reporter=QUIET)
    text = (tmp_path / "RUN" / "report.json").read_text(encoding="utf-8")

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads(text, parse_constant=refused)
    assert "nan" not in "".join(Page(written.page.read_text(encoding="utf-8")).said).lower().split()


def test_a_test_in_the_target_is_told(made: Path) -> None:
    written = report(made, tests={"sums": str(made.parent / "target.jsonl")}, reporter=QUIET)
    assert written.facts["leakage"][-1]["in_targets"] == {"sums": len(target_rows())}
    banners = [
        of for of in Page(written.page.read_text(encoding="utf-8")).all("p") if of.get("class") == "banner"
    ]
    assert banners


def test_a_measurement_speaks_for_its_own_method_and_budget(made: Path, tmp_path: Path) -> None:
    from siftune.pipeline.comparing import Comparison, compare

    shutil.copytree(made, tmp_path / "RUN")
    test = write_rows(tmp_path / "test.jsonl", target_rows(8, seed=5))
    asked = Comparison({"sums": str(test)}, ["bm25"], seeds=1, training={"epochs": 1})
    compare(tmp_path / "RUN", asked, reporter=QUIET)
    test.unlink()
    facts = report(tmp_path / "RUN", reporter=QUIET).facts
    unmeasured = {
        of["name"]: any("not measured yet" in warning for warning in of["verdict"]["warnings"])
        for of in facts["selections"]
    }
    assert unmeasured == {"random": False, "sums": True, "words": False}
    assert facts["tests_gone"] == ["sums"]
    select(tmp_path / "RUN", {"method": "bm25", "rule": "top", "name": "other-rule"}, reporter=QUIET)
    facts = report(tmp_path / "RUN", reporter=QUIET).facts
    (other,) = (of for of in facts["selections"] if of["name"] == "other-rule")
    assert any("not measured yet" in warning for warning in other["verdict"]["warnings"])
    page = "".join(Page((tmp_path / "RUN/report.html").read_text(encoding="utf-8")).said)
    assert "its file is gone" in page
    assert "No test is known" not in page


def test_files_broken_by_hand_are_told_not_raised(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "RUN")
    with (tmp_path / "RUN/log.jsonl").open("a") as log:
        log.write('{"event": "stage done", "stage": "x"}\nnull\n[1]\n{"ev')
    (tmp_path / "RUN/proof/old").mkdir(parents=True)
    (tmp_path / "RUN/proof/old/comparison.json").write_text('{"tables": []}')
    facts = report(tmp_path / "RUN", out=tmp_path / "elsewhere", reporter=QUIET).facts
    assert facts["outcome"]["unreadable"] == ["old"]
    assert (tmp_path / "elsewhere/report.html").exists()
    (tmp_path / "RUN/selections/words/selection.json").write_text("{}")
    with pytest.raises(SiftuneError, match="not a selection that siftune wrote"):
        report(tmp_path / "RUN", reporter=QUIET)


def test_no_text_can_be_asked_of_the_report_alone(made: Path) -> None:
    written = report(made, no_text=True, reporter=QUIET)
    assert "The answer is" not in written.page.read_text(encoding="utf-8")
    assert "The answer is" not in json.dumps(written.facts)
    assert "The answer is" in report(made, reporter=QUIET).page.read_text(encoding="utf-8")


def test_report_lives_without_the_model(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "RUN")
    file = tmp_path / "RUN" / "recipe.yaml"
    file.write_text(file.read_text().replace(str(made.parent / "model"), str(tmp_path / "gone")))
    written = report(tmp_path / "RUN", reporter=QUIET)
    page = Page(written.page.read_text(encoding="utf-8"))
    check_sound(page)
    assert "without their text" in "".join(page.said)


def test_rows_appended_after_the_choice(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "RUN")
    before = report(tmp_path / "RUN", names=["sums"], reporter=QUIET).facts["selections"][0]
    append(
        tmp_path / "RUN", [str(write_rows(tmp_path / "more.jsonl", pool_rows(40, 4, seed=7)))], reporter=QUIET
    )
    after = report(tmp_path / "RUN", names=["sums"], reporter=QUIET).facts["selections"][0]
    for section in ("scores", "composition", "length", "subtasks"):
        assert after[section] == before[section], section
    assert any("40 rows were appended" in warning for warning in after["verdict"]["warnings"])


def test_what_compare_measured_is_shown(made: Path, tmp_path: Path) -> None:
    from siftune.pipeline.comparing import Comparison, compare

    shutil.copytree(made, tmp_path / "RUN")
    test = write_rows(tmp_path / "test.jsonl", target_rows(8, seed=5))
    asked = Comparison({"sums": str(test)}, ["less", "random"], seeds=1, training={"epochs": 1})
    result = compare(tmp_path / "RUN", asked, reporter=QUIET)
    written = report(tmp_path / "RUN", reporter=QUIET)
    shown = written.facts["outcome"]["comparisons"][0]["tables"][0]
    assert shown["sentence"] == result["sums"]["tables"][0]["sentence"]
    assert [arm[0] for arm in shown["arms"]] == [arm["name"] for arm in result["sums"]["tables"][0]["arms"]]
    page = Page(written.page.read_text(encoding="utf-8"))
    check_sound(page)
    assert len(page.all("img")) == 1
    assert any(of["kind"] == "test" for of in written.facts["leakage"]), (
        "the file that was measured is looked for"
    )


def test_the_command_line(made: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["report", str(made), "--quiet"])
    assert result.exit_code == 0, result.output
    assert "report.html" in result.output
    result = runner.invoke(app, ["report", str(made), "--quiet", "--json"])
    assert json.loads(result.stdout)["selections"]
    result = runner.invoke(app, ["report", str(made), "--quiet", "--text", "--name", "sums"])
    for word in ("sums", "Composition", "Length", "Integrity", "lift"):
        assert word in result.output
    result = runner.invoke(app, ["report", str(made), "--name", "nothing"])
    assert result.exit_code == 2
    assert "random, sums, words" in result.output


def test_a_run_without_a_choice(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "RUN")
    shutil.rmtree(tmp_path / "RUN" / "selections")
    with pytest.raises(SiftuneError, match="no selection yet"):
        report(tmp_path / "RUN", reporter=QUIET)


def test_pages_differ_in_their_date_alone(made: Path) -> None:
    def told() -> dict[str, Any]:
        return {**report(made, reporter=QUIET).facts, "made": None}

    assert told() == told()
    assert np.isfinite(told()["selections"][0]["verdict"]["unlike_pool"])
