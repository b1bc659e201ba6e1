"""`siftune doctor --numerics`: do attention kernel, dtype or padding make a feature depend on what is beside its row?

A few rows of unlike lengths go through the model alone and without padding. The same rows then go in batches: all together,
in the other order with more padding of another token, the shortest beside the longest, and, where the model turns to other
positions for long inputs, padded to that length. A feature is a function of its row, so the batches may change it by rounding only.
That is measured for each attention implementation × dtype, with the adapter that a run would begin with; the B of a fresh one is
filled, since with B zero the gradient of A is zero and would hide whatever is wrong.

**What rounding may do.** A number of a dtype is off by up to eps/2 of itself, and a feature is what some 20 rounded results a layer
(forward and backward) lead to, one after the other. Independent errors add up as a root: eps/2 · sqrt(20 · layers) of the feature's
length. fp32 products round their sums too, which 16-bit kernels keep in fp32, and in another order for another shape: 8 times more.
SmolLM2-135M (30 layers) came to 0.085 in bf16, where this says 0.096, and to 4e-6 in fp32, where it says 1.2e-5. Thrice as much
is still called rounding. The cosine distance is half the square of the relative difference.
"""

from __future__ import annotations

import gc
import importlib.util
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from siftune.chat.batches import pad_batch
from siftune.chat.encoder import ChatEncoder
from siftune.gradients.features import FeatureExtractor
from siftune.gradients.projection import make_projector
from siftune.model.load import TORCH_DTYPE, Dtype, choose_dtype, load_model, quiet_transformers
from siftune.model.lora import adapter_on, add_lora, lora_parameters
from siftune.pipeline.machine import device_of, pin, settled
from siftune.pipeline.sample_rows import sample_rows
from siftune.records.errors import SiftuneError
from siftune.records.recipe import Recipe

N_ROWS = 5
LONGEST = 512
"""Rows of more tokens are not tried: minutes on a CPU."""
STEPS_A_LAYER, FP32_SUMS, MARGIN = 20, 8.0, 3.0

Tokens = tuple[np.ndarray, np.ndarray]
"""Token ids [T] and trained [T] of a row."""


class Batched(NamedTuple):
    """One way to put rows into a batch: which, how wide at least (tokens), filled up with which token."""

    what: str
    rows: list[int]
    width: int
    pad_id: int


class Finding(NamedTuple):
    """One attention implementation × dtype. Distances are the worst over rows and batches; NaN where a feature is not finite.

    cosine:    1 - cosine of a row's feature alone and in a batch
    norm:      relative difference of the direction's norm
    from_fp32: 1 - cosine of a row's feature alone and that of fp32 with eager attention: what the dtype itself costs
    allowed:   the cosine distance that rounding may make; the norm may differ by its relative difference, sqrt(2 · allowed)
    worst:     the batch in which it was
    """

    attn: str
    dtype: Dtype
    cosine: float
    norm: float
    from_fp32: float
    allowed: float
    worst: str

    @property
    def within_rounding(self) -> bool:
        """Is what was measured no more than rounding may do?"""
        return self.cosine <= self.allowed and self.norm <= math.sqrt(2 * self.allowed)  # False for NaN


class Numerics(NamedTuple):
    """What was found: `findings`; `lengths` of the rows in tokens; `default`, which of the findings a run with these settings works by;
    `left_out`: why an attention implementation was not tried."""

    findings: list[Finding]
    lengths: list[int]
    default: Finding
    left_out: dict[str, str]

    def sound(self, finding: Finding) -> bool:
        """Does a feature depend on its row alone? Coarse numbers can hide what fine ones show, so fp32 has its say for all dtypes."""
        same = [f for f in self.findings if f.attn == finding.attn and f.dtype in ("fp32", finding.dtype)]
        return all(f.within_rounding for f in same)

    @property
    def advice(self) -> str:
        """Options that make features independent of batch-mates; empty where the run's own settings do."""
        if self.sound(self.default):
            return ""
        nearest = sorted(
            (found for found in self.findings if self.sound(found)),
            key=lambda found: (found.dtype != self.default.dtype, found.attn != self.default.attn),
        )
        if nearest:
            return f"--attn {nearest[0].attn} --dtype {nearest[0].dtype}"
        return "--batch-tokens 1"  # every row in a batch of its own, without padding

    def as_values(self) -> dict[str, Any]:
        """For `--json`; a distance that is not finite is null."""
        tried = []
        for finding in self.findings:
            numbers = {
                name: value if math.isfinite(value) else None
                for name, value in zip(("cosine", "norm", "from_fp32", "allowed"), finding[2:6], strict=True)
            }
            about = {"attn": finding.attn, "dtype": finding.dtype, "sound": self.sound(finding)}
            tried.append({**about, **numbers, "worst": finding.worst})
        own = {"attn": self.default.attn, "dtype": self.default.dtype}
        return {
            "lengths": self.lengths,
            "tried": tried,
            "left_out": self.left_out,
            "own": own,
            "advice": self.advice,
        }


