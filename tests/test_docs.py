"""What documents say is so: commands and options exist, links lead somewhere, Python compiles, files.md knows every column."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from siftune.cli import app
from siftune.datastore.pool import SCHEMA

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "docs" / "_build"
FOLDERS = ("*.md", "design/*.md", "dev/*.md", "examples/*.md", "docs/**/*.md", "experiments/**/*.md")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(folder) if BUILT not in page.parents)
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]

_FENCE = re.compile(r"^```(\{?\w*\}?)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:\.venv/bin/)?siftune [^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def command_lines(text: str) -> Iterator[str]:
    """Every `siftune …` in a shell block or in the running text."""
    for kind, block in _FENCE.findall(text):
        if kind in ("bash", "sh"):
            yield from (line for line in block.replace("\\\n", " ").splitlines() if is_siftune(line))
    yield from _INLINE.findall(_FENCE.sub("", text))


def is_siftune(line: str) -> bool:
    return line.removeprefix(".venv/bin/").startswith("siftune ")


def fault_of(line: str) -> str | None:
    """What is wrong with a command line: a command, option or value that isn't there, or is missing."""
    words = shlex.split(line, comments=True)[1:]
    if words[0] in ("--help", "-h", "--version"):
        return None
    if words[0].isupper():  # a stand-in, as in `siftune COMMAND --help`
        return None
    command = COMMANDS.get(words[0])
    if command is None:
        return f"there is no command {words[0]!r}"
    if inner := getattr(command, "commands", None):
        if len(words) < 2 or words[1] not in inner:
            return f"{words[0]} has no command {' '.join(words[1:2])!r}"
        command, words = inner[words[1]], [f"{words[0]} {words[1]}", *words[2:]]
    options = {flag: option for option in command.params for flag in [*option.opts, *option.secondary_opts]}
    rest = iter(words[1:])
    for word in rest:
        flag = word.partition("=")[0]
        if not flag.startswith("-") or flag in ("--help", "-h"):
            continue
        if flag not in options:
            return f"{words[0]} has no option {flag}"
        if not options[flag].is_flag and "=" not in word and next(rest, "--").startswith("--"):
            return f"{flag} of {words[0]} needs a value"
    return None


def test_the_checker_finds_faults() -> None:
    assert fault_of("siftune run --model M --out RUN") is None
    assert fault_of("siftune rum --out RUN") == "there is no command 'rum'"
    assert fault_of("siftune datastore verify RUN --json") is None
    assert fault_of("siftune datastore check RUN") == "datastore has no command 'check'"
    assert fault_of("siftune datastore export RUN --too x.npy") == "datastore export has no option --too"
    assert fault_of("siftune run --modell M") == "run has no option --modell"
    assert fault_of("siftune select RUN --keep --name x") == "--keep of select needs a value"
    assert list(command_lines("`siftune demo` and\n```bash\nsiftune run \\\n  --out RUN # so\n```\n")) == [
        "siftune run    --out RUN # so",
        "siftune demo",
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_documents_exist(page: Path) -> None:
    faults = {
        line: fault for line in command_lines(page.read_text(encoding="utf-8")) if (fault := fault_of(line))
    }
    assert not faults


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [link.partition("#")[0] for link in _LINK.findall(text) if "://" not in link]
    assert not [link for link in links if link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_documents_compiles(page: Path) -> None:
    for kind, block in _FENCE.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            compile(block, name_of(page), "exec")


def test_every_command_is_in_some_document() -> None:
    said = [
        shlex.split(line, comments=True)[1:]
        for page in PAGES
        for line in command_lines(page.read_text("utf-8"))
    ]
    wanted = [
        [name, inner] if inner else [name]
        for name, command in COMMANDS.items()
        for inner in getattr(command, "commands", [None])
    ]
    assert not [words for words in wanted if not any(line[: len(words)] == words for line in said)]


def test_files_page_knows_every_column_of_the_pool() -> None:
    page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    assert not [column for column in SCHEMA.names if f"`{column}`" not in page]
