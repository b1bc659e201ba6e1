"""Text from data on a screen: nothing in it may act on the terminal."""

from __future__ import annotations

import re

_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_TOLD = re.compile(r"(refuses it|cannot be tokenised): .*", re.DOTALL)


def shown(text: str, keep: str = "") -> str:
    """`text` with every character that is not printable (controls, bidi marks, lone surrogates) written as an escape.

    keep: characters to leave as they are, for example a line break
    """
    return "".join(
        character if character.isprintable() or character in keep else _escape(character)
        for character in text
    )


def without_quotes(reason: str) -> str:
    """A reason without what it quotes of a row: texts between quotation marks, and what a template or tokenizer said itself."""
    return _TOLD.sub(r"\1", _QUOTED.sub("'…'", reason))


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
