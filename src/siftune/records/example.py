"""An example: one conversation in canonical form, and its identity."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from siftune.records.files import digest_of

Message = dict[str, Any]
"""`{"role", "content"}`, and where the person's row has them `tool_calls`, `tool_call_id`, `name`, `reasoning_content`."""


@dataclass(frozen=True)
class Example:
    """One conversation.

    id:       the person's `id`, else `where`
    source:   column `source`, else `dataset`, else the file's name without its endings
    messages: canonical turns, oldest first
    where:    `file:line`, for messages to the person
    columns:  the row as it came, every original column
    tools:    tool descriptions given to the template, or None
    """

    id: str
    source: str
    messages: list[Message]
    where: str
    columns: dict[str, Any] = field(default_factory=dict)
    tools: list[Any] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that depend on messages and tools alone, so equal conversations have equal fingerprints."""
        return digest_of({"messages": self.messages, "tools": self.tools})[:32]


@dataclass(frozen=True)
class LeftOut:
    """An input row that cannot become an example: it goes to quarantine with its reason, never away silently.

    `text` is the start of the row as it came (at most 200 characters), to find it again.
    """

    where: str
    reason: str
    id: str
    source: str
    text: str = ""
