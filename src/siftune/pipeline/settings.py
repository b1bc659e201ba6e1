"""Settings from where a person may write them: a recipe file, a preset, `--set`, flags. Later ones win."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siftune.pipeline.choosing import check_used
from siftune.records.errors import SiftuneError
from siftune.records.recipe import PRESETS, Recipe, make_recipe, read_recipe
from siftune.records.yamltext import read_yaml

FROM_ADOPTED = (
    "adapter",
    "warmup_fraction",
    "epochs",
    "rank",
    "alpha",
    "dropout",
    "lora_targets",
    "learning_rate",
    "batch",
)


def gathered(
    *, recipe_file: Path | None, preset: str | None, set_lines: Sequence[str], given: Mapping[str, Any]
) -> Recipe:
    """One recipe of all that was written; flags (`given`) over `--set NAME=VALUE` over the preset over the file.

    Raises SiftuneError for an unknown preset or setting, for a flag that the method does not look at, and for a warm-up setting beside
    `--adopt`, which it can't change.
    """
    settings: dict[str, Any] = read_recipe(recipe_file) if recipe_file else {}
    if preset is not None:
        if preset not in PRESETS:
            raise SiftuneError(
                f"there is no preset {preset!r}", where="--preset", todo=f"Presets are: {', '.join(PRESETS)}"
            )
        settings |= PRESETS[preset]
    flags = {**dict(map(_set_line, set_lines)), **given}
    settings |= flags
    if settings.get("adopt"):
        for name in FROM_ADOPTED:
            if name in flags:
                raise SiftuneError(
                    f"{name} is what the adopted training made it",
                    where=name,
                    todo="Leave it out, or leave out --adopt",
                )
    if "method" in settings:  # else it is that of the run, which isn't read here
        check_used(settings["method"], flags)
    return make_recipe(settings, where="settings")


def named_files(lines: Sequence[str], where: str) -> dict[str, str]:
    """`NAME=FILE` lines as a mapping; the paths are made whole, so that a comparison can be gone on with from anywhere."""
    files: dict[str, str] = {}
    for line in lines:
        name, equals, file = line.partition("=")
        if not equals or not file:
            raise SiftuneError(
                f"{line!r} is not NAME=FILE", where=where, todo="Write for example maths=test.jsonl"
            )
        if name in files:
            raise SiftuneError(f"{name!r} is given twice", where=where, todo="Give each its own name")
        path = Path(os.path.expanduser(file))
        files[name] = str(path.absolute()) if path.exists() else file
    return files


def _set_line(line: str) -> tuple[str, Any]:
    name, equals, value = line.partition("=")
    if not equals:
        raise SiftuneError(
            f"{line!r} is not NAME=VALUE", where="--set", todo="Write for example --set epochs=2"
        )
    return name.strip().replace("-", "_"), read_yaml(value, f"--set {name}")
