"""One process's work in one run directory: a method per stage, each of which makes only what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from siftune.datastore.index import (
    counts,
    duplicate_rows,
    read_index,
    repeated_ids,
    scorable_rows,
    write_index,
)
from siftune.datastore.manifest import versions
from siftune.datastore.pool import Pool, TokenRows
from siftune.datastore.store import Datastore
from siftune.datastore.targets import (
    Target,
    has_numbers,
    kept_rows,
    target_vectors,
    vectors_file,
    write_target,
)
from siftune.pipeline.progress import Reporter
from siftune.pipeline.rundir import CHOICE, read_made_with, write_run_recipe
from siftune.pipeline.stages import READING
from siftune.records.errors import SiftuneError
from siftune.records.files import read_sealed, write_sealed
from siftune.records.log import RunLog
from siftune.records.names import check_name
from siftune.records.readers import TargetRow, read_pool, read_target
from siftune.records.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from siftune.chat.encoder import ChatEncoder


class ReadTarget(NamedTuple):
    """A target's file, rows and tokens, read but not yet part of the run."""

    source: str
    rows: list[TargetRow]
    tokens: TokenRows


class Session:
    """Paths, settings and lazily opened parts of a run that this process holds.

    recipe:   what this process works by, with everything resolved that can be before the model is seen
    recorded: the recipe that the run had before, None for a new run
    """

    def __init__(self, path: Path, recipe: Recipe, reporter: Reporter, recorded: Recipe | None):
        self.path, self.recipe, self.reporter, self.recorded = path, recipe, reporter, recorded
        self.log = RunLog(path / "log.jsonl")
        self.made_with: dict[str, Any] = read_made_with(path)
        self.base: PreTrainedModel | None = None
        self.base_digest = ""

    # What is on disk

    @property
    def pool(self) -> Pool:
        return Pool(self.path / "pool")

    def store_path(self, checkpoint: int) -> Path:
        return self.path / "datastore" / "less" / str(checkpoint)

    def store(self, checkpoint: int) -> Datastore:
        return Datastore(self.store_path(checkpoint), self.pool.plan)

    def store_numbers(self) -> list[int]:
        """Checkpoints that have a datastore, in order."""
        folder = self.path / "datastore" / "less"
        return sorted(
            int(p.name) for p in folder.glob("*") if p.name.isdigit() and (p / "manifest.json").exists()
        )

    def vectors_name(self) -> str:
        """The folder name of the vectors that the recipe's method compares: blend takes those of rds+, ltd those of embed."""
        if self.by_position() or not self.recipe.encoder:
            return "rds+" if self.by_position() else "embed"
        return f"embed-{check_name(Path(self.recipe.encoder).name, 'encoder folder')}"

    def by_position(self) -> bool:
        """Does the recipe's method compare hidden states weighted by position?"""
        return self.recipe.method in ("rds+", "blend")

    def encoder_folder(self) -> Path | None:
        """The sentence encoder that the recipe's method asks for, where that is there."""
        folder = self.recipe.encoder if not self.by_position() else None
        return Path(folder) if folder and Path(folder).exists() else None

    def vectors_path(self) -> Path:
        """Where the pool's vectors are: made under the base model, which is checkpoint 0."""
        return self.path / "datastore" / self.vectors_name() / "0"

    def target_vectors(self, target: Target) -> np.ndarray:
        """`vectors_V_D` of a target, fp32, by the recipe's method."""
        return target_vectors(target, self.vectors_name())

    def choice(self) -> dict[str, str]:
        """Settings of the choice that is being made that decide which stores it needs."""
        found = {"method": self.recipe.method, "encoder": self.recipe.encoder}
        return {name: value for name, value in found.items() if value is not None}

    def has_vectors(self, targets: list[str]) -> bool:
        """Are the vectors of the pool and of these targets all made?"""
        path, found = self.vectors_path(), [self.target(name) for name in targets]
        of_targets = [
            has_numbers(target, vectors_file(target, self.vectors_name()), path) for target in found
        ]
        begun = (path / "manifest.json").exists()
        return begun and all(of_targets) and not Datastore(path, self.pool.plan).missing()

    def target(self, name: str) -> Target:
        return Target.open(self.path / "targets" / check_name(name, "target"))

    @cached_property
    def encoder(self) -> ChatEncoder:
        """Tokenizer, template and mask of the run; the template of an adopted checkpoint wins over the model's."""
        from siftune.chat.encoder import ChatEncoder
        from siftune.chat.tokenizer import load_tokenizer
        from siftune.model.adopt import template_folder

        recipe = self.recipe
        if recipe.model is None:
            raise SiftuneError(
                "no model is given", where="model", todo="Give a model folder or hub id: --model M"
            )
        template_from = template_folder(Path(recipe.adopt)) if recipe.adopt else None
        tokenizer = load_tokenizer(recipe.model, recipe.revision, template_from=template_from)
        encoder = ChatEncoder(
            tokenizer, max_length=recipe.max_length, too_long=recipe.too_long, mask=recipe.mask
        )
        self.reporter.note(f"chat template {encoder.describe()}")
        if template_from:
            self.reporter.note(f"the chat template is the one saved in {template_from}")
        return encoder

    def save_recipe(self, **made_with: Any) -> None:
        """Write `recipe.yaml`; `made_with` adds to what the run was resolved on."""
        before = self.recorded
        has_chosen = before is not None and (before.keep or before.drop_worst) is not None
        first = {name: getattr(before, name) for name in CHOICE} if has_chosen else {}
        targets = {**(before.target if before else {}), **self.recipe.target}
        self.made_with |= {"versions": versions(), **made_with}
        write_run_recipe(self.path, self.recipe.with_settings({**first, "target": targets}), self.made_with)

    # Reading

    def read_targets(self, targets: Mapping[str, str]) -> dict[str, ReadTarget]:
        """Read and encode target files. Any unusable row is an error, before hours of work.

        Rows of a target whose file is gone are those that the run keeps.
        """
        from siftune.datastore.features_writer import encode_target

        read: dict[str, ReadTarget] = {}
        for name, source in targets.items():
            kept = self.path / "targets" / name
            if (kept / "target.json").exists() and not Path(source).exists():
                rows = kept_rows(Target.open(kept))
            else:
                rows = read_target(source, name)
            read[name] = ReadTarget(source, rows, encode_target(rows, self.encoder))
        return read

    def keep_targets(self, read: Mapping[str, ReadTarget]) -> dict[str, tuple[Target, TokenRows]]:
        """Write targets into the run, and say where the pool holds their rows."""
        found: dict[str, tuple[Target, TokenRows]] = {}
        for name, (source, rows, tokens) in read.items():
            target = write_target(self.path / "targets" / name, source, rows, tokens)
            found[name] = (target, tokens)
            subtasks = f", {len(target.subtasks)} subtasks" if len(target.subtasks) > 1 else ""
            self.reporter.note(f"target {name}: {len(rows)} rows{subtasks}")
        self._report_leakage(found)
        return found

    def make_pool(self) -> None:
        """Read the pool into `RUN/pool`, unless that is done."""
        if (self.path / "pool" / "plan.json").exists():
            self._check_encoder()
            read = list(self.pool.plan.sources)
            if self.recipe.pool != read[: len(self.recipe.pool)]:
                raise SiftuneError(
                    f"this run has read another pool: {', '.join(read)}",
                    where="pool",
                    todo="Give that one, or start a new run with another --out",
                )
            self.update_index()
            return
        if not self.recipe.pool:
            raise SiftuneError("no pool is given", where="pool", todo="Give the files: --pool FILE …")
        with self.log.stage("pool") as details:
            self._read_into_pool(self.recipe.pool)
            details |= self._report_pool()

    def append_to_pool(self, sources: list[str]) -> int:
        """Read more files into the run as new shards; how many rows came. Files that are in it already are not read again."""
        plan = self.pool.plan
        known = [source for source in sources if source in plan.sources]
        for source in known:
            self.reporter.warn(
                f"{source} is part of this run already and is not read again (a file with new rows needs a new name)"
            )
        new = [source for source in sources if source not in known]
        if new:
            with self.log.stage("append") as details:
                self._read_into_pool(new)
                details |= self._report_pool()
        else:
            self.update_index()  # a kill may have come between the plan of these files and the index
        self.recipe = self.recipe.with_settings({"pool": list(self.pool.plan.sources)})
        self.save_recipe()
        return self.pool.plan.n_rows - plan.n_rows

    def _read_into_pool(self, sources: list[str]) -> None:
        from siftune.datastore.pool_writer import build_pool

        recipe = self.recipe
        assert recipe.batch_tokens is not None
        with self.reporter.bar(READING, None, "rows") as advance:
            build_pool(
                self.path / "pool",
                sources,
                read_pool(sources),
                self.encoder,
                shard_rows=recipe.shard_rows,
                batch_tokens=recipe.batch_tokens,
                on_shard=lambda shard: advance(len(shard)),
            )
        self.update_index()

    def _check_encoder(self) -> None:
        if self.pool.plan.encoder != self.encoder.fingerprint:
            raise SiftuneError(
                "the tokenizer or chat template is not the one that this run's pool was read with",
                where=str(self.path / "pool"),
                todo="Set the model back to what it was, or start a new run with another --out",
            )

    def update_index(self) -> None:
        """Make index and quarantine again from what is on disk, where that has changed."""
        without_feature: dict[int, str] = {}
        for number in self.store_numbers():
            for row, reason in self.store(number).without_feature():
                without_feature.setdefault(row, f"{reason} at checkpoint {number}")
        for folder in sorted(file.parent for file in (self.path / "datastore").glob("*/0/manifest.json")):
            for row, reason in Datastore(folder, self.pool.plan).without_feature():
                without_feature.setdefault(row, f"{reason} for {folder.parent.name}")
        write_index(
            self.path,
            self.pool,
            warmup_rows=self.warmup_rows() or [],
            without_feature=without_feature,
            with_text=not self.recipe.no_text,
        )

    def warmup_rows(self) -> list[int] | None:
        """Pool rows of the warm-up, or None where it has not been decided (or checkpoints were adopted)."""
        file, first = (self.path / "checkpoints" / name for name in ("warmup.json", "1/checkpoint.json"))
        if file.exists():
            rows, n_rows = read_sealed(file, "rows")["rows"], self.pool.plan.n_rows
            if not isinstance(rows, list) or not all(type(row) is int and 0 <= row < n_rows for row in rows):
                raise SiftuneError(
                    "names rows that the pool doesn't have",
                    where=str(file),
                    todo="Start a new run with another --out",
                )
            return rows
        if first.exists() and read_sealed(first, "origin")["origin"].get("kind") == "warm-up":
            raise SiftuneError(
                "is gone: it says which rows the warm-up was trained on",
                where=str(file),
                todo=f"Put it back, or remove {file.parent} and {self.path / 'datastore'} and run again",
            )
        return None

    def decide_warmup_rows(self, rows: np.ndarray) -> list[int]:
        write_sealed(
            self.path / "checkpoints" / "warmup.json", {"seed": self.recipe.seed, "rows": rows.tolist()}
        )
        return rows.tolist()

    def _report_pool(self) -> dict[str, Any]:
        """Say what was read; the same as log details."""
        index = read_index(self.path)
        status, ways = counts(index, "status"), counts(index, "mask")
        n_truncated, n_quarantined = status.get("truncated", 0), status.get("quarantined", 0)
        duplicates, repeated = duplicate_rows(index), repeated_ids(index)
        n_usable = index.num_rows - n_quarantined
        note, warn = self.reporter.note, self.reporter.warn
        note(
            f"pool: {index.num_rows:,} rows, {n_usable:,} usable, "
            f"trained tokens found by {', '.join(f'{way} ({n:,})' for way, n in ways.items())}"
        )
        if n_truncated:
            warn(
                f"{n_truncated:,} rows are longer than max_length {self.recipe.max_length} and were cut at their end"
            )
        if n_quarantined:
            commonest, n = next(iter(counts(index, "reason").items()))
            file = self.path / "quarantine.jsonl"
            warn(f"{n_quarantined:,} rows are in {file}; most often ({n:,}): {commonest}")
        if repeated:
            warn(
                f"{len(repeated):,} ids occur more than once, {repeated[0]!r} among them; rows are told apart by their place"
            )
        if duplicates:
            note(
                f"{duplicates:,} rows repeat an earlier one exactly; of each, the first can be chosen (--repeats lets all)"
            )
        if not n_usable:
            raise SiftuneError(
                "no row of the pool can be used",
                where=str(self.path / "quarantine.jsonl"),
                todo="See the reasons there",
            )
        return {
            "rows": index.num_rows,
            "status": status,
            "mask": ways,
            "duplicates": duplicates,
            "repeated_ids": len(repeated),
        }

    def _report_leakage(self, targets: Mapping[str, tuple[Target, TokenRows]]) -> None:
        """Say which target rows stand in the pool too."""
        if not targets:
            return
        index = read_index(self.path).select(["row", "fingerprint"])
        for name, (target, _) in targets.items():
            wanted = set(target.fingerprint_V)
            rows = [row for row, found in zip(*index.to_pydict().values(), strict=True) if found in wanted]
            if rows:
                self.log.event("leakage", target=name, rows=rows[:100], count=len(rows))
                self.reporter.warn(
                    f"leakage: {len(rows)} pool rows are also rows of the target {name!r} (pool row {rows[0]} among them);"
                    " they will score high, and a test on like rows says little"
                )

    def scorable(self) -> np.ndarray:
        """Rows that aren't quarantined."""
        return scorable_rows(read_index(self.path))
