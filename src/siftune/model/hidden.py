"""A row as one vector: the last hidden states of a causal model, averaged over the row's tokens (one forward pass, no logits).

vector = Σ_t w_t h_t / |Σ_t w_t h_t|        h_t: state of token t after the body's final norm, t = 1 … T

mean      w_t = 1 / T
position  w_t = t / Σ_t t       later tokens have seen more of the row (RDS+, Ivison et al., arXiv 2503.01807)
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from siftune.records.errors import SiftuneError

Weighting = Literal["mean", "position"]


@torch.no_grad()
def pooled_states(
    model: PreTrainedModel, ids_B_T: np.ndarray, lengths_B: np.ndarray, weighting: Weighting
) -> np.ndarray:
    """Unit vectors [B, H], fp32, of B rows padded on the right with any token; `lengths_B` says where padding starts.

    All tokens of a row count, prompt and answer; padding never does, and needs no attention mask: causal attention never
    looks right. Sums are fp32 whatever the model's dtype. A row whose states are not finite comes out as NaN.
    """
    ids = torch.from_numpy(ids_B_T).to(model.device, torch.long)
    lengths = torch.from_numpy(lengths_B).to(model.device)
    output = _body(model)(input_ids=ids, use_cache=False)
    place_T = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    inside_B_T = place_T <= lengths[:, None]
    weight_B_T = inside_B_T.float() if weighting == "mean" else inside_B_T * place_T.float()
    weight_B_T /= weight_B_T.sum(dim=1, keepdim=True)
    # padding may hold NaN or infinity, which a weight of zero would not remove
    states_B_T_H = output.last_hidden_state.float().masked_fill(~inside_B_T[..., None], 0)
    return unit_rows(torch.einsum("bt,bth->bh", weight_B_T, states_B_T_H))


def state_size(model: PreTrainedModel) -> int:
    """H: what the head takes in, which for a few models (OPT 350M) isn't the configuration's `hidden_size`."""
    head: Any = model.get_output_embeddings()
    return head.in_features


def unit_rows(vectors_B_H: Tensor) -> np.ndarray:
    """Each row at length 1, fp32; NaN where it has no direction (not finite, or zero)."""
    length_B = torch.linalg.vector_norm(vectors_B_H, dim=1)
    unit_B_H = vectors_B_H / length_B[:, None]
    unit_B_H[~torch.isfinite(length_B)] = torch.nan
    return unit_B_H.cpu().numpy()


def _body(model: PreTrainedModel) -> nn.Module:
    """The model without its language-model head. Its `last_hidden_state` is what `hidden_states[-1]` of the whole gives."""
    # `base_model` isn't used: some architectures (Llama 4) give their body another name than the one it looks for
    bodies = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if len(bodies) != 1:
        raise SiftuneError(
            f"a {type(model).__name__} can't be run without its language-model head",
            where="model",
            todo="Use --method less or bm25 with this model",
        )
    return bodies[0]
