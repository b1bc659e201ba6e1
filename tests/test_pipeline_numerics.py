"""Features that depend on batch-mates are found, and the settings under which they don't; sound models are let pass."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AttentionInterface, AutoModelForCausalLM, Phi3Config
from typer.testing import CliRunner

from model_helpers import tiny_config, tiny_tokenizer, write_tiny_model
from pipeline_helpers import pool_rows, write_rows
from siftune.chat.encoder import ChatEncoder
from siftune.cli import app
from siftune.pipeline.doctor import examine
from siftune.pipeline.numerics import Finding, Numerics, batches_of, look_at_numerics, rounding
from siftune.pipeline.sample_rows import sample_rows
from siftune.records.errors import SiftuneError
from siftune.records.recipe import Recipe, make_recipe


def of_model(folder: Path, **settings: Any) -> Recipe:
    return make_recipe({"model": str(folder), "rank": 4, "features": 512, "threads": 1, **settings})


def looked(recipe: Recipe) -> Numerics:
    return look_at_numerics(recipe, ChatEncoder(tiny_tokenizer(), max_length=recipe.max_length))


def seeing(ahead: int) -> Callable[..., tuple[torch.Tensor, None]]:
    """Attention in which every token sees so many tokens to its right, padding too."""

    def attention(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        n = query.shape[2]
        sees = torch.ones(n, n).tril(ahead).bool()
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=sees, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    return attention


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2"])
def test_sound_models_pass_under_every_setting(arch: str, tmp_path: Path) -> None:
    found = looked(of_model(write_tiny_model(tmp_path, arch)))
    assert {f.attn for f in found.findings} == {"sdpa", "eager"}
    assert "fp32" in {f.dtype for f in found.findings}
    assert all(found.sound(f) for f in found.findings)
    assert found.default == found.findings[0]
    assert found.advice == ""
    assert len(set(found.lengths)) == len(found.lengths) >= 3
    of = {(f.attn, f.dtype): f for f in found.findings}
    assert of["eager", "fp32"].from_fp32 < 1e-12  # the reference against itself
    assert all(f.from_fp32 > 1e-8 for f in found.findings if f.dtype != "fp32")


@pytest.mark.parametrize("ahead", [2, 1000], ids=["two tokens", "all tokens"])
def test_attention_that_looks_right_is_found(
    ahead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tokens a layer take two layers past the row's end: its last trained token is followed by a line break."""
    monkeypatch.setitem(AttentionInterface._global_mapping, "leaky", seeing(ahead))
    recipe = of_model(write_tiny_model(tmp_path, "llama"), attn="leaky", dtype="fp32")
    found = looked(recipe)
    assert found.default.attn == "leaky"
    assert {f.attn for f in found.findings if not found.sound(f)} == {"leaky"}
    assert found.default.cosine > 100 * found.default.allowed
    assert found.advice in ("--attn sdpa --dtype fp32", "--attn eager --dtype fp32")
    said = StringIO()
    said_too = examine(recipe, 0, Console(file=said, width=200), numerics=True)
    assert not said_too["fit"]
    assert {tried["attn"] for tried in said_too["numerics"]["tried"] if not tried["sound"]} == {"leaky"}
    assert said_too["numerics"]["advice"] == found.advice
    assert found.advice in said_too["faults"][0]["what"]
    assert "depends on batch-mates" in said.getvalue()
    assert found.advice in said.getvalue()


def test_positions_that_turn_with_the_longest_row_are_found(tmp_path: Path) -> None:
    """longrope: one row beyond the original length changes the positions of its batch-mates. No setting but one row a batch helps."""
    config = tiny_config("phi3")
    assert isinstance(config, Phi3Config)
    longrope = {"rope_type": "longrope", "original_max_position_embeddings": 220}
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config.rope_parameters = (
        {"partial_rotary_factor": 1.0} | dict(config.rope_parameters) | longrope | factors
    )
    config.original_max_position_embeddings = 220
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = looked(of_model(tmp_path, dtype="fp32"))
    assert max(found.lengths) <= 220
    assert not any(found.sound(f) for f in found.findings)
    assert found.default.worst == "padded to 221 tokens"
    assert found.advice == "--batch-tokens 1"
    short = looked(of_model(tmp_path, dtype="fp32", max_length=220))
    assert short.sound(short.default)


