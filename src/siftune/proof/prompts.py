"""What a model is given to answer, and what shows that it has answered.

A prompt is the turns before the last assistant turn, rendered by the chat template with its generation prompt: the same
rendering as in training, so that the model is asked in the form it learned. The answer ends at the end-of-turn that the
template writes, or at a token that the tokenizer or the model's generation settings name as an end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from siftune.chat.encoder import default_template, template_texts
from siftune.chat.template import Renderer, RenderError, learn_shape
from siftune.chat.tokens import Tokenise
from siftune.records.errors import SiftuneError
from siftune.records.example import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prompts:
    """Prompts of one tokenizer and its chat template.

    end_ids: token ids that end an answer, as far as the tokenizer and its template tell
    ending:  the end-of-turn as text where it is no special token of this tokenizer, else None
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        special = {
            name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
        }
        self._renderers = {
            name: Renderer(default_template(tokenizer) if text is None else text, special)
            for name, text in template_texts(tokenizer).items()
        }
        self._tokenise = Tokenise(tokenizer)
        added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        ending = learn_shape(self._renderers["default"], list(added.values())).ending
        ids = set(self._tokenise(ending).ids.tolist())
        self.ending = None if ids <= added.keys() else ending
        self.end_ids = set() if self.ending else ids
        if tokenizer.eos_token_id is not None:
            self.end_ids.add(tokenizer.eos_token_id)

    def __call__(self, row: Example) -> np.ndarray:
        """Token ids int32 [T] of the row's prompt. SiftuneError where the template will not render it."""
        tools = row.tools or None
        render = self._renderers["tool_use" if tools and "tool_use" in self._renderers else "default"]
        # Many templates take a None or an empty list for a value.
        turns = [
            {key: value for key, value in turn.items() if value is not None and value != []}
            for turn in before_answer(row)
        ]
        try:
            text = render(turns, tools, prompt=True)
        except RenderError as error:
            raise _unusable(str(error), row) from error
        ids = self._tokenise(text).ids
        if not len(ids):
            raise _unusable("nothing comes before its answer", row)
        return ids


def before_answer(row: Example) -> list[Message]:
    """The turns before the last assistant turn; all of them where there is none."""
    last = max((i for i, turn in enumerate(row.messages) if turn["role"] == "assistant"), default=None)
    return row.messages[:last]


def _unusable(reason: str, row: Example) -> SiftuneError:
    return SiftuneError(
        f"this test row can't be asked: {reason}", where=row.where, todo="Correct or remove the row"
    )