def look_at_numerics(recipe: Recipe, encoder: ChatEncoder) -> Numerics:
    """Measure what a run with this recipe would work by, and every other combination that the machine and the model offer.

    Raises SiftuneError where the model, its adapter or the attention implementation that was asked for can't be had, or
    memory does not hold the model in fp32.
    """
    decided, _ = settled(recipe)
    pin(decided)
    try:
        return _measured(recipe, decided, encoder)
    except torch.OutOfMemoryError as error:
        raise SiftuneError(
            "its memory does not hold the model in fp32, with which the others are compared",
            where=f"device: {decided.device}",
            todo="Give --device cpu, or a larger one",
        ) from error


def _measured(recipe: Recipe, decided: Recipe, encoder: ChatEncoder) -> Numerics:
    longest = min(LONGEST, decided.max_length)
    rows = sample_rows(recipe.pool, encoder, n_rows=N_ROWS, longest=longest)
    with _adapted(decided, "fp32", "eager") as model:
        truth_V_D, _ = _alone(_extractor(model, decided), rows)
    findings: list[Finding] = []
    left_out: dict[str, str] = {}
    for dtype in _dtypes(recipe, decided):
        for attn in [recipe.attn, *_attentions()]:  # None is Transformers' own choice
            if dtype == "fp32" and "flash" in str(attn):
                continue  # it takes 16 bits alone
            if attn in left_out or any((attn, dtype) == (f.attn, f.dtype) for f in findings):
                continue
            try:
                model = None  # two of them may not fit
                gc.collect()
                with _adapted(decided, dtype, attn) as model:
                    findings.append(_finding(model, decided, dtype, rows, truth_V_D))
            except SiftuneError as error:
                if not findings or attn is None:
                    raise
                left_out[attn] = error.what
    return Numerics(findings, [len(ids) for ids, _ in rows], findings[0], left_out)


def rounding(dtype: Dtype, n_layers: int) -> float:
    """The relative difference of a feature that rounding may make in a model of so many layers, see the module's head."""
    half_step = torch.finfo(TORCH_DTYPE[dtype]).eps / 2
    sums = FP32_SUMS if dtype == "fp32" else 1.0
    return MARGIN * sums * half_step * float(np.sqrt(STEPS_A_LAYER * n_layers))


def batches_of(lengths: Sequence[int], positions: int, turns_at: int | None) -> list[Batched]:
    """The batches that rows of these lengths, shortest first, are tried in.

    positions: widest batch that there may be; turns_at: tokens beyond which a whole batch gets other positions
    """
    everyone, widest = list(range(len(lengths))), max(lengths)
    tried = [
        Batched("all rows together", everyone, widest, 0),
        Batched("the other order, more padding", everyone[::-1], min(widest + 7, positions), 1),
        Batched("the shortest beside the longest", [0, everyone[-1]], widest, 0),
    ]
    if turns_at is not None and widest <= turns_at:
        tried.append(Batched(f"padded to {turns_at + 1} tokens", [0], turns_at + 1, 0))
    return tried


