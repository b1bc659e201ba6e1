"""A conversation as plain text, for methods that read words rather than tokens."""

from __future__ import annotations

from collections.abc import Iterable

from siftune.records.example import Message


def text_of(messages: Iterable[Message]) -> str:
    """What every turn says, prompt and answer alike, without roles or template; turns are joined by blank lines."""
    return "\n\n".join(message["content"] for message in messages if message["content"].strip())
