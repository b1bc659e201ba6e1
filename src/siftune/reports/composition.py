"""Section 3: what the choice consists of, beside what the pool consists of: sources, the person's own columns, turns, length.

Lift = share of the choice / share of the pool. How unlike the two are in one number: the total variation of their shares,
1/2 Σ |choice - pool|, 0 = the same mixture, 1 = nothing in common.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from siftune.reports.material import Material

MOST_VALUES = 50
LONGEST_VALUE = 60
SHOWN = 20
_OWN = {
    *(
        "messages",
        "id",
        "_siftune",
        "_siftune_before",
        "conversations",
        "conversation",
        "instruction",
        "input",
        "output",
        "prompt",
        "completion",
    ),
    *("system", "history", "tools", "text", "response", "question", "query", "answer", "chosen", "rejected"),
}
"""Columns of the formats, which hold what is said; and marks."""
_TAKEN = {
    "": "(no name)",
    "source": "source (column)",
    "turns": "turns (column)",
    "trained tokens": "trained tokens (column)",
}
DRAWS = 200
NONE = "(none)"


def columns_of(material: Material) -> dict[str, np.ndarray]:
    """What sorts the pool's rows into a few kinds, the person's columns beside source, turns and length: name -> value per row as text, `(none)` where a row has none.

    A column has 2 to 50 different values of at most 60 characters; one that only renames the source is left out, and so are all
    where the text of rows is: a short answer is a kind of rows too.
    """
    found = _scanned(material) if material.with_text else {}
    source_N = material.source_N
    kept = {
        name: value_N
        for name, value_N in sorted(found.items())
        if not _same_partition(value_N[material.usable_N], source_N[material.usable_N])
    }
    several = {
        _TAKEN.get(name, name): value_N
        for name, value_N in kept.items()
        if len(np.unique(value_N[material.usable_N])) > 1
    }
    n_turns_N = _turns(material)
    return {
        "source": source_N,
        **several,
        "turns": np.where(n_turns_N > 8, "9 or more", n_turns_N.astype(str)),
        "trained tokens": _binned(material.n_trained_N),
    }


def shares(value_N: np.ndarray, scored_N: np.ndarray, chosen_N: np.ndarray) -> list[dict[str, Any]]:
    """Per value: rows that could be chosen and rows that were, their shares, the lift; most chosen first."""
    names, codes = np.unique(value_N[scored_N], return_inverse=True)
    pool = np.bincount(codes, minlength=len(names))
    chosen = np.bincount(codes[chosen_N[scored_N]], minlength=len(names))
    order = np.lexsort((names, -pool, -chosen))
    n_pool, n_chosen = int(pool.sum()), int(chosen.sum())
    return [
        {
            "value": str(names[k]),
            "pool": int(pool[k]),
            "chosen": int(chosen[k]),
            "pool_share": round(float(pool[k]) / n_pool, 5),
            "chosen_share": round(float(chosen[k]) / n_chosen, 5),
            "lift": round(float(chosen[k] / n_chosen / (pool[k] / n_pool)), 3),
        }
        for k in order
    ]


def apart(rows: list[dict[str, Any]]) -> float:
    """Total variation between the mixture of the choice and that of the pool."""
    return round(sum(abs(row["chosen_share"] - row["pool_share"]) for row in rows) / 2, 3)


def apart_by_chance(rows: list[dict[str, Any]], seed: int = 0) -> float:
    """What `apart` is on average for as many rows drawn at random."""
    pool = np.array([row["pool"] for row in rows])
    n = sum(row["chosen"] for row in rows)
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(pool, n, size=DRAWS, method="marginals")
    return round(float(np.abs(drawn / n - pool / pool.sum()).sum(axis=1).mean() / 2), 3)


def composition_section(
    columns: dict[str, np.ndarray], scored_N: np.ndarray, chosen_N: np.ndarray
) -> list[dict[str, Any]]:
    """One table a column: the source, the person's columns (those in which choice and pool differ most first), turns, length."""
    tables = {name: _table(name, value_N, scored_N, chosen_N) for name, value_N in columns.items()}
    first, last = tables.pop("source"), [tables.pop(name) for name in ("turns", "trained tokens")]
    own = [table for table in tables.values() if len(table["rows"]) > 1]
    return [first, *sorted(own, key=lambda table: -table["apart"]), *last]


