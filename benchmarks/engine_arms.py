"""The arms of the engine's benchmark, and the ratios between them that have a goal.

An arm is a script in `arms/` with settings, run in a process of its own. Arms of the environment `peers` know nothing of siftune.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

RANKS = (16, 128)
FEATURES, PEER_FEATURES = 8192, 1024
FEW_ROWS = 16
"""Rows of the arms that are too slow for more, one example at a time: as many as the released code projects at once."""


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    settings: what the script reads beside the run's own (rows, dtype, batch_tokens …), which they go before
    max_rows: where the arm is too slow for all of them
    """

    name: str
    what: str
    script: str
    settings: dict[str, Any] = field(default_factory=dict)
    peer: bool = False
    max_rows: int | None = None


def _siftune(rank: int, direction: str, what: str) -> Arm:
    settings = {"adapter": f"adapter-{rank}", "direction": direction, "features": FEATURES}
    return Arm(f"siftune r{rank} {direction}", what, "siftune_features.py", settings)


def _bergson(dtype: str, batch_tokens: int) -> Arm:
    return Arm(
        f"bergson r16 {dtype} {batch_tokens}",
        f"index, global projection to {PEER_FEATURES}, Adam, batches of {batch_tokens} tokens",
        "bergson_index.py",
        {"rank": 16, "dtype": dtype, "features": PEER_FEATURES, "batch_tokens": batch_tokens},
        peer=True,
    )


def _dattri(dtype: str, batch: int) -> Arm:
    return Arm(
        f"dattri-llm r16 {dtype} {batch}",
        f"LESS attributor against one target row, no projection, batches of {batch}",
        "dattri_less.py",
        {"rank": 16, "dtype": dtype, "batch": batch},
        peer=True,
        max_rows=FEW_ROWS if batch == 1 else None,
    )


def _scaling(rows: int) -> Arm:
    settings = {
        "adapter": "adapter-tiny",
        "direction": "sgd",
        "features": FEATURES,
        "tiny": True,
        "rows": rows,
    }
    return Arm(f"siftune tiny {rows}", f"a two-layer model, {rows:,} rows", "siftune_features.py", settings)


def arms(scaling: tuple[int, ...]) -> list[Arm]:
    """All arms; `scaling` = the numbers of rows at which the cost of a row is compared, on a tiny model."""
    return [
        Arm("floor", "forward and backward of the frozen model, no weight gradient", "floor.py"),
        *[
            Arm(f"floor-lora r{r}", "the same, the frozen adapter in place", "floor.py", {"rank": r})
            for r in RANKS
        ],
        *[
            Arm(
                f"peft-step r{r}",
                "forward and backward of a PEFT training step with labels",
                "peft_step.py",
                {"rank": r},
            )
            for r in RANKS
        ],
        *[_siftune(r, "sgd", f"features, default direction, sketch to {FEATURES}") for r in RANKS],
        *[_siftune(r, "adam", f"features, direction adam, sketch to {FEATURES}") for r in RANKS],
        Arm(
            "less-released r16",
            f"released LESS procedure on a CPU, dense projection to {FEATURES}",
            "released_less.py",
            {"rank": 16, "features": FEATURES},
            max_rows=FEW_ROWS,
        ),
        *[_bergson(dtype, tokens) for dtype in ("fp32", "bf16") for tokens in (2048, 8192)],
        *[_dattri(dtype, batch) for dtype in ("fp32", "bf16") for batch in (1, 8)],
        *[_scaling(rows) for rows in scaling],
    ]


@dataclass(frozen=True)
class Ratio:
    """CPU seconds a row (or peak memory) of the arm `of` over those of `over`, at most (or at least) `goal`.

    of, over: an arm's name, or the start of several, of which the fastest counts
    """

    name: str
    of: str
    over: str
    goal: float
    at_least: bool = False
    memory: bool = False


def ratios(scaling: tuple[int, ...]) -> list[Ratio]:
    found = [
        Ratio("siftune over the floor, r 16", "siftune r16 sgd", "floor", 1.10),
        Ratio("siftune over the floor, r 128", "siftune r128 sgd", "floor", 1.25),
        Ratio("siftune over the floor with the adapter, r 16", "siftune r16 sgd", "floor-lora r16", 1.10),
        Ratio("siftune over the floor with the adapter, r 128", "siftune r128 sgd", "floor-lora r128", 1.25),
        Ratio("siftune over a training step, r 16", "siftune r16 sgd", "peft-step r16", 0.75),
        Ratio("siftune over a training step, r 128", "siftune r128 sgd", "peft-step r128", 1.05),
        Ratio("released LESS over siftune (adam)", "less-released r16", "siftune r16 adam", 20, True),
        Ratio("bergson over siftune (adam)", "bergson", "siftune r16 adam", 4, True),
        Ratio("dattri-llm over siftune (adam)", "dattri-llm", "siftune r16 adam", 2, True),
        Ratio(
            "peak memory over a training step's, r 16", "siftune r16 sgd", "peft-step r16", 1.3, memory=True
        ),
    ]
    if len(scaling) > 1:
        few, many = f"siftune tiny {scaling[0]}", f"siftune tiny {scaling[-1]}"
        rows = f"{scaling[-1]:,} rows over {scaling[0]:,}"
        found += [
            Ratio(f"cost of a row, {rows}", many, few, 1.05),
            Ratio(f"peak memory, {rows}", many, few, 1.05, memory=True),
        ]
    return found
