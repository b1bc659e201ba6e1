"""Losses of sequences that share a beginning, as the options of a row share their prompt: the beginning is run once.

The keys and values of the beginning are copied to each sequence, which goes on from them. What is shared is the longest
common beginning of the token sequences themselves, short of the first trained token; nothing is assumed about how a
prompt alone would be tokenised. In a batch every beginning is cut to the shortest one, so that none needs padding.
Going on from kept keys and values is the same sum in another order: results differ by rounding only.

A model that keeps more of a text than keys and values (a recurrent state), or whose positions depend on the length of
the whole text, has nothing shared: its sequences are run whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from siftune.chat.batches import pad_batch
from siftune.chat.encoder import Encoded
from siftune.gradients.loss import losses, takes_logits_to_keep

# Beginnings of a batch differ by this at most: a token cut off is run again for every option.
_SPREAD = 8

Place = tuple[int, int]
"""(group, sequence in the group)"""


@torch.inference_mode()
def mean_losses(
    model: nn.Module,
    groups: Sequence[Sequence[Encoded]],
    batch_tokens: int,
    on_group: Callable[[int], None] = lambda group: None,
) -> list[list[float]]:
    """The mean loss over the trained tokens of every sequence of every group; those of a group share their beginning.

    batch_tokens: padded tokens of a batch; a group that needs more goes alone
    on_group: told the number of each group that is done
    """
    model.eval()
    device = next(model.parameters()).device
    result = [[math.nan] * len(group) for group in groups]
    missing = [len(group) for group in groups]
    for shared, batch in _batches(groups, _continues(model), batch_tokens):
        places = [place for unit in batch for place in unit.places]
        sequences = [groups[g][k] for g, k in places]
        ids, trained, _ = pad_batch([(s.token_ids[shared:], s.trained[shared:]) for s in sequences], 0)
        tails, labels = torch.from_numpy(ids).to(device), torch.from_numpy(trained).to(device)
        if shared:
            starts = np.stack([groups[unit.places[0][0]][0].token_ids[:shared] for unit in batch])
            copies = torch.tensor([len(unit.places) for unit in batch], device=device)
            cache = _run_beginnings(model, torch.from_numpy(starts).long().to(device), copies)
            found = _losses_after(model, cache, tails, labels)
        else:
            found = losses(model, tails, labels)
        for (g, k), loss in zip(places, found.tolist(), strict=True):
            result[g][k] = loss
            missing[g] -= 1
            if not missing[g]:
                on_group(g)
    return result


class _Unit(NamedTuple):
    """Sequences that go through the model together: those of a group with a shared beginning, or a single one."""

    shared: int
    longest: int
    places: list[Place]


def _batches(
    groups: Sequence[Sequence[Encoded]], continues: bool, batch_tokens: int
) -> Iterator[tuple[int, list[_Unit]]]:
    """(tokens shared, units) of each batch, longest beginnings first, then longest sequences first."""
    units: list[_Unit] = []
    for g, group in enumerate(groups):
        if continues and (shared := _shared(group)):
            longest = max(len(sequence.token_ids) for sequence in group)
            units.append(_Unit(shared, longest, [(g, k) for k in range(len(group))]))
        else:
            units += [_Unit(0, len(sequence.token_ids), [(g, k)]) for k, sequence in enumerate(group)]

    batch: list[_Unit] = []
    for unit in sorted(units, key=lambda unit: (-unit.shared, -unit.longest)):
        if batch and (
            _area([*batch, unit]) > batch_tokens
            or batch[0].shared - unit.shared > _SPREAD
            or bool(batch[0].shared) != bool(unit.shared)
        ):
            yield batch[-1].shared, batch
            batch = []
        batch.append(unit)
    if batch:
        yield batch[-1].shared, batch


def _area(batch: Sequence[_Unit]) -> int:
    """Padded tokens that a batch runs: beginnings once, then what follows them in each sequence."""
    shared = batch[-1].shared
    longest = max(unit.longest for unit in batch) - shared
    return len(batch) * shared + longest * sum(len(unit.places) for unit in batch)


def _shared(group: Sequence[Encoded]) -> int:
    """Tokens to run once: all but the last of those that come before any difference and any trained token."""
    if len(group) == 1:
        return 0
    first = min(int(sequence.trained.argmax()) for sequence in group)
    beginnings = np.stack([sequence.token_ids[:first] for sequence in group])
    differ = (beginnings != beginnings[0]).any(axis=0)
    return max(0, (int(differ.argmax()) if differ.any() else first) - 1)


def _continues(model: nn.Module) -> bool:
    """Whether going on from the keys and values of a beginning is the same as running the whole text."""
    config = model.config.get_text_config()  # pyright: ignore[reportCallIssue,reportAttributeAccessIssue]
    if any(kind in str(getattr(config, "rope_parameters", None)) for kind in ("dynamic", "longrope")):
        return False
    probe = torch.zeros((1, 2), dtype=torch.long, device=next(model.parameters()).device)
    cache = getattr(model(input_ids=probe, use_cache=True), "past_key_values", None)
    # Exactly these kinds: some that hold a state as well derive from them.
    return isinstance(cache, DynamicCache) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )


def _run_beginnings(model: nn.Module, ids_B_T: Tensor, copies_B: Tensor) -> DynamicCache:
    """The keys and values of each beginning, as many times as sequences go on from it."""
    one_logit: dict[str, Any] = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    cache = model(input_ids=ids_B_T, use_cache=True, **one_logit).past_key_values
    cache.batch_select_indices(
        torch.repeat_interleave(torch.arange(len(ids_B_T), device=ids_B_T.device), copies_B)
    )
    return cache


def _losses_after(model: nn.Module, cache: DynamicCache, ids_B_T: Tensor, trained_B_T: Tensor) -> Tensor:
    """Mean loss [B] over the trained tokens of sequences that go on from `cache`."""
    logits_B_T_V = model(input_ids=ids_B_T, past_key_values=cache, use_cache=True).logits
    row_M, t_M = trained_B_T[:, 1:].nonzero(as_tuple=True)
    loss_M = functional.cross_entropy(
        logits_B_T_V[row_M, t_M].float(), ids_B_T[row_M, t_M + 1], reduction="none"
    )
    n_B = trained_B_T.sum(dim=1)
    return torch.zeros(len(ids_B_T), device=loss_M.device).index_add(0, row_M, loss_M) / n_B
