"""The loss of each example of a batch: the mean of -log p over its trained tokens, in fp32."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from torch.nn import functional


def losses(model: nn.Module, ids_B_T: Tensor, trained_B_T: Tensor) -> Tensor:
    """Mean loss [B] over each row's trained tokens; rows are padded on the right with any token.

    No attention mask is needed: causal attention never looks right, and padding carries no loss. Logits are made only
    where some row of the batch predicts a trained token, if the model offers it (`logits_to_keep`).
    """
    predicts_B_T = trained_B_T[:, 1:]  # position t predicts token t + 1
    options: dict[str, Tensor] = {}
    kept_K = predicts_B_T.any(dim=0).nonzero().squeeze(1)
    if takes_logits_to_keep(model):
        options["logits_to_keep"] = kept_K
    logits_B_K_V = model(input_ids=ids_B_T, use_cache=False, **options).logits
    if not options:
        logits_B_K_V = logits_B_K_V[:, kept_K]
    row_M, k_M = predicts_B_T[:, kept_K].nonzero(as_tuple=True)
    label_M = ids_B_T[:, 1:][:, kept_K][row_M, k_M]
    loss_M = functional.cross_entropy(logits_B_K_V[row_M, k_M].float(), label_M, reduction="none")
    n_B = predicts_B_T.sum(dim=1)
    return torch.zeros(len(ids_B_T), device=loss_M.device).index_add(0, row_M, loss_M) / n_B


def takes_logits_to_keep(model: nn.Module) -> bool:
    """Does the model's own forward accept `logits_to_keep` (a PeftModel passes it on)?"""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    return "logits_to_keep" in inspect.signature(base.forward).parameters  # pyright: ignore[reportAttributeAccessIssue]
