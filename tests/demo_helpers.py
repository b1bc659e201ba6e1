"""The demo's real model, converted once for all tests that need it (about 30 seconds), removed when the tests end."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from siftune.demo.model import demo_model


@cache
def converted_cache() -> Path:
    """A cache folder of the tests' own that holds the converted model."""
    folder = Path(tempfile.mkdtemp(prefix="siftune-test-cache-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIFTUNE_CACHE", str(folder))
        demo_model()
    return folder


@cache
def demo_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(next(path for path in converted_cache().iterdir() if path.is_dir()))
