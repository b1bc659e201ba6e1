"""A few rows of unlike lengths to try a model on: of the pool where there is one, else built in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from siftune.chat.encoder import ChatEncoder, Encoded
from siftune.records.errors import SiftuneError
from siftune.records.example import Example
from siftune.records.readers import read_pool

LOOKED_AT = 256
"""Usable pool rows among which rows of unlike lengths are looked for."""

_TALKS = (
    ("Hi!", "Hello."),
    ("What is two plus three?", "Two plus three is five."),
    ("Name a fruit that is red.", "An apple is red. So are cherries, and most strawberries."),
    (
        "Why is the sky blue?",
        "Air scatters short waves of light more than long ones, so blue comes from all sides.",
    ),
    (
        "Tom has 12 pens, gives 5 away and buys 3. How many are left?",
        "After giving 5 of his 12 pens away he has 7. He buys 3 more: 7 + 3 = 10. The answer is 10.",
    ),
)


def sample_rows(
    pool: Sequence[str], encoder: ChatEncoder, *, n_rows: int, longest: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(token ids [T], trained [T]) of at most `n_rows` rows, shortest first, spread evenly over the lengths up to `longest` tokens.

    pool: files; none = the built-in conversations
    Raises SiftuneError where no row will do.
    """
    fitting = (row for row in _usable(pool, encoder) if len(row.token_ids) <= longest)
    some = sorted(islice(fitting, LOOKED_AT), key=lambda row: len(row.token_ids))
    if not some:
        raise SiftuneError(
            f"there is no usable row of at most {longest} tokens",
            where="pool",
            todo="Give shorter rows, or leave --pool out: then built-in conversations are taken",
        )
    places = np.unique(np.linspace(0, len(some) - 1, n_rows).round().astype(int)).tolist()
    return [(some[place].token_ids, some[place].trained) for place in places]


def _usable(pool: Sequence[str], encoder: ChatEncoder) -> Iterator[Encoded]:
    for item in read_pool(pool) if pool else _built_in():
        encoded = encoder.encode(item) if isinstance(item, Example) else None
        if isinstance(encoded, Encoded):
            yield encoded


def _built_in() -> Iterator[Example]:
    for place, (question, answer) in enumerate(_TALKS, start=1):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield Example(f"built-in:{place}", "built-in", messages, f"built-in:{place}")