def _finding(
    model: PeftModel, recipe: Recipe, dtype: Dtype, rows: list[Tokens], truth_V_D: np.ndarray
) -> Finding:
    extractor = _extractor(model, recipe)
    alone_V_D, norm_V = _alone(extractor, rows)
    cosine, norm, worst = 0.0, 0.0, ""
    lengths = [len(ids) for ids, _ in rows]
    for what, some, width, pad_id in batches_of(lengths, recipe.max_length, _turns_at(model, recipe)):
        ids_B_T, trained_B_T, _ = pad_batch([rows[v] for v in some], pad_id)
        more = ((0, 0), (0, width - ids_B_T.shape[1]))
        batch = extractor(np.pad(ids_B_T, more, constant_values=pad_id), np.pad(trained_B_T, more), "sgd")
        far = _worst_distance(batch.features_B_D, alone_V_D[some])
        if math.isnan(far) or far > cosine:  # NaN is the worst of all, and nothing is more
            cosine, worst = far, what
        norm = float(np.max([norm, *np.abs(batch.direction_norm_B / norm_V[some] - 1)]))
    allowed = rounding(dtype, _n_layers(model)) ** 2 / 2
    from_fp32 = _worst_distance(alone_V_D, truth_V_D)
    return Finding(_attn_of(model), dtype, cosine, norm, from_fp32, allowed, worst)


def _alone(extractor: FeatureExtractor, rows: list[Tokens]) -> tuple[np.ndarray, np.ndarray]:
    """Features [V, D] and direction norms [V] of rows, each in a batch of its own without padding."""
    made = [extractor(*pad_batch([row], 0)[:2], "sgd") for row in rows]
    return np.concatenate([m.features_B_D for m in made]), np.concatenate([m.direction_norm_B for m in made])


def _worst_distance(one_B_D: np.ndarray, other_B_D: np.ndarray) -> float:
    """The largest 1 - cosine of unit rows, by their difference: 1 - x·y has no digits left where it is small."""
    return float(np.max(np.square(one_B_D - other_B_D, dtype=np.float64).sum(axis=1) / 2))


@contextmanager
def _adapted(recipe: Recipe, dtype: Dtype, attn: str | None) -> Iterator[PeftModel]:
    """The model with the adapter that a run would begin with, for the length of a block; then it is let go."""
    assert recipe.model is not None
    base = load_model(
        recipe.model,
        revision=recipe.revision,
        dtype=dtype,
        attn=attn,
        quantize=recipe.quantize,
        device=device_of(recipe),
    )
    with quiet_transformers():
        if recipe.adapter:
            with adapter_on(base, Path(recipe.adapter), trainable=False) as model:
                yield model
        else:
            yield _fresh(base, recipe)


def _fresh(base: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """The recipe's LoRA, its B filled so that its products are of the size of A's: as after some training."""
    model = add_lora(
        base,
        rank=recipe.rank,
        alpha=recipe.alpha,
        dropout=0.0,
        targets=recipe.lora_targets,
        seed=recipe.seed,
    )
    draw = torch.Generator().manual_seed(0)
    for name, weight in lora_parameters(model).items():
        if ".lora_B." in name:
            weight.data = (torch.randn(weight.shape, generator=draw) * 0.02).to(weight.device)
    return model


def _extractor(model: PeftModel, recipe: Recipe) -> FeatureExtractor:
    sizes = {name: weight.numel() for name, weight in lora_parameters(model).items()}
    projector = make_projector(recipe.projection, sizes, recipe.features, recipe.seed)
    return FeatureExtractor(model, projector, None)


def _dtypes(recipe: Recipe, decided: Recipe) -> list[Dtype]:
    """The run's own, then the others that this machine is quick in."""
    device = device_of(decided)
    found: list[Dtype] = [choose_dtype(setting, device)[0] for setting in (recipe.dtype, "auto", "fp32")]
    if device.type == "cuda":
        found.append("fp16")
    return list(dict.fromkeys(found))


def _attentions() -> list[str]:
    flash = ["flash_attention_2"] if importlib.util.find_spec("flash_attn") else []
    return ["sdpa", "eager", *flash]


def _config(model: PeftModel) -> Any:
    """The base's configuration, which torch's types don't know of."""
    return model.get_base_model().config


def _attn_of(model: PeftModel) -> str:
    return str(_config(model)._attn_implementation)


def _n_layers(model: PeftModel) -> int:
    return int(_config(model).get_text_config().num_hidden_layers)


def _turns_at(model: PeftModel, recipe: Recipe) -> int | None:
    """Tokens beyond which the model uses other positions for a whole batch (longrope), where a run could come there."""
    rope = getattr(_config(model).get_text_config(), "rope_parameters", None) or {}
    turn = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
    return turn if turn is not None and turn < recipe.max_length else None
