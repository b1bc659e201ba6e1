"""Trained spans from a template's `{% generation %}` markers, mended to the house's rule.

The rule is one for all ways: trained are the assistant's words and its end-of-turn, not the role header before
them, not the whitespace after them. Markers in the wild begin before the header's newline, stop before the
end-of-turn, or run past it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from siftune.chat.prefix import unsaid_call
from siftune.chat.template import ANSWER, QUESTION, Renderer, RenderError, Shape, Span
from siftune.records.example import Message


@dataclass(frozen=True)
class Marked:
    """Spans from markers; `added` where an end-of-turn lay outside the markers and was added."""

    spans: list[Span]
    added: bool


def marked_spans(
    render: Renderer, shape: Shape, messages: list[Message], tools: list[Any] | None, text: str
) -> Marked | str:
    """The marked spans in `text`, the rendered conversation; or the reason why they can't be trusted."""
    try:
        rendered, raw = render.with_marks(messages, tools)
    except RenderError as error:
        return str(error)
    if rendered != text:
        return "the training variant of the template renders another text than the template"

    spans: list[Span] = []
    added, ended, at = False, 0, 0
    for start, end in _joined(raw):
        start = max(_after_prompt(text, start, shape.prompt), at)
        if shape.ending and text.startswith(shape.ending, end):
            end, added, ended = end + len(shape.ending), True, ended + 1
        elif shape.ending and end == len(text) and text.endswith(shape.tail, start):
            end, ended = end - len(shape.tail) + len(shape.ending), ended + 1
        else:
            stripped = start + len(text[start:end].rstrip())
            if shape.ends_turn(text[start:stripped]):
                end, ended = stripped, ended + 1
        if end > start:
            spans.append((start, end))
            at = end
    turns = sum(message["role"] == "assistant" for message in messages)
    if ended < turns:
        return f"the markers give {ended} of {turns} assistant turns an end-of-turn"
    return _all_said(spans, messages, text) or Marked(spans, added)


def marks_the_question(render: Renderer) -> bool:
    """Whether the markers of a template take in what the user says."""
    try:
        text, spans = render.with_marks([QUESTION, ANSWER], None)
    except RenderError:
        return False  # then the shape is not known either, and each row speaks for itself
    return any(QUESTION["content"] in text[start:end] for start, end in spans)


def _joined(raw: list[Span]) -> list[Span]:
    """Spans in order, with those that touch made one."""
    joined: list[Span] = []
    for start, end in sorted(raw):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _after_prompt(text: str, start: int, prompt: str) -> int:
    """Where the generation prompt ends, if it reaches into the marked span: what is prompted for is not said."""
    if not prompt or text.endswith(prompt, 0, start):
        return start
    for inside in range(len(prompt), 0, -1):
        outside = len(prompt) - inside
        if text.startswith(prompt[outside:], start) and text.endswith(prompt[:outside], 0, start):
            return start + inside
    return start


def _all_said(spans: list[Span], messages: list[Message], text: str) -> str | None:
    """A reason if what an assistant turn says is not in the spans, in order. Reasoning may be left out by a template."""
    said = "\0".join(text[start:end] for start, end in spans)
    at = 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        words = message["content"].rsplit("</think>", 1)[-1].strip()
        start = said.find(words, at)
        if start < 0 or unsaid_call(message, said[start:]):
            return f"the markers leave out what turn {i + 1} says"
        at = start + len(words)
    return None
