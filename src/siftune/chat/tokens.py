"""From characters to tokens: which tokens of a text lie in which spans, or why that has no answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from siftune.chat.template import Span


@dataclass(frozen=True)
class Tokens:
    """A tokenised text: ids int32 [T], and for each token its characters [start, end), int64 [T] each.

    Starts close up on the ends before them: some tokenizers leave a word's leading space out of its offsets.
    Tokens that are bytes of one character all have that character's offsets.
    """

    text: str
    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Masked:
    """trained bool [T]; `shared` says which token holds whitespace of a role header too, or is None."""

    trained: np.ndarray
    shared: str | None


class Tokenise:
    """A fast tokenizer on rendered text: no special tokens added, nothing truncated or padded."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._backend: Tokenizer = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        self._split_special = bool(tokenizer.split_special_tokens)
        self._added_ids = frozenset(tokenizer.added_tokens_decoder)

    def __call__(self, text: str) -> Tokens:
        encoding = self._encode(text)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        ends = np.maximum.accumulate(offsets[:, 1]) if len(offsets) else offsets[:, 1]
        before = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        return Tokens(text, np.array(encoding.ids, dtype=np.int32), np.minimum(offsets[:, 0], before), ends)

    def describe(self) -> str:
        """Everything that decides token ids, as JSON text."""
        self._reset()
        return self._backend.to_str()

    def _encode(self, text: str) -> Encoding:
        self._reset()
        return self._backend.encode(text, add_special_tokens=False)

    def _reset(self) -> None:
        # These stay as whoever used the tokenizer last left them.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = self._split_special

    def trained(self, tokens: Tokens, spans: list[Span]) -> Masked | str:
        """The mask of the tokens inside the spans; the reason where a token lies across a span's edge.

        What lies outside may only be whitespace: the token holds the end-of-turn or the answer's first characters
        and is trained. An added token that swallowed the whitespace after it, as Phi-3's do, is the header's.
        """
        text, starts, ends, shared = tokens.text, tokens.starts, tokens.ends, None
        trained = np.zeros(len(tokens.ids), dtype=bool)
        for start, end in spans:
            first, last = np.searchsorted(ends, [start, end], side="right")
            while first > 0 and starts[first - 1] >= start:  # tokens without characters at the very start
                first -= 1
            while first < len(starts) and starts[first] < start < ends[first]:
                outside, inside = text[starts[first] : start], text[start : ends[first]]
                if int(tokens.ids[first]) in self._added_ids and inside.isspace():
                    first += 1
                    continue
                shared = f"the role header and the answer share a token ({(outside + inside)[:40]!r})"
                if not outside.isspace():
                    return shared
                break
            while last < len(starts) and starts[last] < end < ends[last]:
                if not text[end : ends[last]].isspace():
                    both = text[starts[last] : ends[last]]
                    return f"the end-of-turn and what follows it share a token ({both[:40]!r})"
                last += 1
            trained[first:last] = True
        return Masked(trained, shared)

    def start_disproved(self, tokens: Tokens, spans: list[Span]) -> str | None:
        """A reason if the text before some span, tokenised alone, is not how the tokens begin."""
        for start, _ in spans:
            alone = np.array(self._encode(tokens.text[:start]).ids, dtype=np.int32)
            if not np.array_equal(alone, tokens.ids[: len(alone)]):
                prompt = tokens.text[max(0, start - 30) : start]
                return f"the generation prompt ({prompt!r}) has other tokens when the answer follows"
        return None
