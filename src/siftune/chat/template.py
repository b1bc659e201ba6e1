"""A chat template as text: rendering it, and learning from one probe how it writes an assistant turn.

Rendering is a pure function of the conversation. Templates that print today's date would change token ids from
one day to the next, so `strftime_now` always says 26 July 2024 (the date Llama 3.1's template has as its own default).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from siftune.records.deadline import within
from siftune.records.example import Message

Span = tuple[int, int]
"""Characters [start, end) of a rendered text that the assistant says, its end-of-turn included."""

MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")

# The form LESS and Tülu train in. Content is not stripped; generation markers say what is trained.
# `BOS` becomes the begin-of-text token where the tokenizer itself would put one before a text, else nothing.
DEFAULT_TEMPLATE = """\
BOS{% if tools %}{{ '<|system|>\\nYou may call these functions:\\n' + (tools | tojson) + '\\n' }}{% endif %}
{% for message in messages %}
{% if message['role'] in ['system', 'developer'] %}{{ '<|system|>\\n' + message['content'] + '\\n' }}
{%- elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n' }}
{%- generation %}{{ message['content'] }}
{%- if message['tool_calls'] %}
{%- for call in message['tool_calls'] %}
{{- ('\\n' if message['content'] or not loop.first else '') + (call['function'] or call) | tojson }}
{%- endfor %}
{%- endif %}
{{- eos_token }}{% endgeneration %}{{ '\\n' }}
{%- else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}
{%- endif %}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
"""

_FIXED_DATE = {
    "%Y": "2024", "%y": "24", "%m": "07", "%-m": "7", "%B": "July", "%b": "Jul", "%d": "26", "%-d": "26",
    "%A": "Friday", "%a": "Fri", "%H": "00", "%M": "00", "%S": "00", "%j": "208", "%F": "2024-07-26", "%T": "00:00:00",
}  # fmt: skip
_DATE_MACRO = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f".replace('{code}', '{value}')" for code, value in _FIXED_DATE.items())
    + " }}{% endmacro %}\n"
)


RENDER_SECONDS = 10.0
"""For one conversation. A template is a program of the model's author, and may loop for ever."""


class RenderError(Exception):
    """The template would not render a conversation; the message is a reason for people."""


class Renderer:
    """One template's text with the special tokens it may name."""

    def __init__(self, text: str, special_tokens: dict[str, str]):
        self.text = text
        # A macro of the same name hides the function that tells today's date.
        self._pinned = _DATE_MACRO + text if "strftime_now" in text else text
        self._special_tokens = special_tokens

    def __call__(self, messages: list[Message], tools: list[Any] | None, *, prompt: bool = False) -> str:
        """The conversation as text; `prompt` asks for the opening of a next assistant turn. Raises RenderError."""
        return self._render(messages, tools, prompt=prompt, marks=False)[0]

    def with_marks(self, messages: list[Message], tools: list[Any] | None) -> tuple[str, list[Span]]:
        """The conversation as text, and the spans inside the template's generation markers. Raises RenderError."""
        return self._render(messages, tools, prompt=False, marks=True)

    def _render(
        self, messages: list[Message], tools: list[Any] | None, *, prompt: bool, marks: bool
    ) -> tuple[str, list[Span]]:
        try:
            with within(RENDER_SECONDS):
                texts, spans = render_jinja_template(
                    conversations=[messages],
                    tools=tools,
                    chat_template=self._pinned,
                    add_generation_prompt=prompt,
                    return_assistant_tokens_mask=marks,
                    **self._special_tokens,  # pyright: ignore[reportArgumentType]
                )
        # A template is a foreign program: it may raise anything, and what it raises is the row's reason.
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            raise RenderError(f"the template refuses it: {type(error).__name__}: {lines[0][:200]}") from error
        return texts[0], [(int(start), int(end)) for start, end in spans[0]] if marks else []


@dataclass(frozen=True)
class Shape:
    """How a template writes an assistant turn, learned from rendering short probe conversations.

    prompt:  what add_generation_prompt adds: the header that the assistant's words follow
    ending:  what follows the assistant's words, up to and with the end-of-turn; empty where that is not known
    tail:    all that follows them at the end of a conversation: the ending and the template's scaffold
    special: matches any special token of the tokenizer
    no_prefix: why rendering prefixes can prove nothing for this template, or None
    """

    prompt: str
    ending: str
    tail: str
    special: re.Pattern[str]
    no_prefix: str | None = None

    def ends_turn(self, text: str) -> bool:
        """Whether text ends with the end-of-turn, or with a special token (tool calls may have one of their own)."""
        if self.ending and text.endswith(self.ending):
            return True
        near = self.special.finditer(text, max(0, len(text) - 64))  # no special token is longer
        return any(token.end() == len(text) for token in near)


QUESTION: Message = {"role": "user", "content": "Qz7 asks"}
_WORDS = "Qz7replies"
ANSWER: Message = {"role": "assistant", "content": _WORDS}


def learn_shape(render: Renderer, special_tokens: list[str]) -> Shape:
    """Render probes and read off the generation prompt and the end-of-turn.

    The end-of-turn is the first special token after the words, with others that follow it at once wherever an answer
    ends (Cohere's `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`). Where the template's is not a special token of this
    tokenizer, it is what follows the words without trailing whitespace.
    """
    longest_first = sorted(special_tokens, key=len, reverse=True)
    special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    nothing = Shape("", "", "", special)
    try:
        asked, opened = render([QUESTION], None), render([QUESTION], None, prompt=True)
        answered = render([QUESTION, ANSWER], None)
    except RenderError as error:
        return _without(nothing, f"a probe conversation of one question and one answer fails: {error}")
    if answered.count(_WORDS) != 1:
        return _without(nothing, f"the template writes an answer {answered.count(_WORDS)} times")

    words = answered.index(_WORDS)
    tail = answered[words + len(_WORDS) :]
    try:
        middle = render([QUESTION, ANSWER, QUESTION], None).partition(_WORDS)[2]
    except RenderError:
        middle = tail  # a template of single questions: nothing ever follows an answer
    endings = _endings(tail, special)
    ending = next((text for text in endings if middle.startswith(text)), "")
    if not ending:
        problem = "the template writes no end-of-turn after the assistant's words"
        if endings:
            problem = f"the template ends its last answer ({tail[:40]!r}) otherwise than earlier ones ({middle[:40]!r})"
        return _without(nothing, problem)

    cut = next(
        (k for k, (a, b) in enumerate(zip(asked, opened, strict=False)) if a != b),
        min(len(asked), len(opened)),
    )
    for token in special.finditer(
        opened
    ):  # never cut inside a special token: '<|user|>' and '<|end|>' share '<|'
        if token.start() < cut < token.end():
            cut = token.start()
    prompt = opened[cut:]
    no_prefix = None
    if not answered.startswith(opened):
        no_prefix = f"the generation prompt {prompt[-60:]!r} is not what the assistant turn opens with"
    elif not prompt and answered[len(opened) : words].strip():
        no_prefix = "the template ignores add_generation_prompt, so where an answer starts cannot be proved"
    return Shape(prompt, ending, tail, special, no_prefix)


def _endings(tail: str, special: re.Pattern[str]) -> list[str]:
    """What may be the end-of-turn at the start of `tail`, longest first."""
    ends: list[int] = []
    for token in special.finditer(tail):
        if ends and token.start() != ends[-1]:
            break
        ends.append(token.end())
    texts = [tail[:end] for end in reversed(ends)] or [tail.rstrip()]
    return [text for text in texts if text.strip()]


def _without(shape: Shape, no_prefix: str) -> Shape:
    return Shape(shape.prompt, shape.ending, shape.tail, shape.special, no_prefix)
