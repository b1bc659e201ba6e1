"""The engine's benchmark: what its tables say follows from what was measured, failures included."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import torch
from safetensors.torch import load_file

from engine_arms import Arm, Ratio, arms, ratios
from engine_inputs import make_adapter
from engine_page import write_page
from engine_summary import summary
from siftune.model.checkpoint import ADAPTER, CONFIG, read_checkpoint


def found(seconds: float, *, rows: int = 4, peak: float = 300.0) -> dict[str, Any]:
    cpu = {"start-up": 5.0, "load": 1.0, "first batch": 0.5, "gradients": seconds}
    memory = {"loaded": 200.0, "peak": peak}
    return {"cpu_seconds": cpu, "rows": rows, "mean_loss": 1.0, "dtype": "fp32", "memory_mib": memory}


def ours_and(name: str) -> list[Arm]:
    return [Arm("ours", "what", "x.py"), Arm(name, "what", "x.py")]


def test_a_ratio_is_taken_inside_a_round() -> None:
    """Both arms twice as slow in one round: the ratio is the same in each, and so is its median."""
    rounds = {"ours": {0: found(2.0), 1: found(4.0)}, "floor": {0: found(1.0), 1: found(2.0)}}
    (ratio,) = summary(ours_and("floor"), [Ratio("r", "ours", "floor", 1.1)], rounds)["ratios"]
    assert (ratio["low"], ratio["median"], ratio["high"]) == (2.0, 2.0, 2.0)
    assert not ratio["met"]


def test_cost_is_of_the_gradient_phase_by_row() -> None:
    rounds = {"ours": {0: found(2.0, rows=8)}, "floor": {0: found(1.0, rows=2)}}
    made = summary(ours_and("floor"), [Ratio("r", "floor", "ours", 2.0, at_least=True)], rounds)
    assert [arm["cpu_seconds_a_row"]["median"] for arm in made["arms"]] == [0.25, 0.5]
    assert made["ratios"][0]["median"] == 2.0
    assert made["ratios"][0]["met"]


def test_a_peer_counts_with_its_fastest_settings() -> None:
    chosen = [*ours_and("peer slow"), Arm("peer fast", "what", "x.py")]
    rounds = {"ours": {0: found(1.0)}, "peer slow": {0: found(9.0)}, "peer fast": {0: found(3.0)}}
    (ratio,) = summary(chosen, [Ratio("r", "peer", "ours", 2.0, at_least=True)], rounds)["ratios"]
    assert (ratio["of"], ratio["median"]) == ("peer fast", 3.0)


def test_rounds_that_one_side_lacks_are_left_out() -> None:
    rounds = {"ours": {0: found(1.0), 1: found(8.0)}, "floor": {0: found(1.0), 1: {"error": "exit 1"}}}
    (ratio,) = summary(ours_and("floor"), [Ratio("r", "ours", "floor", 1.1)], rounds)["ratios"]
    assert (ratio["low"], ratio["high"]) == (1.0, 1.0)


def test_a_failure_stays_as_a_row() -> None:
    rounds = {"ours": {0: found(1.0)}, "peer": {0: {"error": "exit 1: no such | thing"}}}
    made = summary(ours_and("peer"), [Ratio("r", "peer", "ours", 2.0)], rounds)
    assert made["ratios"] == []
    assert [arm.get("error") for arm in made["arms"]] == [None, "exit 1: no such | thing"]


def test_every_ratio_names_arms_that_exist() -> None:
    names = [arm.name for arm in arms((10, 100))]
    assert len(names) == len(set(names))
    for ratio in ratios((10, 100)):
        for side in (ratio.of, ratio.over):
            assert any(name.startswith(side) for name in names), side


def test_the_page_is_made_from_the_result_alone(tmp_path: Path) -> None:
    rounds = {"ours": {0: found(1.0)}, "peer": {0: {"error": "exit 1"}}}
    result = tmp_path / "results" / "engine.json"
    result.parent.mkdir()
    head = {
        "model": "m",
        "dtype": "fp32: asked for",
        "batch_tokens": 64,
        "date": "2026-01-01T",
        "commit": "c",
    }
    examples = {
        "rows": 4,
        "different": 4,
        "tokens": {"least": 1, "median": 2, "most": 3},
        "trained_share": 0.1,
    }
    made = summary([*ours_and("peer"), Arm("another", "what", "x.py")], [], {**rounds, "another": {}})
    values = {**head, "machine": {"cpu": "x"}, "examples": examples, **made}
    result.write_text(json.dumps(values), encoding="utf-8")
    page = write_page(result).read_text(encoding="utf-8")
    assert "| ours | what | fp32 | 4 |" in page
    assert "| peer | exit 1 |" in page
    assert "Not measured in this run: another.\n" in page
    assert result.with_suffix(".svg").read_text(encoding="utf-8").startswith("<svg")


def test_siftune_and_peers_read_the_same_adapter(given: dict[str, Any], tmp_path: Path) -> None:
    """Siftune's checkpoint stays sealed; the peers' folder names the base model, which a sealed one doesn't."""
    row = {"ids": list(range(5, 25)), "trained": [i > 9 for i in range(20)]}
    (tmp_path / "rows.json").write_text(json.dumps([row] * 4))
    make_adapter(Path(given["model"]), tmp_path, "adapter-16", 16)
    checkpoint = read_checkpoint(tmp_path / "adapter-16")
    trained = tmp_path / "trained-16"
    assert json.loads((trained / CONFIG).read_text())["base_model_name_or_path"] == given["model"]
    ours, theirs = (load_file(folder / ADAPTER) for folder in (checkpoint.path, trained))
    state = torch.load(trained / "optimizer.pt", weights_only=True)["state"]
    assert ours.keys() == theirs.keys() == checkpoint.exp_avg.keys()
    assert len(state) == len(ours)
    assert any(torch.equal(state[0]["exp_avg"], moment) for moment in checkpoint.exp_avg.values())
