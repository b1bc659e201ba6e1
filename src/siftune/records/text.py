"""Text for a screen: nothing in data may act on the terminal; times and sizes as people say them."""

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


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use: `4 s`, `12 min`, `3.5 h`."""
    return span(seconds, seconds)


def span(low: float, high: float) -> str:
    """A range of seconds in one unit: `40–70 s`, `3–5 min`, `1.5–2.4 h`."""
    unit, size, form = (
        ("s", 1, ".0f") if high < 90 else ("min", 60, ".0f") if high < 5400 else ("h", 3600, ".1f")
    )
    if high < 1:
        return "under 1 s"
    ends = list(dict.fromkeys(f"{max(end, 0) / size:{form}}" for end in (low, high)))
    return f"{'–'.join(ends)} {unit}"


def size(n_bytes: int) -> str:
    """Bytes as `812 kB`, `3.4 MB`, `17.7 GB`: powers of ten, as disks are sold."""
    for unit, power in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= power:
            return f"{n_bytes / power:.{0 if n_bytes >= 100 * power or unit == 'kB' else 1}f} {unit}"
    return f"{n_bytes:.0f} bytes"