def _table(name: str, value_N: np.ndarray, scored_N: np.ndarray, chosen_N: np.ndarray) -> dict[str, Any]:
    rows = shares(value_N, scored_N, chosen_N)
    return {
        "column": name,
        "rows": rows[:SHOWN],
        "more": max(0, len(rows) - SHOWN),
        "apart": apart(rows),
        "apart_by_chance": apart_by_chance(rows),
        "finding": _finding(name, rows),
    }


def _turns(material: Material) -> np.ndarray:
    """Messages of every pool row, 0 for one in quarantine."""
    found: list[int] = []
    for shard in material.pool.plan.shards:
        messages = material.pool.table(shard, ["messages"])["messages"].to_pylist()
        found += [len(json.loads(text)) if text else 0 for text in messages]
    return np.array(found, dtype=np.int64)


def percent(share: float) -> str:
    """`33 %`, and `0.3 %` where a whole per cent would say nothing."""
    return f"{share:.0%}" if share >= 0.1 or not share else f"{share:.1%}"


def _finding(name: str, rows: list[dict[str, Any]]) -> str:
    top = rows[0]
    text = f"{percent(top['chosen_share'])} of the choice has {name} {top['value']!r}, {percent(top['pool_share'])} of the pool ({top['lift']:.1f}x)."
    unchosen = [row for row in rows if not row["chosen"]]
    if unchosen:
        text += f" Nothing was chosen from {len(unchosen)} of {len(rows)}."
    return text


def _scanned(material: Material) -> dict[str, np.ndarray]:
    n = material.index.num_rows
    codes: dict[str, dict[str, int]] = {}
    value_N: dict[str, np.ndarray] = {}
    dropped: set[str] = set(_OWN)
    for row, values in _rows(material):
        for name, value in values.items():
            if name in dropped:
                continue
            text = _as_value(value)
            known = codes.setdefault(name, {})
            if text is None or (text not in known and len(known) == MOST_VALUES):
                dropped.add(name)
                codes.pop(name)
                value_N.pop(name, None)
                continue
            if name not in value_N:
                value_N[name] = np.full(n, -1, dtype=np.int16)
            value_N[name][row] = known.setdefault(text, len(known))
    return {name: np.array([*codes[name], NONE])[code_N] for name, code_N in value_N.items()}


def _rows(material: Material) -> Iterator[tuple[int, dict[str, Any]]]:
    for shard in material.pool.plan.shards:
        table = material.pool.table(shard, ["row", "columns"])
        for row, text in zip(*(column.to_pylist() for column in table.columns), strict=True):
            values = json.loads(text) if text and material.usable_N[row] else None
            if isinstance(values, dict):
                yield row, values


def _as_value(value: Any) -> str | None:
    """A value that can name a kind of rows, as text; None for one that can't."""
    if value is None:
        return NONE
    if isinstance(value, (bool, int)) or (
        isinstance(value, str) and len(value) <= LONGEST_VALUE and "\n" not in value
    ):
        return str(value)
    return None


def _same_partition(a_N: np.ndarray, b_N: np.ndarray) -> bool:
    pairs = len(np.unique(np.stack([a_N.astype(str), b_N.astype(str)], axis=1), axis=0))
    return pairs == len(np.unique(a_N)) == len(np.unique(b_N))


def _binned(n_N: np.ndarray) -> np.ndarray:
    edges = np.array([17, 33, 65, 129, 257, 513, 1025])
    names = np.array(
        [
            "1 to 16",
            "17 to 32",
            "33 to 64",
            "65 to 128",
            "129 to 256",
            "257 to 512",
            "513 to 1024",
            "more than 1024",
        ]
    )
    return names[np.searchsorted(edges, n_N, side="right")]
