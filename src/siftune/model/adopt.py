"""Adopt checkpoints that a Hugging Face Trainer, TRL or Axolotl run wrote, in place of a warm-up.

From each folder come the adapter, Adam's moments (`optimizer.pt`) and the mean learning rate since the previous
checkpoint (`trainer_state.json`; the scheduler's own rate is 0.0 at the end and is never used). The warm-up's own
checkpoints come through here too, so there is one way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from siftune.model.checkpoint import Checkpoint, normalised, write_checkpoint
from siftune.model.lora import adapter_on, adapter_tensors, is_lora_weight
from siftune.model.optimizer_state import AdamState, read_optimizer_state
from siftune.model.probe import check_order
from siftune.records.errors import SiftuneError
from siftune.records.files import read_object

Gradients = Callable[[PeftModel], dict[str, Tensor]]
"""Mean gradients of some pool rows under an adapter (see `siftune.model.probe.mean_gradients`)."""


class Adopted(NamedTuple):
    """What adoption gives.

    checkpoints:  in the order of training
    notes:        sentences for the person: which folders were used, what is applied but not in θ, thin logs
    template_dir: the last checkpoint's folder where it holds a tokenizer's chat template, else None
    """

    checkpoints: list[Checkpoint]
    notes: list[str]
    template_dir: Path | None


@dataclass(frozen=True)
class _Source:
    folder: Path
    step: int
    learning_rates: list[tuple[int, float]]
    """(step, learning rate) as logged, over the whole training up to here."""


def adopt(
    source: Path,
    run_checkpoints: Path,
    *,
    base: PreTrainedModel,
    weights: Sequence[float] | None = None,
    gradients: Gradients | None = None,
    origin: str = "adopted",
    settings: str | None = None,
) -> Adopted:
    """Write RUN/checkpoints/1 … from a training's output folder (with `checkpoint-*` in it) or one checkpoint folder.

    base:      the model that the adapters were trained on; as it was when this returns
    weights:   one per checkpoint, in place of the logged learning rates; any positive scale
    gradients: where given, the order of the moments is probed with them, and the figures recorded
    origin, settings: what checkpoint.json says of its making: a kind, and a digest where siftune did the training
    Raises SiftuneError where anything needed is missing, broken or doubtful; then nothing of it is used.
    """
    sources = _sources(source)
    rates: list[float | None] = [None] * len(sources) if weights is not None else _mean_rates(sources)
    if weights is not None and len(weights) != len(sources):
        names = ", ".join(item.folder.name for item in sources)
        raise SiftuneError(
            f"{len(weights)} weights were given for {len(sources)} checkpoints ({names})",
            where="weights",
            todo="Give one weight per checkpoint, in this order",
        )
    shares = normalised(weights if weights is not None else [rate or 0.0 for rate in rates], "weights")
    notes = [f"checkpoints used, in order: {', '.join(item.folder.name for item in sources)}"]
    checkpoints: list[Checkpoint] = []
    for index, item in enumerate(sources):
        with adapter_on(base, item.folder, trainable=True) as model:
            adam = read_optimizer_state(item.folder, model)
            order = check_order(adam.exp_avg, gradients(model), str(item.folder)) if gradients else None
        facts: dict[str, Any] = {
            "kind": origin,
            "settings": settings,
            "folder": item.folder.name if origin == "warm-up" else str(item.folder.resolve()),
            "weight_from": "--weights" if weights is not None else "trainer_state.json",
            "parameter_order": adam.rule,
            "order_probe": order,
        }
        checkpoints.append(
            _write(run_checkpoints, index + 1, len(sources), item, adam, shares[index], rates[index], facts)
        )
    for left in run_checkpoints.glob("*"):
        if left.name.isdigit() and int(left.name) > len(sources):
            raise SiftuneError("holds checkpoints of another training", where=str(left), todo="Remove it")
    notes += _notes(sources, rates)
    return Adopted(checkpoints, notes, _template_dir(sources[-1].folder))


def _write(
    run_checkpoints: Path,
    number: int,
    of: int,
    item: _Source,
    adam: AdamState,
    weight: float,
    rate: float | None,
    origin: dict[str, Any],
) -> Checkpoint:
    return write_checkpoint(
        run_checkpoints / str(number),
        of=of,
        adapter=item.folder,
        weight=weight,
        step=adam.step,
        betas=adam.betas,
        eps=adam.eps,
        mean_learning_rate=rate,
        origin=origin,
        exp_avg=adam.exp_avg,
        exp_avg_sq=adam.exp_avg_sq,
    )


def _sources(source: Path) -> list[_Source]:
    if not source.is_dir():
        raise SiftuneError(
            "there is no such folder", where=str(source), todo="Give a Trainer output folder as --adopt"
        )
    folders = [path for path in source.glob("checkpoint-*") if path.is_dir() and path.name[11:].isdigit()]
    if folders:
        return [_read_source(path) for path in sorted(folders, key=lambda path: int(path.name[11:]))]
    return [_read_source(source)]


def _read_source(folder: Path) -> _Source:
    if not (folder / "adapter_config.json").is_file():
        raise SiftuneError(
            "holds no LoRA adapter (adapter_config.json), nor checkpoint-* folders that do",
            where=str(folder),
            todo="Give the output folder of a LoRA training; full-parameter trainings are not supported",
        )
    path = folder / "trainer_state.json"
    if not path.is_file():
        return _Source(folder, 0, [])
    state = read_object(path)
    try:
        logged = [
            (int(row["step"]), float(row["learning_rate"]))
            for row in state["log_history"]
            if "learning_rate" in row
        ]
        return _Source(folder, int(state["global_step"]), logged)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SiftuneError(
            f"is not a Trainer's state ({error!r})", where=str(path), todo="Give --weights"
        ) from error


def _logged(sources: list[_Source], index: int) -> list[float]:
    """The learning rates that were logged after the previous checkpoint, up to this one."""
    after = sources[index - 1].step if index else 0
    return [rate for step, rate in sources[index].learning_rates if after < step <= sources[index].step]


def _mean_rates(sources: list[_Source]) -> list[float | None]:
    """Mean logged learning rate of each interval (0 where all of it was the first step of a warm-up); SiftuneError where none is logged."""
    means: list[float | None] = []
    for index, item in enumerate(sources):
        rates = _logged(sources, index)
        if not rates:
            raise SiftuneError(
                "trainer_state.json logs no learning rate between this checkpoint and the previous one",
                where=str(item.folder),
                todo="Say what each checkpoint weighs: --weights, one number per checkpoint (its mean learning rate)",
            )
        means.append(sum(rates) / len(rates))
    if not any(means):
        raise SiftuneError(
            "trainer_state.json logs only learning rates of 0",
            where=str(sources[-1].folder),
            todo="Say what each checkpoint weighs: --weights, one number per checkpoint (its mean learning rate)",
        )
    return means


def _notes(sources: list[_Source], rates: list[float | None]) -> list[str]:
    notes = []
    for index, item in enumerate(sources):
        found = len(_logged(sources, index))
        if rates[index] is not None and found < 4:
            notes.append(
                f"the weight of {item.folder.name} rests on {found} logged learning rate{'s' * (found > 1)}"
            )
    others = [name for name in adapter_tensors(sources[-1].folder) if not is_lora_weight(name)]
    if others:
        biases = sum(name.endswith("bias") for name in others)
        notes.append(
            f"the adapter also sets {biases} biases and {len(others) - biases} other weights (modules_to_save): "
            "they are applied, but no gradients are taken for them"
        )
    return notes


def checkpoint_folders(source: Path) -> list[Path]:
    """The folders that `adopt` would take from a training, in their order. Raises SiftuneError where there is none."""
    return [item.folder for item in _sources(source)]


def template_folder(source: Path) -> Path | None:
    """Where the chat template of a training's last checkpoint lies, for `load_tokenizer(template_from=…)`; None where none was saved."""
    return _template_dir(_sources(source)[-1].folder)


def _template_dir(folder: Path) -> Path | None:
    """The folder itself where a chat template lies in it, for `load_tokenizer(template_from=…)`."""
    if (folder / "chat_template.jinja").is_file():
        return folder
    config = folder / "tokenizer_config.json"
    return folder if config.is_file() and read_object(config).get("chat_template") else None
