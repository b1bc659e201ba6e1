"""What stands on a terminal: bars with their number, tables that fit 80 columns, colours only where somebody looks."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from siftune.cli import _spread
from siftune.pipeline.progress import Reporter
from siftune.pipeline.run import RunResult
from siftune.pipeline.stages import READING, WARM_UP, bars_of, gradients_title, stage_named, vectors_title
from siftune.pipeline.summary import as_values, show
from siftune.records.errors import SiftuneError
from siftune.records.log import RunLog, read_events, stage_seconds
from siftune.records.recipe import make_recipe
from siftune.selection.selection import Selection

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def result(folder: Path, n_sources: int = 3) -> RunResult:
    sources = [
        {"source": f"a source with a rather long name, number {i} [red]", "pool": 1000, "selected": 50 - i}
        for i in range(n_sources)
    ]
    n = sum(s["selected"] for s in sources)
    summary = {
        "n_selected": n,
        "n_scorable": 1000 * n_sources,
        "n_pool": 1000 * n_sources + 7,
        "n_quarantined": 7,
        "n_duplicates_left_out": 2,
        "tokens_selected": 900,
        "tokens_scorable": 90_000,
        "pool_in_warmup": 5,
        "selected_in_warmup": 1,
        "sources": sources,
    }
    selection = Selection(folder / "selections" / "sums", {"target": "sums", "method": "less"}, summary)
    return RunResult(folder, {"sums": selection})


@pytest.mark.parametrize("n_sources", [3, 30])
def test_the_closing_table_fits_a_narrow_terminal(tmp_path: Path, n_sources: int) -> None:
    said = StringIO()
    show(result(tmp_path, n_sources), "selection", Console(file=said, width=80, highlight=False))
    table, _, below = said.getvalue().partition("rows          ")
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "[red]" in table.replace("\n", "")
    assert "(1.0%)" in table  # of the tokens
    assert ("18 more sources" in table) == (n_sources == 30)
    assert below.rstrip().splitlines()[-1].startswith("choose again")
    assert f"siftune report {tmp_path}" in below


def test_colours_are_for_terminals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(**how: object) -> str:
        said = StringIO()
        console = Console(file=said, width=80, highlight=False, **how)  # pyright: ignore[reportArgumentType]
        Reporter(console=console).warn("careful")
        show(result(tmp_path), "selection", console)
        return said.getvalue()

    assert "\x1b" not in told()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[33m" in told(force_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", told(force_terminal=True))


def test_times_are_those_of_every_command_in_the_log(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    for kind in ("pool", "datastore 1", "datastore 2", "selection sums", "check 1"):
        with log.stage(kind):
            pass
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "stage done", "stage": "datastore 2", "seconds": 40.0}\n{"event": "stage do')
    assert stage_seconds(tmp_path / "log.jsonl")["datastore"] == pytest.approx(40, abs=0.1)
    assert len(list(read_events(tmp_path / "log.jsonl"))) == 11
    assert log.seconds["datastore"] < 1
    assert list(as_values(result(tmp_path))["seconds"]) == ["pool", "datastore", "selection"]
    assert stage_seconds(tmp_path / "none.jsonl") == {}


def test_bars_have_their_number_and_fit_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    bars = bars_of(make_recipe({}), "selection", checkpoints=2, vectors="rds+")
    assert bars == [READING, WARM_UP, gradients_title(1, 2), gradients_title(2, 2), vectors_title("rds+")]
    assert bars_of(make_recipe({"adopt": "x"}), "datastore", checkpoints=1, vectors=None) == [
        READING,
        gradients_title(1, 1),
    ]
    assert bars_of(make_recipe({}), "warmup", checkpoints=2, vectors="rds+") == [READING, WARM_UP]
    said = StringIO()
    reporter = Reporter(console=Console(file=said, width=80, force_terminal=True, highlight=False))
    reporter.bars = bars
    with reporter.bar(gradients_title(1, 2), 200_000, "rows", 1000) as advance:
        advance(150_000)
        advance(49_000)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", ANSI.sub("", said.getvalue())) if line.strip()]
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1].startswith("3/5 gradients, checkpoint 1 of 2")
    assert "200,000/200,000 rows" in lines[-1]
    plain = StringIO()
    with Reporter(console=Console(file=plain)).bar("work", None, "rows") as advance:
        advance(7)
    assert plain.getvalue().startswith("work: 7 rows")


def test_a_plan_takes_several_files_after_one_flag() -> None:
    assert _spread(["plan", "--pool", "a", "b"]) == ["plan", "--pool", "a", "--pool", "b"]
    assert _spread(["plan", "RUN", "--pool", "a", "b"]) == ["plan", "RUN", "--pool", "a", "--pool", "b"]


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(SiftuneError, match="there is no stage 'datastor'"):
        stage_named("datastor")
