"""An example to token ids and the mask of its trained tokens, or the reason why that cannot be done exactly.

Trained are the assistant's words, tool calls included, and its end-of-turn; not role headers, not the newline after
the end-of-turn. Where they are is found on the rendered text, then carried to tokens by character offsets, in one of
three ways:

1. `generation`: the template marks them itself. `generation+end` where its markers leave the end-of-turn outside.
2. `known`: the template is one we know by its hash, with a training variant that renders the same text.
3. `prefix`: rendering prefixes of the conversation proves them, turn by turn.

`+shared` is added where an answer begins with whitespace that the tokenizer joins with the newline of the role header:
that one token is trained, as trainers do. The third way refuses such a row instead.

A model without a template gets a default one that marks them (way `default template`).

A text in a conversation that looks like a special token becomes that token, as in every trainer that tokenises a
rendered chat; the mask is found by position and stays right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from siftune.chat.known import training_variant
from siftune.chat.marked import marked_spans, marks_the_question
from siftune.chat.prefix import prefix_spans, unsaid_call
from siftune.chat.template import DEFAULT_TEMPLATE, MARKERS, Renderer, RenderError, Span, learn_shape
from siftune.chat.tokens import Tokenise
from siftune.records.errors import SiftuneError
from siftune.records.example import Example, Message
from siftune.records.files import digest_of

Mask = Literal["auto", "generation", "known", "prefix"]
TooLong = Literal["truncate", "quarantine"]

# Part of the fingerprint: raise it when the same template and tokenizer would give other ids or masks than before.
_RULES = 1


@dataclass(frozen=True)
class Encoded:
    """An example as a model sees it.

    token_ids: int32 [T]
    trained:   bool [T]; trained[t] = token t carries loss as a label, predicted from the tokens before it.
               Position 0 is never trained
    way:       how the trained tokens were found
    truncated: whether the end was cut off at max_length
    """

    token_ids: np.ndarray
    trained: np.ndarray
    way: str
    truncated: bool


class ChatEncoder:
    """Encodes conversations with one tokenizer and its chat template.

    max_length: longest row in tokens
    too_long:   `truncate` cuts a longer row at its end, as trainers do; `quarantine` refuses it
    mask:       `auto` tries the ways in order, row by row; a named way uses that one alone

    Raises SiftuneError where the template lacks the named way, or the tokenizer what the ways need.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        too_long: TooLong = "truncate",
        mask: Mask = "auto",
    ):
        if not tokenizer.is_fast:
            raise SiftuneError(
                f"{type(tokenizer).__name__} is a slow tokenizer: it cannot say which characters a token comes from",
                todo="Use a model whose tokenizer has a tokenizer.json (a fast tokenizer)",
            )
        if max_length < 2:
            raise SiftuneError(
                "leaves no room for a trained token",
                where=f"max_length: {max_length}",
                todo="Give at least 2",
            )
        self._tokenise = Tokenise(tokenizer)
        self._max_length = max_length
        self._too_long = too_long
        self._mask = mask
        self._tokenizer = tokenizer
        self._texts = template_texts(tokenizer)
        self._templates = {name: _Template(tokenizer, text, mask) for name, text in self._texts.items()}

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits of all that decides token ids and masks: tokenizer, template, these settings, our rules."""
        return digest_of(
            {
                "rules": _RULES,
                "tokenizer": self._tokenise.describe(),
                "split_special_tokens": bool(self._tokenizer.split_special_tokens),
                "special_tokens": _special_tokens(self._tokenizer),
                "templates": self._texts,
                "max_length": self._max_length,
                "too_long": self._too_long,
                "mask": self._mask,
            }
        )[:32]

    @property
    def template_name(self) -> str:
        """What the template is: `default template`, the name of a known one, or the start of its hash."""
        return self._templates["default"].name

    def describe(self) -> str:
        """One line: the template, and how trained tokens are found in it."""
        return "; ".join(
            (f"{key} template " if len(self._templates) > 1 else "") + template.describe()
            for key, template in self._templates.items()
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def encode(self, example: Example) -> Encoded | str:
        """The example's tokens and mask, or the reason why it must be left out. Never raises on data."""
        messages = [_without_nothings(message) for message in example.messages]
        tools = example.tools or None
        template = self._templates["tool_use" if tools and "tool_use" in self._templates else "default"]
        try:
            text = template.render(messages, tools)
            if reason := template.ignores(messages, tools, text):
                return reason
            tokens = self._tokenise(text)
        except RenderError as error:
            return str(error)
        # The Rust side raises untyped exceptions, and what is wrong is this row.
        except Exception as error:
            return f"it cannot be tokenised: {type(error).__name__}: {str(error)[:200]}"

        found = template.spans(messages, tools, text)
        if isinstance(found, str):
            return found
        way, spans = found
        masked = self._tokenise.trained(tokens, spans)
        if isinstance(masked, str):
            return masked
        if way == "prefix" and (reason := masked.shared or self._tokenise.start_disproved(tokens, spans)):
            return reason
        return self._finish(tokens.ids, masked.trained, way + ("+shared" if masked.shared else ""))

    def _finish(self, ids: np.ndarray, trained: np.ndarray, way: str) -> Encoded | str:
        if trained.all():
            return f"all {len(ids)} tokens would be trained: there is no prompt"
        if not trained.any():
            return f"no trained token among {len(ids)}"
        n = len(ids)
        if n > self._max_length:
            if self._too_long == "quarantine":
                return f"{n} tokens, more than max_length ({self._max_length})"
            ids, trained = ids[: self._max_length].copy(), trained[: self._max_length].copy()
        trained[0] = False
        if not trained.any():
            if n > len(ids):
                return f"the prompt fills max_length ({self._max_length} of {n} tokens): no trained token is left"
            return f"no trained token among {n} but the first, which nothing predicts"
        return Encoded(ids, trained, way, truncated=n > len(ids))


