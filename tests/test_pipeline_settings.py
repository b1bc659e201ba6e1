"""Settings from flags, preset and recipe file: what does nothing is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from siftune.pipeline.settings import gathered, named_files
from siftune.records.errors import SiftuneError


def test_a_flag_that_the_method_does_not_look_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SiftuneError, match="the method random does not look at rule"):
        gathered(recipe_file=None, preset=None, set_lines=[], given={"method": "random", "rule": "top"})
    with pytest.raises(SiftuneError, match="the method bm25 does not look at clusters"):
        gathered(recipe_file=None, preset=None, set_lines=["clusters=4"], given={"method": "bm25"})


def test_a_recipe_may_hold_settings_of_methods_that_it_does_not_ask_for(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("method: less\nrule: top\n")
    recipe = gathered(recipe_file=file, preset=None, set_lines=[], given={"method": "random"})
    assert (recipe.method, recipe.rule) == ("random", "top")


def test_a_home_of_nobody_is_a_path_like_any_other() -> None:
    assert named_files(["sums=~no-such-person-here/x.jsonl"], "--test") == {
        "sums": "~no-such-person-here/x.jsonl"
    }
