"""What every test stands on: no model hub, one thread, repeatable hypothesis, and types and shapes checked as the code runs."""

from __future__ import annotations

import os
from typing import Any

# Before torch, transformers and datasets are imported: they read these once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

# Every annotated function of siftune, pydantic's and typer's modules too, checks its arguments and its result.
jaxtyping.install_import_hook("siftune", "beartype.beartype")

settings.register_profile(
    "repeatable",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a quick run on files of its own. Modules that want other files or settings have a `given` of their own."""
    from pipeline_helpers import write_inputs  # not before types are checked

    return write_inputs(tmp_path_factory.mktemp("inputs"))
