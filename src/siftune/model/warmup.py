"""The warm-up: a short LoRA training on a random part of the pool that gives the checkpoints.

Hugging Face Trainer and PEFT with the recipe of LESS: AdamW β .9/.999, linear decay after 3 % warm-up steps, no weight
decay, gradient norm clipped at 1, mean loss over the trained tokens of a batch, one checkpoint an epoch. Trainer works
in RUN/checkpoints/.trainer; its folders are adopted at the end like anybody's, so a checkpoint has one origin in code.
A training that was cut off goes on from its last whole epoch and writes the same bytes as one that was not.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from siftune.model.adopt import adopt
from siftune.model.attention import quick_attention, recomputed
from siftune.model.checkpoint import Checkpoint, list_checkpoints
from siftune.model.load import quiet_transformers
from siftune.model.lora import adapter_on, add_lora, seed_32, target_names
from siftune.records.errors import SiftuneError
from siftune.records.files import digest_of, disk_error, read_json, sha256_of, write_json, write_text

Row = tuple[NDArray[Any], NDArray[Any]]
"""(token ids [T], trained [T] bool) of one pool row."""
Progress = Callable[[int, int, float, float], None]
"""Called after every step with (step, steps in all, loss, learning rate)."""

_DONE, _SETTINGS = "siftune_done", "settings.json"


@dataclass(frozen=True)
class LoraSettings:
    """A fresh adapter, see `siftune.model.lora.add_lora`."""

    rank: int = 16
    alpha: float = 64.0
    dropout: float = 0.0
    targets: Sequence[str] = ("auto",)


def warmup_rows(
    scorable_rows: NDArray[np.integer], *, fraction: float | None, seed: int
) -> NDArray[np.int64]:
    """A sorted random part of the row numbers: `fraction` of them (at least 1), or max(5 %, 128), capped at all."""
    n = len(scorable_rows)
    if n == 0:
        raise SiftuneError(
            "no row is left for the warm-up", where="pool", todo="See quarantine.jsonl for the reasons"
        )
    count = max(math.ceil(n / 20), 128) if fraction is None else max(1, round(fraction * n))
    chosen = np.random.default_rng([seed, 1]).choice(
        np.asarray(scorable_rows), size=min(count, n), replace=False
    )
    return np.sort(chosen).astype(np.int64)


def default_batch(n: int) -> int:
    """Rows a step where nothing is told: n/16, between 4 and 128."""
    return min(128, max(4, n // 16))


def warm_up(
    base: PreTrainedModel,
    rows: Sequence[Row],
    out: Path,
    *,
    seed: int,
    epochs: int,
    batch: int,
    learning_rate: float,
    lora: LoraSettings | Path,
    steps: int | None = None,
    warmup_ratio: float = 0.03,
    micro_batch: int | None = None,
    gradient_checkpointing: bool = False,
    on_progress: Progress | None = None,
) -> list[Checkpoint]:
    """Train LoRA on `rows` and write `out`/1 … `out`/epochs; `base` is as it was when this returns.

    out:         RUN/checkpoints; what a training with the same settings left there is used
    lora:        settings of a fresh adapter, or the folder of an adapter to start from
    steps:       optimizer steps in all, where it is not `epochs` whole epochs; there must be as many in them
    micro_batch: rows a forward pass, rounded down to a divisor of `batch`; None = the whole batch
    Raises SiftuneError where the loss is not a number, or `out` holds a training with other settings.
    """
    settings = {
        "seed": seed,
        "epochs": epochs,
        "batch": batch,
        "learning_rate": learning_rate,
        "warmup_ratio": warmup_ratio,
        "micro_batch": micro_batch_of(batch, micro_batch),
        "gradient_checkpointing": gradient_checkpointing,
        "lora": _lora_facts(base, lora),
        "rows": digest_of([[ids.tolist(), trained.tolist()] for ids, trained in map(_as_row, rows)]),
        **({} if steps is None else {"steps": steps}),
    }
    work = out / ".trainer"
    finished = list_checkpoints(out.parent)
    if finished:
        if finished[-1].origin.get("settings") != digest_of(settings):
            raise SiftuneError(
                "holds checkpoints made with other settings", where=str(out), todo="Choose another --out"
            )
        shutil.rmtree(work, ignore_errors=True)
        return finished
    if not rows:
        raise SiftuneError("there is no row to train on", where="warm-up", todo="Give a larger pool")
    _check_work(work, settings)
    device = next(base.parameters()).device
    if device.type == "cuda" and device.index not in (None, 0):
        raise SiftuneError(
            f"Trainer uses the first GPU only, the model is on {device}",
            where="device",
            todo=f"Set CUDA_VISIBLE_DEVICES={device.index} and leave out --device",
        )
    with quiet_transformers(), trainable(base, lora, seed) as model:
        args = _arguments(
            work,
            settings,
            steps=steps or epochs * math.ceil(len(rows) / batch),
            on_cpu=device.type == "cpu",
        )
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=_Rows(rows),
            data_collator=collate,
            callbacks=[_Watch(on_progress)],
        )
        trainer.remove_callback(PrinterCallback)
        with _disk_full_told(work), quick_attention(base):
            trainer.train(resume_from_checkpoint=_last_whole(work))
    adopted = adopt(work, out, base=base, origin="warm-up", settings=digest_of(settings))
    shutil.rmtree(work)
    return adopted.checkpoints


class _Rows(torch.utils.data.Dataset):
    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return _as_row(self.rows[index])


def _as_row(row: Row) -> Row:
    return np.asarray(row[0], dtype=np.int64), np.asarray(row[1], dtype=bool)


def collate(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Right-padded batch; labels are -100 where a token is not trained. Padding is marked by position, never by id."""
    longest = max(len(ids) for ids, _ in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    attention_mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, -100)
    for i, (ids, trained) in enumerate(rows):
        tokens = torch.from_numpy(ids)
        input_ids[i, : len(ids)] = tokens
        attention_mask[i, : len(ids)] = 1
        labels[i, : len(ids)] = torch.where(torch.from_numpy(trained), tokens, -100)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


