"""A row's text for people: what the model is trained on told apart from what it only reads, both cut in the middle where long.

Text from data is inert: characters that don't print are written as escapes.
"""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from siftune.chat.encoder import ChatEncoder
from siftune.records.text import shown

MOST_PARTS = 8


def marked(
    encoder: ChatEncoder, token_ids: np.ndarray, trained: np.ndarray, room: int
) -> list[dict[str, Any]]:
    """Parts `{"text", "trained"}` of a row, in order.

    room: bytes that all parts may have together once they are escaped for HTML
    """
    edges = np.flatnonzero(np.diff(trained.astype(np.int8), prepend=-1))
    spans = list(zip(edges.tolist(), [*edges[1:].tolist(), len(token_ids)], strict=True))
    left_out = max(0, len(spans) - MOST_PARTS)
    # The end of a conversation holds its last answer
    spans = spans[:2] + spans[2 + left_out :]
    parts: list[dict[str, Any]] = []
    for place, (start, end) in enumerate(spans):
        if left_out and place == 2:
            parts.append({"text": f" … {left_out:,} parts left out … ", "trained": False})
        ids = token_ids[start:end].tolist()
        parts.append(
            {"text": _decoded(encoder, ids, room // max(1, len(spans))), "trained": bool(trained[start])}
        )
    return parts


def cut(text: str, room: int) -> str:
    """`text` made inert, its middle left out where it would take more than `room` bytes in HTML."""
    text = shown(text, keep="\n")
    if _size(text) <= room:
        return text
    head, tail = _fitting(text, room * 2 // 3), _fitting(text[::-1], room // 3)[::-1]
    return f"{head} … {len(text) - len(head) - len(tail):,} characters left out … {tail}"


def _decoded(encoder: ChatEncoder, ids: list[int], room: int) -> str:
    return cut(encoder.decode(ids), room)


def _fitting(text: str, room: int) -> str:
    """The longest beginning that fits."""
    used = 0
    for place, character in enumerate(text):
        used += _size(character)
        if used > room:
            return text[:place]
    return text


def _size(text: str) -> int:
    return len(escape(text).encode("utf-8"))
