"""`RUN/selections/NAME/`: the chosen rows as a dataset ready for a trainer, and the score of every pool row.

selected.jsonl   best first: every original column, canonical `messages`, `_siftune`: {row, rank, score, subtask};
                 a column of that name that was there before is kept as `_siftune_before`
scores.parquet   a row per pool row; null where quarantined
selection.json   the settings it was made with, and what came out
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from siftune.datastore.pool import Pool
from siftune.records.errors import SiftuneError
from siftune.records.files import check_regular, read_sealed, sha256_of, write_sealed, written_whole
from siftune.selection.rules import Scores

_SETTINGS = {"method", "rule", "target", "keep", "checkpoints", "repeats", "pool_rows", "pool"}
_SCORES = {
    "row": pa.int64(),
    "score": pa.float32(),
    "rank": pa.int64(),
    "best_subtask": pa.string(),
    "selected": pa.bool_(),
}
"""Columns of scores.parquet that others rest on."""


@dataclass(frozen=True)
class Selection:
    """A selection that was made. `settings` and `summary` are those of `selection.json`."""

    path: Path
    settings: dict[str, Any]
    summary: dict[str, Any]
    sha256: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Selection:
        """Raises SiftuneError where there is no finished selection, or one whose files are no longer what was written."""
        if not (path / "selection.json").exists():
            raise SiftuneError("holds no selection", where=str(path), todo="Make one with 'siftune select'")
        found = read_sealed(path / "selection.json")
        parts = found if set(found) - {"sha256"} == {"settings", "summary"} else {}
        if (
            not parts
            or not all(isinstance(part, dict) for part in parts.values())
            or not set(parts["settings"]) >= _SETTINGS
        ):
            raise SiftuneError(
                "is not a selection that siftune wrote",
                where=str(path / "selection.json"),
                todo="Remove its folder and choose again under its name",
            )
        selection = cls(path, **found)
        selection._check_files()
        return selection

    @property
    def file(self) -> Path:
        """The dataset of chosen rows."""
        return self.path / "selected.jsonl"

    def scores(self) -> pa.Table:
        """A row per pool row, as Arrow."""
        file = self.path / "scores.parquet"
        try:
            check_regular(file)
            table = pq.ParquetFile(file).read()
            wrong = sorted(name for name, kind in _SCORES.items() if table.schema.field(name).type != kind)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise self._unreadable(file, f"{type(error).__name__}: {error}") from error
        if wrong or table["row"].to_pylist() != list(range(len(table))):
            raise self._unreadable(file, f"column {', '.join(wrong) or 'row'} holds something else")
        return table

    def _check_files(self) -> None:
        for file in (self.file, self.path / "scores.parquet"):
            if not file.exists():
                raise self._fault(file, "is gone")
            if self.sha256 and sha256_of(file) != self.sha256[file.name]:
                raise self._fault(file, "is damaged: its SHA-256 is not that of what was written")

    def _unreadable(self, file: Path, why: str) -> SiftuneError:
        return self._fault(file, f"is not what siftune wrote ({' '.join(why.split())[:200]})")

    def _fault(self, file: Path, what: str) -> SiftuneError:
        todo = f"Remove the folder {self.path} and choose again under its name"
        return SiftuneError(what, where=str(file), todo=todo)

    def rows(self) -> list[dict[str, Any]]:
        """The chosen rows, best first."""
        with self.file.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]


def may_be_chosen(index: pa.Table, score_N: np.ndarray, *, repeats: bool) -> np.ndarray:
    """Rows that may be chosen: all with a score; of exact duplicates only the first, unless `repeats`."""
    scored_N = ~np.isnan(score_N)
    if repeats:
        return scored_N
    rows = np.flatnonzero(scored_N)
    fingerprints = index["fingerprint"].take(pa.array(rows)).to_numpy(zero_copy_only=False).astype("U32")
    _, first = np.unique(fingerprints, return_index=True)
    may_N = np.zeros(len(scored_N), dtype=bool)
    may_N[rows[first]] = True
    return may_N


@dataclass(frozen=True)
class Choice:
    """What was decided, before it is written.

    order:       every scored pool row: those that were chosen, best first, then the others
    n_duplicates: scored rows that repeat an earlier one exactly and were therefore left out
    passed_over: how many rows each limit kept out before the budget was full
    """

    scores: Scores
    order: np.ndarray
    chosen: np.ndarray
    n_duplicates: int
    passed_over: dict[str, int]


def write_selection(
    path: Path,
    settings: dict[str, Any],
    choice: Choice,
    *,
    pool: Pool,
    index: pa.Table,
    columns: dict[str, np.ndarray],
) -> Selection:
    """Write the selection's folder. `settings`: everything that the choice depends on; `columns`: `loss` and `grad_norm` of every pool row, NaN where not known."""
    scores, order, chosen = choice.scores, choice.order, choice.chosen
    n_tokens_N = index["n_tokens"].to_numpy()
    best_subtask = scores.best_subtask()
    _write_scores(path / "scores.parquet", index, scores, order, chosen, best_subtask, columns)
    _write_rows(path / "selected.jsonl", pool, chosen, lambda row: best_subtask[row], scores.score_N)
    in_warmup_N = index["in_warmup"].to_numpy(zero_copy_only=False)
    summary = {
        "n_selected": len(chosen),
        "n_scorable": len(order),
        "n_pool": index.num_rows,
        "n_quarantined": index.num_rows - len(order),
        "n_duplicates_left_out": choice.n_duplicates,
        "passed_over": choice.passed_over,
        "tokens_selected": int(n_tokens_N[chosen].sum()),
        "tokens_scorable": int(n_tokens_N[order].sum()),
        "score_at_cut": float(scores.score_N[chosen].min()),
        "selected_in_warmup": int(in_warmup_N[chosen].sum()),
        "pool_in_warmup": int(in_warmup_N.sum()),
        "sources": _sources(index, chosen, order),
    }
    sha256 = {name: sha256_of(path / name) for name in ("selected.jsonl", "scores.parquet")}
    write_sealed(path / "selection.json", {"settings": settings, "summary": summary, "sha256": sha256})
    return Selection.open(path)


