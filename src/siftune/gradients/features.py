"""Features: the directions of a batch of examples, projected parameter by parameter in the backward pass, then normalised."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.linalg import vector_norm

from siftune.gradients.capture import adapted_layers, captured, layers_checkpointed
from siftune.gradients.directions import AdamState, direction
from siftune.gradients.loss import causal_model, losses, try_head
from siftune.gradients.projection import Projector
from siftune.model.attention import quick_attention
from siftune.model.lora import check_supported, lora_parameters
from siftune.records.errors import SiftuneError
from siftune.records.recipe import Direction

FP16_SCALE = 16.0
"""What a token's loss is multiplied by in the backward pass of a model in fp16, see `_lift`."""
PART_NUMBERS_CPU, PART_NUMBERS = 2**20, 2**24
"""Numbers of one parameter's gradients that are turned into directions at a time: 4 MiB a temporary stays in a CPU's cache from the
norm to the sketch; 64 MiB keeps a GPU busy."""


class FeatureBatch(NamedTuple):
    """What a batch of B examples gave, fp32, in the order of the batch. Norms are before normalisation.

    A row whose loss, gradient or direction is not finite, or whose projection is zero, has no feature: its row of
    `features_B_D` is NaN, and its numbers say why.
    """

    features_B_D: np.ndarray
    loss_B: np.ndarray
    grad_norm_B: np.ndarray
    direction_norm_B: np.ndarray
    projection_norm_B: np.ndarray


class FeatureExtractor:
    """Turns batches of token rows into features under one checkpoint.

    model:     with the checkpoint's adapter loaded and active; it is put into eval mode (LoRA dropout off) and its weights frozen
    projector: the run's projection
    state:     the checkpoint's Adam moments; None allows only the directions `sgd` and `sign`
    Raises SiftuneError where the adapter is not plain LoRA.
    """

    def __init__(
        self,
        model: PeftModel,
        projector: Projector,
        state: AdamState | None,
        *,
        gradient_checkpointing: bool = False,
    ):
        check_supported(model)
        self.model = model.eval().requires_grad_(False)
        self.layers = adapted_layers(model)
        self.shapes = {
            name: parameter.shape
            for name, parameter in lora_parameters(model).items()
            if name.rpartition(".lora_")[0] in self.layers
        }
        try_head(model)
        self.projector, self.state = projector, state
        self.gradient_checkpointing = gradient_checkpointing
        self.unreached: list[str] = []
        """Parameters that the last batch never came to."""
        self.device = next(model.parameters()).device

    def __call__(self, ids_B_T: np.ndarray, trained_B_T: np.ndarray, kind: Direction) -> FeatureBatch:
        """Features of B rows, padded on the right. `trained_B_T[b, t]`: token t of row b carries loss."""
        ids = torch.from_numpy(ids_B_T).to(self.device, torch.long)
        trained = torch.from_numpy(trained_B_T).to(self.device)
        lift_B = _lift(self.model, trained)
        batch = BatchSums(lift_B, self, kind)
        with (
            captured(self.layers, (ids.shape[0], ids.shape[1]), batch.take),
            layers_checkpointed(self.model, self.gradient_checkpointing),
            quick_attention(causal_model(self.model)),
        ):
            loss_B = losses(self.model, ids, trained)
            (loss_B * lift_B).sum().backward()
        self.unreached = batch.take_unused()
        return batch.result(loss_B.detach())


class BatchSums:
    """Adds up one backward pass in one direction: `take` is a Sink for `captured`, `result` what the batch gave.

    lift_B: what each row's loss was multiplied by for the backward pass
    """

    def __init__(self, lift_B: Tensor, extractor: FeatureExtractor, kind: Direction):
        device, n_rows = extractor.device, len(lift_B)
        self.extractor, self.n_rows = extractor, n_rows
        self.lift_B, self.lifted = lift_B, bool((lift_B != 1).any())
        self.kind: Direction = kind
        self.sums_B_S = extractor.projector.sums(n_rows, device)
        self.grad_norm_K_B = torch.zeros(len(extractor.shapes), n_rows, device=device)
        self.direction_norm_K_B = torch.zeros_like(self.grad_norm_K_B)
        self.taken: set[str] = set()

    @torch.no_grad()
    def take(self, name: str, gradient_B_O_I: Tensor) -> None:
        if name in self.taken:
            raise SiftuneError(
                f"the adapter at {name.removesuffix('.weight')} is used more than once in a forward pass",
                where="lora_targets",
                todo="Choose modules that belong to one layer only: shared layers are not supported",
            )
        k = len(self.taken)
        self.taken.add(name)
        gradient_B_P = gradient_B_O_I.flatten(1)
        on_cpu = self.extractor.device.type == "cpu"
        rows_at_once = max(1, (PART_NUMBERS_CPU if on_cpu else PART_NUMBERS) // gradient_B_P.shape[1])
        for first in range(0, self.n_rows, rows_at_once):
            part = slice(first, first + rows_at_once)
            g_B_P = gradient_B_P[part].float()
            if self.lifted:
                g_B_P = g_B_P / self.lift_B[part, None]
            d_B_P = direction(self.kind, name, g_B_P, self.extractor.state)
            self.grad_norm_K_B[k, part] = vector_norm(g_B_P, dim=1)
            if self.kind != "sgd":
                self.direction_norm_K_B[k, part] = vector_norm(d_B_P, dim=1)
            self.extractor.projector.add(name, d_B_P, self.sums_B_S[part])

    def take_unused(self) -> list[str]:
        """A parameter that the batch never reached has gradient zero, which Adam's history still moves. Returns their names."""
        unused = [name for name in self.extractor.shapes if name not in self.taken]
        for name in unused:
            shape = self.extractor.shapes[name]
            self.take(name, torch.zeros(self.n_rows, *shape, device=self.extractor.device))
        return unused

    def result(self, loss_B: Tensor) -> FeatureBatch:
        projected_B_D = self.extractor.projector.projected(self.sums_B_S)
        projection_norm_B = projected_B_D.norm(dim=1)
        grad_norm_B = _together(self.grad_norm_K_B)
        direction_norm_B = grad_norm_B if self.kind == "sgd" else _together(self.direction_norm_K_B)
        sound_B = torch.isfinite(loss_B) & torch.isfinite(projection_norm_B)
        sound_B &= torch.isfinite(grad_norm_B) & torch.isfinite(direction_norm_B)
        sound_B &= projection_norm_B > 0
        features_B_D = projected_B_D / projection_norm_B[:, None]
        features_B_D[~sound_B] = torch.nan
        return FeatureBatch(
            features_B_D.cpu().numpy(),
            loss_B.float().cpu().numpy(),
            grad_norm_B.float().cpu().numpy(),
            direction_norm_B.float().cpu().numpy(),
            projection_norm_B.cpu().numpy(),
        )


def _lift(model: PeftModel, trained_B_T: Tensor) -> Tensor:
    """What each row's loss is multiplied by for the backward pass, and its gradient divided by afterwards.

    1, but where activations are fp16: there a mean over many tokens would make each token's part too small for that format, so the
    loss is summed instead, some bits above the smallest numbers.
    """
    n_trained_B = trained_B_T[:, 1:].sum(dim=1).float()
    half = causal_model(model).dtype == torch.float16
    return n_trained_B * FP16_SCALE if half else torch.ones_like(n_trained_B)


def _together(norm_K_B: Tensor) -> Tensor:
    """Norms [B] (fp64) of vectors of which the norms of K parts are given."""
    return vector_norm(norm_K_B.double(), dim=0)