class _Template:
    """One template of a tokenizer, and the ways that serve it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str | None, mask: Mask):
        special = _special_tokens(tokenizer)
        if text is None:
            text = default_template(tokenizer)
            self.name, own_way = "default template", "default template"
        else:
            self.name, own_way = f"template {digest_of(text)[:8]}", "generation"
        self.render = Renderer(text, special)
        self._shape = learn_shape(
            self.render, [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        )
        ways: dict[str, tuple[str, Renderer | None]] = {}
        if MARKERS.search(text):
            ways["generation"] = (own_way, self.render)
        elif variant := training_variant(text):
            self.name = variant.name
            ways["known"] = ("known", Renderer(variant.text, special))
        self._marks_question = any(marked and marks_the_question(marked) for _, marked in ways.values())
        ways["prefix"] = ("prefix", None)
        if mask != "auto" and mask not in ways:
            lacks = {
                "generation": "has no {% generation %} markers",
                "known": "is not one of the known ones, or marks its answers itself",
            }[mask]
            raise SiftuneError(
                f"the chat template ({self.name}) {lacks}", where=f"mask: {mask}", todo="Use mask: auto"
            )
        self._ways = [way for name, way in ways.items() if mask in ("auto", name)]

    def describe(self) -> str:
        names = {
            "generation": "its own generation markers",
            "default template": "its generation markers",
            "known": "a training variant that renders the same text",
            "prefix": "rendering prefixes, proved for each row",
        }
        return f"{self.name}: trained tokens by " + ", else by ".join(names[way] for way, _ in self._ways)

    def spans(
        self, messages: list[Message], tools: list[Any] | None, text: str
    ) -> tuple[str, list[Span]] | str:
        """(way, spans) of the first way that works, else every way's reason."""
        reasons: list[str] = []
        for way, marked in self._ways:
            if marked is None:
                found = prefix_spans(self.render, self._shape, messages, tools, text)
                if not isinstance(found, str):
                    return way, found
            elif self._marks_question:
                found = "the template's markers mark what the user says too"
            else:
                found = marked_spans(marked, self._shape, messages, tools, text)
                if not isinstance(found, str):
                    return way + ("+end" if found.added and way == "generation" else ""), found.spans
            if found not in reasons:
                reasons.append(found)
        return "; ".join(reasons)

    def ignores(self, messages: list[Message], tools: list[Any] | None, text: str) -> str | None:
        """A reason if something of the conversation is not in its text: a template drops what it does not know."""
        if tools and "tools" not in self.render.text:
            return "the template does not show the tools to the model"
        for i, message in enumerate(messages):
            if message["content"].strip() not in text:
                other = [
                    *messages[:i],
                    {**message, "content": message["content"] + "Qz7"},
                    *messages[i + 1 :],
                ]
                if self.render(other, tools) == text:
                    return f"the template leaves out turn {i + 1} ({message['role']})"
            if call := unsaid_call(message, text):
                return f"the template leaves out the call of {call!r} in turn {i + 1}"
        return self._ignores_reasoning(messages, text)

    def _ignores_reasoning(self, messages: list[Message], text: str) -> str | None:
        """A reason if the last answer's reasoning is not in the text. Templates may leave out that of earlier ones,
        as they do when a conversation goes on, but not where they have never heard of it."""
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for i in answers:
            reasoning = next((messages[i][key] for key in _REASONING if messages[i].get(key)), None)
            if reasoning and not any(key in self.render.text for key in _REASONING):
                return f"the template does not know {_REASONING[0]}, which turn {i + 1} has"
            if reasoning is None and "</think>" in messages[i]["content"]:
                reasoning = messages[i]["content"].rsplit("</think>", 1)[0].rsplit("<think>", 1)[-1]
            if i == answers[-1] and isinstance(reasoning, str) and reasoning.strip() not in text:
                return f"the template leaves out the reasoning of turn {i + 1}, the last answer"
        return None


_REASONING = ("reasoning_content", "thinking", "reasoning")


def template_texts(tokenizer: PreTrainedTokenizerBase) -> dict[str, str | None]:
    """The tokenizer's templates by name, as transformers chooses among them; {"default": None} where it has none."""
    template = tokenizer.chat_template
    if not template:
        return {"default": None}
    if isinstance(template, str):
        return {"default": template}
    if "default" not in template:
        raise SiftuneError(
            f"the tokenizer has chat templates ({', '.join(sorted(template))}) but no default one",
            todo="Save one of them as chat_template.jinja beside the tokenizer",
        )
    return {name: template[name] for name in ("default", "tool_use") if name in template}


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template for a tokenizer without one, with the begin-of-text token if this tokenizer would add it."""
    if not tokenizer.eos_token:
        raise SiftuneError(
            "the tokenizer has neither a chat template nor an end-of-text token",
            todo="Set eos_token in tokenizer_config.json, or save a chat_template.jinja beside the tokenizer",
        )
    starts_with_bos = (
        tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    )
    return DEFAULT_TEMPLATE.replace("BOS", "{{ bos_token }}" if starts_with_bos else "", 1)


def _without_nothings(message: Message) -> Message:
    """A message without the fields that hold nothing: many templates take a None or an empty list for a value."""
    return {key: value for key, value in message.items() if value is not None and value != []}


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    return {
        name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
    }