def check_same(path: Path, settings: dict[str, Any]) -> Selection:
    """The finished selection at `path`, if it was made with these settings; SiftuneError naming the one that differs."""
    found = Selection.open(path)
    for key in settings:
        was, now = found.settings.get(key), settings[key]
        if was != now and key == "pool_rows":
            raise SiftuneError(
                f"the selection {path.name!r} was made when the pool had {was:,} rows; now it has {now:,}",
                where=str(path),
                todo="Choose again under another name: siftune select RUN --name NEW",
            )
        if was != now:
            raise SiftuneError(
                f"a selection {path.name!r} exists with {key} = {was!r}; now it is {now!r}",
                where=str(path),
                todo="Give the new one a name of its own with --name, or remove the old one",
            )
    return found


def _sources(index: pa.Table, chosen: np.ndarray, scorable: np.ndarray) -> list[dict[str, Any]]:
    """Per source: rows in the scorable pool and chosen, most chosen first."""
    sources = index["source"].to_numpy(zero_copy_only=False)
    counts: dict[str, list[int]] = {}
    for place, rows in enumerate((scorable, chosen)):
        for name, n in zip(*np.unique(sources[rows].astype(str), return_counts=True), strict=True):
            counts.setdefault(str(name), [0, 0])[place] = int(n)
    ranked = sorted(counts.items(), key=lambda item: (-item[1][1], -item[1][0], item[0]))
    return [{"source": name, "pool": n_pool, "selected": n_chosen} for name, (n_pool, n_chosen) in ranked]


def _write_scores(
    file: Path,
    index: pa.Table,
    scores: Scores,
    order: np.ndarray,
    chosen: np.ndarray,
    best_subtask: list[str | None],
    columns: dict[str, np.ndarray],
) -> None:
    n = index.num_rows
    unscored_N = np.isnan(scores.score_N)
    rank_N = np.zeros(n, dtype=np.int64)
    rank_N[order] = np.arange(1, len(order) + 1)
    selected_N = np.zeros(n, dtype=bool)
    selected_N[chosen] = True

    def nulled(values_N: np.ndarray, kind: pa.DataType) -> pa.Array:
        return pa.array(values_N, type=kind, mask=unscored_N | np.isnan(values_N.astype(float)))

    table = {name: index[name] for name in ("row", "id", "source", "n_tokens", "n_trained")}
    table |= {name: nulled(columns[name], pa.float32()) for name in ("loss", "grad_norm")}
    table |= {
        "score": nulled(scores.score_N, pa.float32()),
        "rank": nulled(rank_N, pa.int64()),
        "best_subtask": pa.array(best_subtask, type=pa.string()),
        "selected": nulled(selected_N, pa.bool_()),
        "in_warmup": index["in_warmup"],
    }
    for s, name in enumerate(scores.subtasks):
        table[f"subtask:{name}"] = nulled(scores.mean_N_S[:, s], pa.float32())
    with written_whole(file) as aside:
        pq.write_table(pa.table(table), aside)


def _write_rows(
    file: Path, pool: Pool, chosen: np.ndarray, subtask: Callable[[int], str | None], score_N: np.ndarray
) -> None:
    lines: dict[int, str] = {}
    rank = {int(row): place for place, row in enumerate(chosen, 1)}
    for shard in pool.plan.shards:
        rows = chosen[(chosen >= shard.start) & (chosen < shard.stop)]
        if not len(rows):
            continue
        table = pool.table(shard, ["columns", "messages"]).take(pa.array(rows - shard.start))
        for row, columns, messages in zip(
            rows.tolist(), *(column.to_pylist() for column in table.columns), strict=True
        ):
            line = json.loads(columns)
            line["messages"] = json.loads(messages)
            if "_siftune" in line:  # the mark of an earlier selection, or a column of the person's own
                line["_siftune_before"] = line["_siftune"]
            line["_siftune"] = {
                "row": row,
                "rank": rank[row],
                "score": float(score_N[row]),
                "subtask": subtask(row),
            }
            lines[row] = _json_line(line)
    with written_whole(file) as aside, aside.open("w", encoding="utf-8") as out:
        out.writelines(lines[int(row)] for row in chosen)


def _json_line(value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except (
        UnicodeEncodeError
    ):  # a lone surrogate in one of the person's own columns can only be written escaped
        text = json.dumps(value, ensure_ascii=True)
    return text + "\n"