def test_a_feature_that_is_not_finite_is_not_sound() -> None:
    fine = Finding("sdpa", "fp16", 0.0, 0.0, 0.0, 1e-4, "")
    assert fine.within_rounding
    for change in ({"cosine": math.nan}, {"norm": math.nan}, {"norm": 0.1}, {"cosine": 1e-3}):
        assert not fine._replace(**change).within_rounding


def test_what_fp32_shows_counts_for_coarser_numbers() -> None:
    coarse = Finding("sdpa", "bf16", 1e-4, 0.0, 1e-3, 1e-2, "")
    fine = Finding("sdpa", "fp32", 1e-4, 0.0, 1e-6, 1e-9, "all rows together")
    other = Finding("eager", "bf16", 1e-4, 0.0, 1e-3, 1e-2, "")
    found = Numerics([coarse, fine, other], [3, 9], coarse, {})
    assert coarse.within_rounding
    assert [found.sound(f) for f in found.findings] == [False, False, True]
    assert found.advice == "--attn eager --dtype bf16"
    assert Numerics([coarse, other], [3, 9], coarse, {}).advice == ""
    assert Numerics([coarse, fine], [3, 9], coarse, {}).advice == "--batch-tokens 1"
    values = found._replace(findings=[coarse._replace(cosine=math.nan)]).as_values()
    assert json.dumps(values, allow_nan=False)
    assert values["tried"][0]["cosine"] is None


def test_rounding_grows_with_depth_and_with_coarser_numbers() -> None:
    assert rounding("fp32", 2) < rounding("fp32", 32) < rounding("fp16", 32) < rounding("bf16", 32)
    assert rounding("bf16", 32) == 2 * rounding("bf16", 8)


def test_no_batch_is_wider_than_the_model_has_positions() -> None:
    for batch in batches_of([3, 9, 30], 32, 31):
        assert batch.width <= 32
        assert batch.rows == sorted(set(batch.rows)) or batch.rows == sorted(set(batch.rows))[::-1]
    assert max(batch.width for batch in batches_of([3, 9, 30], 64, None)) == 37


def test_rows_are_of_the_pool_and_of_unlike_lengths(tmp_path: Path) -> None:
    pool = str(write_rows(tmp_path / "pool.jsonl", pool_rows(60)))
    encoder = ChatEncoder(tiny_tokenizer(), max_length=256)
    rows = sample_rows([pool], encoder, n_rows=5, longest=100)
    lengths = [len(ids) for ids, _ in rows]
    assert lengths == sorted(lengths)
    assert 3 <= len(rows) <= 5
    assert lengths[0] < lengths[-1] <= 100
    assert all(trained.any() and not trained[0] for _, trained in rows)
    assert all(np.issubdtype(ids.dtype, np.integer) for ids, _ in rows)
    with pytest.raises(SiftuneError, match="at most 3 tokens"):
        sample_rows([pool], encoder, n_rows=5, longest=3)


def test_the_command(tmp_path: Path) -> None:
    folder = str(write_tiny_model(tmp_path / "model", "llama"))
    fit = CliRunner().invoke(
        app, ["doctor", "--numerics", "--model", folder, "--dtype", "fp32", "--threads", "1"]
    )
    assert fit.exit_code == 0, fit.output
    assert "sound" in fit.output
    assert "All of it is fit" in fit.output
    asked = ["doctor", "--numerics", "--model", folder, "--dtype", "fp32", "--threads", "1", "--json"]
    values = json.loads(CliRunner().invoke(app, asked).stdout)
    assert values["fit"]
    assert {tried["attn"] for tried in values["numerics"]["tried"]} == {"sdpa", "eager"}
    assert all(tried["cosine"] <= tried["allowed"] for tried in values["numerics"]["tried"])
    assert values["numerics"]["own"]["dtype"] == "fp32"
    lost = CliRunner().invoke(app, [*asked, "--pool", str(tmp_path / "none.jsonl")])
    assert lost.exit_code == 2
    assert "none.jsonl" in json.loads(lost.stdout)["faults"][0]["where"]
    bare = CliRunner().invoke(app, ["doctor", "--numerics"])
    assert bare.exit_code == 2
    assert "--numerics: no model is given" in bare.output
