"""The stages of a run, their order, and what their bars are called."""

from __future__ import annotations

from typing import Literal

from siftune.records.errors import SiftuneError
from siftune.records.recipe import Recipe

Stage = Literal["pool", "warmup", "datastore", "influence", "selection"]
STAGES: tuple[Stage, ...] = ("pool", "warmup", "datastore", "influence", "selection")

READING, WARM_UP = "reading the pool", "warm-up"


def stage_named(name: str) -> Stage:
    """The stage of that name; SiftuneError where there is none."""
    for stage in STAGES:
        if stage == name:
            return stage
    raise SiftuneError(
        f"there is no stage {name!r}", where="--until", todo=f"Stages are: {', '.join(STAGES)}"
    )


def gradients_title(number: int, of: int) -> str:
    """The bar of one checkpoint's features."""
    return f"gradients, checkpoint {number} of {of}"


def vectors_title(name: str) -> str:
    """The bar of the vectors called `name`."""
    return f"vectors of {name}"


def bars_of(recipe: Recipe, until: Stage, *, checkpoints: int, vectors: str | None) -> list[str]:
    """The bars that a run shows up to a stage, in order, whichever of them are done already.

    checkpoints: that features are taken under, 0 for none; vectors: the name of those that are compared, None for none
    """
    reached = STAGES.index(until)
    bars = [READING]
    if checkpoints and not recipe.adopt and reached >= STAGES.index("warmup"):
        bars.append(WARM_UP)
    if reached >= STAGES.index("datastore"):
        bars += [gradients_title(number, checkpoints) for number in range(1, checkpoints + 1)]
        bars += [vectors_title(vectors)] if vectors else []
    return bars
