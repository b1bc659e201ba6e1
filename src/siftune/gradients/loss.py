"""The loss of each example of a batch: the mean of -log p over its trained tokens, in fp32.

The head of a language model is a good part of its work, and its logits [B, T, V] are the largest thing it makes. So the body of
the model runs over the whole batch, and the head over the trained positions alone, a few hundred at a time: what a chunk of
logits says of the hidden states below is taken at once (∂loss/∂hidden), and the chunk forgotten.

The head is what the model itself does behind its body (scaling, soft caps): its own forward, with the body replaced by one that
hands in the chunk. Where that doesn't give the model's own logits, as a try on two tokens tells, all logits are made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

CHUNK = 2**25
"""Logits at a time: 128 MiB in fp32."""

Head = Callable[[Tensor], Tensor]
"""Hidden states [M, H] -> logits [M, V]."""
_HAS_HEAD: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def losses(model: nn.Module, ids_B_T: Tensor, trained_B_T: Tensor) -> Tensor:
    """Mean loss [B] over each row's trained tokens; rows are padded on the right with any token.

    No attention mask is needed: causal attention never looks right, and padding carries no loss. Gradients reach whatever
    lies below the head, not the head itself.
    """
    predicts_B_T = trained_B_T[:, 1:]  # position t predicts token t + 1
    row_M, t_M = predicts_B_T.nonzero(as_tuple=True)
    label_M = ids_B_T[:, 1:][row_M, t_M]
    causal = causal_model(model)
    if try_head(model):
        body_output = causal.base_model(input_ids=ids_B_T, use_cache=False)
        hidden_M_H = body_output.last_hidden_state[row_M, t_M]
        loss_M: Any = _HeadLoss.apply(
            hidden_M_H, _head(causal, type(body_output)), label_M, _vocabulary(causal)
        )
    else:
        loss_M = cross_entropy(
            model(input_ids=ids_B_T, use_cache=False).logits[row_M, t_M].float(), label_M, reduction="none"
        )
    return torch.zeros(len(ids_B_T), device=loss_M.device).index_add(0, row_M, loss_M) / predicts_B_T.sum(
        dim=1
    )


class _HeadLoss(torch.autograd.Function):
    """-log p of M labels, chunk by chunk; ∂loss/∂hidden is made on the way.

    ∂(-log p)/∂logits = softmax - one-hot takes the place of the exponentials, so that one chunk in fp32 is all there ever is.
    """

    @staticmethod
    def forward(ctx: Any, hidden_M_H: Tensor, head: Head, label_M: Tensor, vocabulary: int) -> Tensor:
        losses, slopes = [], []
        n = max(1, CHUNK // vocabulary)
        for hidden_m_H, label_m in zip(hidden_M_H.split(n), label_M.split(n), strict=True):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                hidden_m_H = hidden_m_H.detach().requires_grad_(ctx.needs_input_grad[0])
                logits_m_V = head(hidden_m_H)
            at_label = torch.arange(len(label_m), device=label_m.device), label_m
            p_m_V = logits_m_V.detach().to(torch.float32, copy=True)
            largest_m = p_m_V.amax(dim=1)
            logit_m = p_m_V[at_label] - largest_m
            total_m = p_m_V.sub_(largest_m[:, None]).exp_().sum(dim=1)
            losses.append(total_m.log() - logit_m)
            if ctx.needs_input_grad[0]:
                p_m_V.div_(total_m[:, None])[at_label] -= 1
                slopes += torch.autograd.grad(logits_m_V, hidden_m_H, p_m_V.to(logits_m_V.dtype))
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(losses) if losses else hidden_M_H.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slope_M_H,) = ctx.saved_tensors
        return slope_M_H * grads[0][:, None].to(slope_M_H.dtype), None, None, None


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The language model inside an adapted one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue, reportReturnType]


def try_head(model: nn.Module) -> bool:
    """Whether the model's head can be asked for by itself: tried once a model, on two tokens, before gradients are captured."""
    causal = causal_model(model)
    if causal not in _HAS_HEAD:
        ids = torch.zeros((1, 2), dtype=torch.long, device=next(causal.parameters()).device)
        # A 4-bit layer on a CPU that sees no need of gradients settles for inference, and gives none any more.
        states = causal.get_input_embeddings()(ids).detach().requires_grad_(True)
        _HAS_HEAD[causal] = _gives(causal, states)
    return _HAS_HEAD[causal]


def _gives(causal: PreTrainedModel, states_1_T_H: Tensor) -> bool:
    if causal.base_model is causal:
        return False
    expected_T_V = causal(inputs_embeds=states_1_T_H, use_cache=False).logits[0].detach()
    output = causal.base_model(inputs_embeds=states_1_T_H, use_cache=False)
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        return False
    try:
        found_T_V = _head(causal, type(output))(hidden[0].detach())
    except (AttributeError, TypeError, ValueError, IndexError):  # its forward looks inside its body
        return False
    return found_T_V.shape == expected_T_V.shape and torch.allclose(
        found_T_V.float(), expected_T_V.float(), rtol=1e-2, atol=1e-3
    )


def _head(causal: PreTrainedModel, output_type: type) -> Head:
    body = causal.base_model
    token = torch.zeros((1, 1), dtype=torch.long, device=next(causal.parameters()).device)

    def head(hidden_M_H: Tensor) -> Tensor:
        before = body.__dict__.get("forward")
        body.forward = lambda *args, **named: output_type(last_hidden_state=hidden_M_H[None])
        try:
            return causal(input_ids=token, use_cache=False).logits[0]
        finally:
            if before is None:
                del body.forward
            else:
                body.forward = before

    return head


def _vocabulary(causal: PreTrainedModel) -> int:
    return int(causal.config.get_text_config().vocab_size)


def takes_logits_to_keep(model: nn.Module) -> bool:
    """Does the model's own forward accept `logits_to_keep` (a PeftModel passes it on)?"""
    return "logits_to_keep" in inspect.signature(causal_model(model).forward).parameters
