"""Hub tokens and passwords: nothing that siftune writes or says may hold one.

They come in where a person writes them by mistake (a setting, an address with a password in it) or where a library quotes them
in an error. The right place for a token is the environment variable HF_TOKEN, which only the hub's own library reads.
"""

from __future__ import annotations

import os
import re

_TOKEN = re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}")
_PASSWORD = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_FROM_ENVIRONMENT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST = 8
"""Characters that a value of the environment must have to be taken for a secret: a shorter one stands in ordinary words."""


def without_secrets(text: str) -> str:
    """`text` with `***` in place of hub tokens (by their look, or as the environment holds them) and of passwords in addresses."""
    text = _PASSWORD.sub("***", _TOKEN.sub("***", text))
    for name in _FROM_ENVIRONMENT:
        value = os.environ.get(name, "").strip()
        if len(value) >= _SHORTEST:
            text = text.replace(value, "***")
    return text
