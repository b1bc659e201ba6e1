"""Training and measuring cell by cell: what is on disk is read, the rest is made, whatever the comparison that asks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siftune.chat.encoder import ChatEncoder
from siftune.chat.tokenizer import load_tokenizer
from siftune.datastore.index import read_index, scorable_rows
from siftune.model.identity import model_digest
from siftune.model.load import load_model, quiet_transformers
from siftune.model.lora import adapter_on, target_names
from siftune.model.precision import in_fp32
from siftune.model.warmup import Row
from siftune.pipeline.arms import HarnessTest, Test
from siftune.pipeline.machine import device_of, pin
from siftune.pipeline.session import Session
from siftune.proof.cells import Cell, cell_file, read_cell, training_id, write_cell
from siftune.proof.evaluate import Measuring, RowScore, evaluate
from siftune.proof.measures import DocumentScore
from siftune.proof.train import Training, train_on
from siftune.records.errors import SiftuneError
from siftune.records.example import Example
from siftune.records.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Trained:
    """Something to train: its rows, how, and the name its content gives it. `training` None = the model as it is."""

    id: str
    rows: Sequence[Row]
    training: Training | None
    about: dict[str, Any]


class Prover:
    """Holds the model that is trained (the run's own, or another) and makes cells in `RUN/proof`.

    model: a folder or hub id, None = the run's own
    """

    def __init__(self, session: Session, model: str | None, measuring: Measuring):
        self.session, self.measuring = session, measuring
        self._full: list[Row] | None = None
        self.own = model is None or model == session.recipe.model
        recipe = session.recipe
        name = model or recipe.model
        assert name is not None
        assert recipe.dtype != "auto"
        revision = recipe.revision if self.own else None
        pin(recipe)
        session.reporter.note(f"loading {name}")
        self.base: PreTrainedModel = load_model(
            name,
            revision=revision,
            dtype=recipe.dtype,
            attn=recipe.attn,
            quantize=recipe.quantize,
            device=device_of(recipe),
        )
        self.encoder = (
            session.encoder
            if self.own
            else ChatEncoder(
                load_tokenizer(name, revision),
                max_length=recipe.max_length,
                too_long=recipe.too_long,
                mask=recipe.mask,
            )
        )
        self.facts = {
            "model": model_digest(self.base),
            "dtype": recipe.dtype,
            "quantize": recipe.quantize,
            "attn": self.base.config._attn_implementation,
            "encoder": self.encoder.fingerprint,
        }

    def lora_targets(self, asked: Sequence[str] | None) -> list[str]:
        """Names of the layers that LoRA goes on: as asked, else the run's; another model than that has names of its own (auto)."""
        targets = asked or (self.session.recipe.lora_targets if self.own else ["auto"])
        return target_names(self.base, targets)

    def tokens(self, rows: Sequence[int]) -> list[Row]:
        """The tokens of pool rows, by the trained model's own tokenizer and template."""
        if self.own:
            return self.session.pool.tokens_of(rows)
        return self.encoded(self.session.pool.examples_of(rows), "the pool")

    def full_pool(self) -> list[Row]:
        """The tokens of every row of the pool that can be used."""
        if self._full is None:
            self._full = self.tokens(scorable_rows(read_index(self.session.path)).tolist())
        return self._full

    def encoded(self, examples: Sequence[Example], what: str) -> list[Row]:
        """The tokens of examples; rows that the model can't take are told and left out."""
        found, reasons = [], []
        for example in examples:
            tokens = self.encoder.encode(example)
            if isinstance(tokens, str):
                reasons.append(f"{example.where}: {tokens}")
            else:
                found.append((tokens.token_ids, tokens.trained))
        if reasons:
            self.session.reporter.warn(f"{len(reasons):,} rows of {what} can't be trained on ({reasons[0]})")
        if not found:
            raise SiftuneError(
                f"no row of {what} can be trained on",
                where=reasons[0] if reasons else what,
                todo="See its rows",
            )
        return found

    def trained(self, rows: Sequence[Row], training: Training | None, about: dict[str, Any]) -> Trained:
        """Name something to train."""
        return Trained(training_id(self.facts, rows, training), rows, training, about)

    def tell_cut(self, test: Test) -> None:
        """Say how many rows of a test are cut at max_length, as training rows are: their loss is that of a part of the answer."""
        encoded = [self.encoder.encode(row) for row in test.rows]
        if n := sum(1 for tokens in encoded if not isinstance(tokens, str) and tokens.truncated):
            self.session.reporter.warn(
                f"{n:,} of the {len(test.rows):,} rows of the test {test.name!r} are longer than max_length {self.session.recipe.max_length} and are"
                " measured on what is left of their answer"
            )

    def done(self, trained: Trained, test: Test | HarnessTest) -> bool:
        """Is this cell there?"""
        return self._file(trained, test).exists()

    def cells(self, trained: Trained, tests: Sequence[Test | HarnessTest]) -> list[Cell]:
        """The cells of one training on several tests, made where they are missing."""
        missing = [test for test in tests if not self.done(trained, test)]
        if missing:
            adapter, seconds = self._train(trained)
            on = adapter_on(self.base, adapter, trainable=False) if adapter else nullcontext(self.base)
            with quiet_transformers(), on as model:
                for test in missing:
                    self._measure(model, trained, test, seconds)
        return [read_cell(self._file(trained, test)) for test in tests]

    def _file(self, trained: Trained, test: Test | HarnessTest) -> Path:
        how = (
            {"task": test.task.digest, "precise": self.measuring.precise}
            if isinstance(test, HarnessTest)
            else {"test": test.digest, **self.measuring.settings()}
        )
        return cell_file(self.session.path / "proof", test.name, trained.id, how)

    def _train(self, trained: Trained) -> tuple[Path | None, float]:
        """The adapter's folder (None: nothing to train) and the seconds that this process trained."""
        if trained.training is None:
            return None, 0.0
        folder = self.session.path / "proof" / "trained" / trained.id
        began, seen = time.perf_counter(), [0]
        title = f"training on {trained.about['arm']}, seed {trained.about['seed']}"
        with (
            self.session.log.stage(f"proof {trained.id}") as details,
            self.session.reporter.bar(title, trained.training.steps, "steps") as advance,
        ):
            details |= trained.about

            def on_progress(step: int, total: int, loss: float, learning_rate: float) -> None:
                advance(step - seen[0])
                seen[0] = step

            adapter = train_on(self.base, trained.rows, folder, trained.training, on_progress=on_progress)
            write_json(folder / "about.json", {**self.facts, **trained.about})
        return adapter, time.perf_counter() - began

    def _measure(self, model: Any, trained: Trained, test: Test | HarnessTest, seconds: float) -> None:
        began = time.perf_counter()
        if isinstance(test, HarnessTest):
            scores, measured = self._ask(model, test), {"lm_eval": test.task.settings}
        else:
            scores, measured = self._scores(model, test), {"test_file": test.source}
        about = {
            **trained.about,
            "training": trained.id,
            **measured,
            "seconds_training": round(seconds, 1),
            "seconds_measuring": round(time.perf_counter() - began, 1),
        }
        write_cell(self._file(trained, test), Cell(test.name, about, scores))

    def _scores(self, model: Any, test: Test) -> list[RowScore]:
        batch_tokens = self.session.recipe.batch_tokens
        assert batch_tokens is not None
        with self.session.reporter.bar(f"measuring on {test.name}", len(test.rows), "rows") as advance:
            return evaluate(model, self.encoder, test.rows, batch_tokens, self.measuring, on_rows=advance)

    def _ask(self, model: Any, test: HarnessTest) -> list[DocumentScore]:
        reporter, batch_tokens = self.session.reporter, self.session.recipe.batch_tokens
        assert batch_tokens is not None
        precisely = in_fp32(model) if self.measuring.precise else nullcontext()
        with precisely, reporter.bar(f"measuring on {test.name}", None, "requests") as advance:
            scores, n_cut = test.task.measure(model, self.encoder, batch_tokens, on_requests=advance)
        if n_cut:
            reporter.warn(
                f"{test.name}: {n_cut:,} prompts are longer than the model takes and lost their start"
            )
        return scores