class _Watch(TrainerCallback):
    """Tells progress, stops at a loss that is no number, and marks a checkpoint folder once all of it is written."""

    def __init__(self, on_progress: Progress | None):
        self.on_progress = on_progress

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        if not (math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm", 0.0))):
            raise SiftuneError(
                f"the warm-up's loss is {logs['loss']:g} (gradient norm {logs.get('grad_norm', math.nan):g}) at step "
                f"{state.global_step} of {state.max_steps}",
                where="warm-up",
                todo="Try a smaller --learning-rate, or --dtype fp32",
            )
        if self.on_progress:
            self.on_progress(state.global_step, state.max_steps, logs["loss"], logs["learning_rate"])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _DONE, "")


def _arguments(work: Path, settings: dict[str, Any], *, steps: int, on_cpu: bool) -> TrainingArguments:
    args = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=settings["micro_batch"],
        gradient_accumulation_steps=settings["batch"] // settings["micro_batch"],
        num_train_epochs=settings["epochs"],
        max_steps=steps if "steps" in settings else -1,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=min(
            math.ceil(steps * settings["warmup_ratio"]), steps - 1
        ),  # the first of them has rate 0
        optim="adamw_torch",
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=seed_32(settings["seed"]),
        data_seed=seed_32(settings["seed"]),
        gradient_checkpointing=settings["gradient_checkpointing"],
        gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": recomputed}
        if settings["gradient_checkpointing"]
        else None,
        save_strategy="epoch",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        use_cpu=on_cpu,
    )
    args._n_gpu = min(args.n_gpu, 1)  # else Trainer would spread a batch over every GPU that it sees
    return args


def micro_batch_of(batch: int, wanted: int | None) -> int:
    """The largest divisor of `batch` that is at most `wanted`."""
    limit = min(wanted or batch, batch)
    if limit < 1:
        raise SiftuneError(
            f"a micro-batch of {wanted} rows is none", where="micro_batch", todo="Give at least 1"
        )
    return next(size for size in range(limit, 0, -1) if batch % size == 0)


def _lora_facts(base: PreTrainedModel, lora: LoraSettings | Path) -> dict[str, Any]:
    if isinstance(lora, Path):
        files = [
            lora / name for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
        ]
        return {path.name: sha256_of(path) for path in files if path.is_file()}
    return {
        "rank": lora.rank,
        "alpha": lora.alpha,
        "dropout": lora.dropout,
        "targets": target_names(base, lora.targets),
    }


@contextmanager
def _disk_full_told(work: Path) -> Iterator[None]:
    """torch.save reports a full disk as a RuntimeError of its zip writer."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if "inline_container" in str(error):
            raise disk_error(OSError(errno.ENOSPC, "while a checkpoint was written"), work) from error
        told = disk_error(error, work)
        if told is error:
            raise
        raise told from error


@contextmanager
def trainable(base: PreTrainedModel, lora: LoraSettings | Path, seed: int) -> Iterator[PeftModel]:
    """`base` with the adapter to train; afterwards as it was."""
    with ExitStack() as stack:
        if isinstance(lora, Path):
            model = stack.enter_context(adapter_on(base, lora, trainable=True))
        else:
            model = add_lora(
                base, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets, seed=seed
            )
            stack.callback(model.unload)
        try:
            yield model
        finally:
            if base.is_gradient_checkpointing:
                base.gradient_checkpointing_disable()
                base.disable_input_require_grads()  # Trainer's enabling leaves this hook on a base that PEFT wraps
    base.requires_grad_(False).eval()


def _check_work(work: Path, settings: dict[str, Any]) -> None:
    """Remove what a kill in mid-save left, and refuse a work folder of another training."""
    written = work / _SETTINGS
    if written.is_file():
        before = read_json(written)
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            raise SiftuneError(
                f"holds a warm-up that was begun with another {changed[0]}",
                where=str(work.parent),
                todo="Give the old setting to go on, or choose another --out",
            )
    elif work.exists():
        shutil.rmtree(work)
    for folder in work.glob("checkpoint-*"):
        if not (folder / _DONE).is_file():
            shutil.rmtree(folder)
    write_json(written, settings)


def _last_whole(work: Path) -> str | None:
    folders = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return os.fspath(folders[-1]) if folders else None
