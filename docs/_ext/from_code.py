"""What the reference pages take from the code when they are built: commands, settings, docstrings.

A page holds a marker, `<!-- from code: commands -->` or `<!-- from results: accuracy -->`, in whose place the Markdown made here
(or in `from_results`) is read.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx

import siftune
from from_results import accuracy, bf16, long_rows, reliability, scoring
from siftune.cli import app as command_line
from siftune.records.recipe import PRESETS, Recipe

# A docstring's line about one argument or attribute, and one that carries it on.
_ITEM = re.compile(r"([A-Za-z_]\w*(?:, \w+)*):\s+(\S.*)")
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
# A link to Markdown that is no page of the site: offered as a file, since a page of it there is none.
_OUTSIDE = re.compile(r"\]\(((?:\.\./)+(?:experiments|examples|design)/[^)#]*\.md)\)")
_FIRST = ("demo", "run")
"""Where a person starts; the other commands follow by name."""
_STORE_DTYPES = Path(__file__).parents[2] / "benchmarks" / "results" / "store_dtypes.json"
_CONTINUED = re.compile(r"\s{2,}\S")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _fill)
    app.connect("autodoc-process-docstring", _as_rest)
    return {"version": "1", "parallel_read_safe": True}


def _fill(app: Sphinx, page: str, source: list[str]) -> None:
    for marker, make in (
        ("<!-- from code: commands -->", commands),
        ("<!-- from code: recipe -->", recipe),
        ("<!-- from code: names -->", lambda: names(source[0])),
        ("<!-- from results: accuracy -->", accuracy),
        ("<!-- from results: bf16 -->", bf16),
        ("<!-- from results: reliability -->", reliability),
        ("<!-- from results: store dtypes -->", store_dtypes),
        ("<!-- from results: scoring -->", scoring),
        ("<!-- from results: long rows -->", long_rows),
    ):
        if marker in source[0]:
            source[0] = source[0].replace(marker, make())
    source[0] = _OUTSIDE.sub(r"](<path:\1>)", source[0])


def commands() -> str:
    """Every command with its arguments and options, as Markdown."""
    group = typer.main.get_command(command_line)
    parts = []
    found = flat(group.commands)  # pyright: ignore[reportAttributeAccessIssue]
    for name, command in sorted(found.items(), key=lambda item: (item[0] not in _FIRST, item[0])):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        stand_ins = [p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments]
        usage = " ".join([name, *stand_ins, "[OPTIONS]"])
        parts += [f"## siftune {name}\n", f"{_cell(command.help)}\n", f"```text\nsiftune {usage}\n```\n"]
        kinds = get_type_hints(command.callback)
        panels: dict[str, list[str]] = {}
        for option in command.params:
            if option.param_type_name == "option":
                line = _option(option, kinds[option.name])
                panels.setdefault(option.rich_help_panel or "General", []).append(line)
        for panel, lines in panels.items():
            parts.append("\n".join([f"| {panel} | |", "|---|---|", *lines]) + "\n")
    return "\n".join(parts)


def flat(commands: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Commands by their whole name: those of a group as `GROUP COMMAND`."""
    found: dict[str, Any] = {}
    for name, command in commands.items():
        inner = getattr(command, "commands", None)
        found |= {before + name: command} if inner is None else flat(inner, f"{before}{name} ")
    return found


def _option(option: Any, kind: Any) -> str:
    names = " / ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    takes = "" if option.is_flag else f" {option.metavar or _word(kind)}"
    several = " May be given several times." if option.multiple else ""
    needed = " **Required.**" if option.required else ""
    return f"| {names}{_cell(takes)} | {_cell(option.help or '')}{several}{needed} |"


def _word(kind: Any) -> str:
    """What an option takes, by the type of its argument: `Optional[list[int]]` is a NUMBER too."""
    inner = [part for part in get_args(kind) if part is not type(None)]
    if inner:
        return _word(inner[0])
    return {int: "NUMBER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def recipe() -> str:
    """Every setting of the recipe with its kind and default, and the presets, as Markdown."""
    flags = _flags()
    properties = Recipe.model_json_schema()["properties"]
    lines = ["| setting | what | kind | default |", "|---|---|---|---|"]
    for name, field in Recipe.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default in (None, PydanticUndefined) else f"`{_plain(default)}`"
        flag = "" if name in flags else " by `--set`"
        lines.append(
            f"| `{name}`{flag} | {_cell(field.description or '')} | {_kind(properties[name])} | {shown} |"
        )
    for preset, settings in PRESETS.items():
        lines += [f"\n## `--preset {preset}`\n", "| setting | value |", "|---|---|"]
        lines += [f"| `{name}` | `{_plain(value)}` |" for name, value in settings.items()]
    return "\n".join(lines) + "\n"


def store_dtypes() -> str:
    """What each dtype of the datastore costs and keeps, as measured, as Markdown."""
    found = json.loads(_STORE_DTYPES.read_text(encoding="utf-8"))
    rules = list(found["dtypes"][0]["overlap"])
    heads = [
        "`--store-dtype`",
        "bytes a row and checkpoint",
        *(f"same rows as fp32, `{rule}` (lowest)" for rule in rules),
        "CPU ms to ask 1,000 rows",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for of in found["dtypes"]:
        shares = [
            f"{of['mean_overlap'][rule]:.3f} ({min(of['overlap'][rule].values()):.3f})" for rule in rules
        ]
        cells = [
            f"`{of['store_dtype']}`",
            f"{of['bytes']:,}",
            *shares,
            f"{of['cpu_ms_per_1000_rows']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def names(page: str) -> str:
    """siftune's public names that the page doesn't tell of in a place of its own, as directives."""
    left = [
        name for name in siftune.__all__ if f":: siftune.{name}\n" not in page.replace("(**settings)", "")
    ]
    kinds = {
        name: "autoclass" if isinstance(getattr(siftune, name), type) else "autofunction" for name in left
    }
    lines = [f".. {kind}:: siftune.{name}" for name, kind in kinds.items()]
    return "\n".join(["```{eval-rst}", *lines, "```"]) if left else ""


def _flags() -> set[str]:
    """The settings that have an option of `siftune run` to themselves."""
    run = typer.main.get_command(command_line).commands["run"]  # pyright: ignore[reportAttributeAccessIssue]
    return {option.name for option in run.params}


def _plain(value: Any) -> str:
    """A value as a recipe file has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _kind(schema: dict[str, Any]) -> str:
    """The kind of a setting in a word or two, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"list of {_kind(schema['items'])}"
    if schema["type"] == "object":
        return "mapping of text to text"
    kind = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true`, `false`"}[
        schema["type"]
    ]
    return f"{kind}{_bounds(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    found = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return f" ({', '.join(found)})" if found else ""


def _cell(text: str) -> str:
    """Text as it may stand in a table's cell."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")


def _as_rest(app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """The house's plain docstrings as reStructuredText: a list of the lines `name: what it is`, code in double backticks."""
    made: list[str] = []
    in_list = False
    for line in lines:
        item = _ITEM.fullmatch(line)
        if item and (in_list or not made or not made[-1]):
            made.append(f"* ``{item[1].strip()}``: {_code(item[2])}")
            in_list = True
        elif in_list and _CONTINUED.match(line):
            made[-1] += " " + _code(line.strip())
        elif in_list and line.strip():
            made += ["", _code(line)]
            in_list = False
        else:
            made.append(_code(line))
            in_list = in_list and bool(line.strip())
    lines[:] = made


def _code(text: str) -> str:
    return _CODE.sub(r"``\1``", text)
