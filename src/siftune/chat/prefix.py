"""Trained spans proved by rendering prefixes of the conversation, turn by turn.

For an assistant turn i, with F the text of the whole conversation:

    opening = render(turns before i, with generation prompt)
    upto    = render(turns up to and with i)
    span    = [len(opening), the end of turn i's end-of-turn in upto)

It is exact where `opening` is a prefix of `upto`, and `upto` up to its end-of-turn is a prefix of F. Where either
fails the template is not a function of the turns so far (Qwen3 drops earlier `<think>` blocks) and the row is refused.
Nothing is searched for, so an answer that quotes a template's markers can't move a span.
"""

from __future__ import annotations

from typing import Any

from siftune.chat.template import Renderer, RenderError, Shape, Span
from siftune.records.example import Message


def prefix_spans(
    render: Renderer, shape: Shape, messages: list[Message], tools: list[Any] | None, text: str
) -> list[Span] | str:
    """The span of every assistant turn in `text`, the rendered conversation; or the reason why there is no proof."""
    if shape.no_prefix:
        return shape.no_prefix
    spans: list[Span] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        turn = f"turn {i + 1}"
        if i == 0:
            return "turn 1 is the assistant's: nothing comes before it that could show where it starts"
        try:
            opening = render(messages[:i], tools, prompt=True)
            upto = text if i + 1 == len(messages) else render(messages[: i + 1], tools)
        except RenderError as error:
            return f"{turn}: its prefix cannot be rendered: {error}"
        if not upto.startswith(opening):
            return f"{turn}: the generation prompt is not what the assistant turn opens with"
        if message.get("tool_calls"):
            end = len(upto.rstrip())
            if not shape.ends_turn(upto[:end]):
                return f"{turn}: no end-of-turn follows the tool call"
        elif not upto.endswith(shape.tail):
            return f"{turn} does not end as the template's answers do ({shape.tail!r})"
        else:
            end = len(upto) - len(shape.tail) + len(shape.ending)
        if end < len(opening):
            return f"{turn}: the template writes nothing for it"
        if call := unsaid_call(message, upto[len(opening) : end]):
            return f"{turn}: the template leaves out the call of {call!r}"
        if not text.startswith(upto[:end]):
            later = _first_rewriter(render, messages, tools, upto[:end], i)
            return f"the template rewrites earlier turns: turn {i + 1} renders differently once turn {later} follows"
        spans.append((len(opening), end))
    return spans


def unsaid_call(message: Message, said: str) -> str | None:
    """The name of a function that the turn calls and `said` does not name; None where all are named."""
    names = (str((call.get("function") or call).get("name")) for call in message.get("tool_calls") or [])
    return next((name for name in names if name not in said), None)


def _first_rewriter(
    render: Renderer, messages: list[Message], tools: list[Any] | None, upto: str, i: int
) -> int:
    """The number (from 1) of the first later turn that changes the text of turn i."""
    for j in range(i + 1, len(messages) - 1):
        try:
            if not render(messages[: j + 1], tools).startswith(upto):
                return j + 1
        except RenderError:
            continue  # a conversation may be cut where this template would not cut it
    return len(messages)
