"""Load a tokenizer with its chat template, from a folder or the hub, and say plainly what is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from siftune.records.errors import SiftuneError


def load_tokenizer(
    model: str, revision: str | None = None, template_from: Path | None = None
) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a model.

    model:         a folder or a hub id
    revision:      branch, tag or commit on the hub; ignored for a folder
    template_from: a checkpoint folder; the chat template saved there wins over the model's. A folder that
                   holds none changes nothing, since not every trainer writes one

    Code that comes with a model is never run. Raises SiftuneError where there is no usable tokenizer.
    """
    if model.startswith(("/", "./", "../", "~")) and not os.path.isdir(os.path.expanduser(model)):
        raise SiftuneError(
            "there is no such folder", where=f"model: {model}", todo="Give a model folder or a hub id"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model, revision=revision or "main", use_fast=True, trust_remote_code=False
        )
    # What comes out of a broken or missing tokenizer is any of OSError, ValueError, KeyError, TypeError and the
    # untyped exceptions of the Rust side, depending on the file that is at fault.
    except Exception as error:
        raise SiftuneError(
            f"no tokenizer can be loaded ({_first_line(error)})",
            where=f"model: {model}",
            todo="Give a model folder that holds tokenizer.json and tokenizer_config.json, or a hub id you can reach",
        ) from error
    if len(tokenizer) == 0:
        raise SiftuneError(
            "holds no tokenizer (its vocabulary is empty)",
            where=f"model: {model}",
            todo="Copy the tokenizer's files into the folder (tokenizer.json, tokenizer_config.json)",
        )
    if not tokenizer.is_fast:
        raise SiftuneError(
            f"{type(tokenizer).__name__} is a slow tokenizer: it cannot say which characters a token comes from",
            where=f"model: {model}",
            todo="Use a model whose tokenizer has a tokenizer.json (a fast tokenizer)",
        )
    if template_from is not None and (template := saved_template(template_from)) is not None:
        tokenizer.chat_template = template
    return tokenizer


def saved_template(folder: Path) -> str | dict[str, str] | None:
    """The chat template saved in a folder, as transformers saves it; None where there is none.

    `chat_template.jinja`, with more named ones in `additional_chat_templates/`, is newer than the
    `chat_template` field of `tokenizer_config.json` and wins over it.
    """
    try:
        named = {
            path.stem: path.read_text(encoding="utf-8")
            for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
        }
        main = folder / "chat_template.jinja"
        if main.is_file():
            text = main.read_text(encoding="utf-8")
            return {"default": text, **named} if named else text
        config = folder / "tokenizer_config.json"
        template = (
            json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
        )
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SiftuneError(
            f"the chat template saved here cannot be read ({_first_line(error)})",
            where=str(folder),
            todo="Repair chat_template.jinja or tokenizer_config.json there, or remove it",
        ) from error
    return template


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
