"""An encoded example for people: its text with the trained tokens marked."""

from __future__ import annotations

import numpy as np
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from siftune.chat.encoder import Encoded
from siftune.records.text import shown


def show(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, *, colour: bool = True) -> Text:
    """The decoded tokens, the trained ones in green, or between ⟦ and ⟧ where there is no colour.

    Control characters are written as escapes, so that nothing in the data acts on the terminal.
    """
    text = Text()
    edges = np.flatnonzero(np.diff(encoded.trained.astype(np.int8), prepend=-1))
    for start, end in zip(edges, [*edges[1:], len(encoded.token_ids)], strict=True):
        piece = shown(
            str(tokenizer.decode(encoded.token_ids[start:end].tolist(), skip_special_tokens=False)), keep="\n"
        )
        if not encoded.trained[start]:
            text.append(piece, style="dim" if colour else "")
        elif colour:
            text.append(piece, style="bold green")
        else:
            text.append(f"⟦{piece}⟧")
    return text
