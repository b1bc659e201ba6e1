"""Hostile recipes and settings: an error that names the place; nothing is run, nothing grows, no secret is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile_helpers import check_told, command, no_hang
from hypothesis import given
from hypothesis import strategies as st

from siftune.pipeline.settings import gathered, named_files
from siftune.records.budget import Budget
from siftune.records.errors import SiftuneError
from siftune.records.names import check_name
from siftune.records.recipe import make_recipe, read_recipe
from siftune.records.yamltext import MOST_VALUES, read_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)

RECIPES: dict[str, str] = {
    # code
    "object": "keep: !!python/object:os.system {}",
    "object applied": "keep: !!python/object/apply:os.system ['touch OWNED']",
    "object new": "keep: !!python/object/new:os.system ['touch OWNED']",
    "name": "keep: !!python/name:os.system",
    "module": "keep: !!python/module:os",
    "tuple": "pool: !!python/tuple [a]",
    "tag of nobody": "keep: !owned 5%",
    "code in made_with": "made_with: !!python/object/apply:os.system ['touch OWNED']",
    # size
    "billion laughs": LAUGHS + "keep: *a9",
    "billion laughs in made_with": "made_with:\n  " + LAUGHS.replace("\n", "\n  "),
    "a list that holds itself": "pool: &p [*p]",
    "a mapping that holds itself": "target: &t {a: *t}",
    "merges of merges": "a: &a {b: 1}\n" + "c: &c {<<: [*a, *a]}\nkeep: {<<: *c}",
    "deep list": "pool: " + "[" * 1200 + "]" * 1200,
    "deep mapping": "target: " + "{a: " * 1200 + "1" + "}" * 1200,
    "two megabytes": "keep: '" + "x" * 2_000_000 + "'",
    "a number without end": "seed: " + "9" * 10_000,
    "a number in sixties": "seed: " + ":".join(["59"] * 3000),
    # what is no recipe
    "a list": "- keep: 5%",
    "text": "keep",
    "a number": "5",
    "two documents": "keep: 5%\n---\nkeep: 6%",
    "anchor that is none": "keep: *nothing",
    "tabs": "keep:\n\t- 5%",
    "NUL": "keep: \0",
    "escape": "keep: \x1b[2J",
    "unclosed": "keep: '5%",
    "no date": "keep: 2024-99-99",
    "list as key": "{[1, 2]: 3}",
    "binary": "keep: !!binary ////",
    "set": "keep: !!set {a, b}",
    "made_with that is text": "made_with: x",
    "made_with that is a list": "made_with: [1]",
    # fields
    "unknown field": "keep_all: true",
    "a field of Python": "__class__: x",
    "a method": "with_settings: {}",
    "empty field": "'': 1",
    "field with an escape": '"\\e[2Jkeep": 1',
    "null as field": "null: 1",
    # values
    "pool of numbers": "pool: [1, 2]",
    "pool as mapping": "pool: {a: b}",
    "pool as nested list": "pool: [[a]]",
    "target as number": "target: 3",
    "target of lists": "target: {a: [b]}",
    "target that leaves its folder": "target: {../../x: f.jsonl}",
    "target with a NUL": 'target: {"a\\0b": f.jsonl}',
    "target as a device": "target: {a/b: f}",
    "target of 101 letters": f"target: {{{'a' * 101}: f}}",
    "name that leaves its folder": "name: ../../x",
    "hidden name": "name: .ssh",
    "model as list": "model: [a]",
    "NaN rate": "learning_rate: .nan",
    "infinite alpha": "alpha: .inf",
    "NaN alpha": "alpha: .nan",
    "rate as text": "learning_rate: fast",
    "negative rate": "learning_rate: -1",
    "rank of a billion": "rank: 1000000000",
    "rank 0": "rank: 0",
    "rank true": "rank: [true]",
    "epochs without end": "epochs: 100000000000000000000",
    "negative seed": "seed: -1",
    "seed of 100 digits": f"seed: {'9' * 100}",
    "seed as fraction": "seed: 0.5",
    "features of a trillion": "features: 1000000000000",
    "threads of a billion": "threads: 1000000000",
    "workers of a billion": "workers: 1000000000",
    "batch of 10**18": "batch: 1000000000000000000",
    "max_length of 10**18": "max_length: 1000000000000000000",
    "shard_rows of 10**18": "shard_rows: 1000000000000000000",
    "NaN per cent": "keep: .nan",
    "infinite budget": "keep: .inf",
    "budget as list": "keep: [5%]",
    "budget of digits": f"keep: '{'9' * 6000}'",
    "budget of tokens without end": f"keep: '{'9' * 5000}M tokens'",
    "negative budget": "keep: -5%",
    "budget in another script": "keep: '½%'",
    "NaN near_duplicates": "near_duplicates: .nan",
    "weights as NaN text": "weights: [a]",
    "direction as code": 'direction: \'__import__("os").system("true")\'',
    "remote code asked for": "trust_remote_code: true",
    "token as field": "token: hf_abcdefghijklmnopqrstuvwxyz012345",
    # secrets
    "token as revision": "revision: hf_abcdefghijklmnopqrstuvwxyz012345",
    "token in the pool": "pool: ['https://x:hf_abcdefghijklmnopqrstuvwxyz012345@hub.example/d']",
    "password in the model": "model: https://me:secret@hub.example/m",
    "token in a target": "target: {a: 'o/n@hf_abcdefghijklmnopqrstuvwxyz012345'}",
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_hostile_recipe_is_an_error(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPES[case], encoding="utf-8")
    with no_hang(), pytest.raises(SiftuneError) as caught:
        make_recipe(read_recipe(path))
    assert caught.value.where
    assert caught.value.todo
    assert len(str(caught.value)) < 5000
    assert "hf_" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "OWNED").exists()


@pytest.mark.parametrize(
    "case", ["object applied", "billion laughs", "deep list", "escape", "token as revision"]
)
def test_the_command_says_it_in_a_sentence(case: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPES[case], encoding="utf-8")
    result = command("run", "--recipe", path, "--out", tmp_path / "run")
    check_told(result)
    assert "abcdefghijkl" not in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to itself", "UTF-16", "bytes"])
def test_a_recipe_that_is_no_text_file_is_an_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    make: dict[str, Any] = {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "link to itself": lambda: path.symlink_to(path),
        "UTF-16": lambda: path.write_text("keep: 5%", encoding="utf-16"),
        "bytes": lambda: path.write_bytes(bytes(range(256))),
    }
    make[kind]()
    with no_hang(), pytest.raises(SiftuneError) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "line",
    ["keep=!!python/object/apply:os.system [true]", "seed=" + "9" * 9999, "pool=" + "[" * 1200, "epochs", "=3"],
)  # fmt: skip
def test_a_hostile_set_line_is_an_error(line: str) -> None:
    with no_hang(), pytest.raises(SiftuneError):
        gathered(recipe_file=None, preset=None, set_lines=[line], given={})


@pytest.mark.parametrize("name", ["..", "a/b", "a\0", "a\n", "-" * 101, "\u202ea", "a\\b", "C:x", " a", ""])
def test_a_name_that_is_no_folder_name_is_an_error(name: str) -> None:
    with pytest.raises(SiftuneError):
        check_name(name, "target")


def test_what_a_run_writes_of_itself_can_be_read_again() -> None:
    shared = ["a", "b"]
    text = yaml.safe_dump({"pool": shared, "made_with": {"read": shared, "again": [shared] * 50}})
    assert "&id001" in text
    assert read_yaml(text, "here")["pool"] == shared


def test_a_large_recipe_is_read() -> None:
    many = {"pool": [f"file-{n}.jsonl" for n in range(5000)]}
    assert read_yaml(yaml.safe_dump(many), "here") == many
    assert len(many["pool"]) < MOST_VALUES


@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_an_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (
        lambda: make_recipe(read_recipe(path)),
        lambda: gathered(recipe_file=None, preset=None, set_lines=[text], given={}),
        lambda: Budget.parse(text),
        lambda: named_files([text], "--test"),
    ):
        try:
            read()
        except SiftuneError as error:
            assert str(error)  # noqa: PT017


@given(
    st.dictionaries(
        st.sampled_from(["pool", "target", "keep", "epochs", "weights", "lora_targets", "centre", "per_source"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    )
)  # fmt: skip
def test_any_values_are_a_recipe_or_an_error_that_names_the_setting(settings: dict[str, Any]) -> None:
    try:
        make_recipe(settings)
    except SiftuneError as error:
        assert error.where  # noqa: PT017
