"""What a model answers by itself: greedy generation, many prompts at a time.

At each step every prompt is continued by its most probable next token, until the end of the turn or `max_new_tokens`.
Nothing else has a say: sampling, penalties and limits in the model's own generation settings are put aside. Prompts of a
batch are padded on the left, masked and counted in positions from their own first token, so that batch mates change an
answer by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import GenerationConfig

from siftune.chat.batches import token_batches
from siftune.chat.encoder import ChatEncoder
from siftune.model.load import quiet_transformers
from siftune.proof.prompts import Prompts
from siftune.records.errors import SiftuneError
from siftune.records.example import Example

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

# A token costs its keys and values alone here, a tenth or less of what a gradient keeps of it.
_TOKENS = 4


class Written(NamedTuple):
    """A generated answer without its end-of-turn; `cut`: max_new_tokens came first."""

    text: str
    cut: bool


def generate(
    model: nn.Module,
    encoder: ChatEncoder,
    rows: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_tokens: int,
    on_rows: Callable[[int], None] = lambda n: None,
) -> list[Written]:
    """The answers to rows, in their order, asked with the encoder's tokenizer and template.

    batch_tokens: padded tokens of a batch in training; here a batch holds four times as many, prompt and answer
    on_rows: told the number of rows just answered
    Raises SiftuneError naming a row that can't be asked or has no room in the model's positions.
    """
    if not rows:
        return []
    model.eval()
    # PEFT's own `generate` would bring back the generation settings that are put aside here.
    bare: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    device = next(bare.parameters()).device
    tokenizer = encoder._tokenizer
    prompts = Prompts(tokenizer)
    asked = [prompts(row) for row in rows]
    _check_room(bare, rows, [len(ids) for ids in asked], max_new_tokens)

    settings = _greedy(bare, tokenizer, prompts, max_new_tokens)
    ends = torch.tensor(settings.eos_token_id or [], dtype=torch.long)
    stop = {"tokenizer": tokenizer} if settings.stop_strings else {}
    written: list[Written | None] = [None] * len(rows)
    for batch in token_batches([len(ids) + max_new_tokens for ids in asked], _TOKENS * batch_tokens):
        longest = max(len(asked[i]) for i in batch)
        ids_B_T = torch.full((len(batch), longest), settings.pad_token_id)
        mask_B_T = torch.zeros_like(ids_B_T)
        for b, i in enumerate(batch):
            ids_B_T[b, longest - len(asked[i]) :] = torch.from_numpy(asked[i])
            mask_B_T[b, longest - len(asked[i]) :] = 1
        with torch.inference_mode(), _only(settings, bare), quiet_transformers():
            output_B_T = bare.generate(
                ids_B_T.to(device), attention_mask=mask_B_T.to(device), generation_config=settings, **stop
            )
        for i, new_T in zip(batch, output_B_T[:, longest:].cpu(), strict=True):
            written[i] = _until_end(new_T, ends, prompts.ending, tokenizer)
        on_rows(len(batch))
    return [one for one in written if one is not None]


def _greedy(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, max_new_tokens: int
) -> GenerationConfig:
    own = model.generation_config.eos_token_id
    ends = prompts.end_ids | set([] if own is None else [own] if isinstance(own, int) else own)
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        stop_strings=None if prompts.ending is None else [prompts.ending],
    )


@contextmanager
def _only(settings: GenerationConfig, model: Any) -> Iterator[None]:
    """The model's own settings out of the way: Transformers takes from them whatever is not set to a value."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _until_end(
    new_T: torch.Tensor, ends: torch.Tensor, ending: str | None, tokenizer: PreTrainedTokenizerBase
) -> Written:
    found = torch.isin(new_T, ends).nonzero()
    said = new_T[: int(found[0])] if len(found) else new_T
    text = str(tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if ending is not None and ending in text:
        return Written(text.partition(ending)[0], cut=False)
    return Written(text, cut=not len(found))


def _check_room(model: Any, rows: Sequence[Example], lengths: Sequence[int], max_new_tokens: int) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for row, length in zip(rows, lengths, strict=True):
        if positions is not None and length + max_new_tokens > positions:
            raise SiftuneError(
                f"this test row's prompt of {length} tokens and an answer of {max_new_tokens} exceed the model's "
                f"{positions} positions",
                where=row.where,
                todo="Lower --max-new-tokens, remove the row, or give --no-generate",
            )
