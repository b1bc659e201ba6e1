"""Names that become folder names: targets and selections."""

from __future__ import annotations

import re

from siftune.records.errors import SiftuneError

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._+-]{0,99}")


def check_name(name: str, what: str) -> str:
    """The name itself; SiftuneError where it could not be a folder's name on every system."""
    if not _NAME.fullmatch(name):
        raise SiftuneError(
            f"{name[:200]!r} can't name a {what}",
            where=what,
            todo="Use up to 100 letters, digits, dots, dashes, plus signs and underlines, not starting with a dot",
        )
    return name
