"""A sentence encoder from a folder: a Transformers encoder, its tokens' states pooled into one unit vector a text.

The folder is as sentence-transformers writes it (`modules.json` names a Transformer, a Pooling and perhaps a Normalize module), or
a plain Transformers encoder, which is pooled by the mean. What the folder asks for and isn't done here is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedModel

from siftune.chat.batches import token_batches
from siftune.chat.tokenizer import load_tokenizer
from siftune.model.hidden import unit_rows
from siftune.model.identity import model_digest
from siftune.model.load import quiet_transformers
from siftune.model.size import check_size
from siftune.records.errors import SiftuneError
from siftune.records.files import digest_of, read_json

BATCH_TOKENS = 8192
"""Padded tokens of a batch. Padding changes a vector by rounding only."""

_POOLINGS = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}


class SentenceEncoder:
    """Turns texts into unit vectors, in fp32.

    max_length: tokens of a text that are read, as the folder says (None: no limit); the rest of a longer text is not
    n_cut:      how many texts were longer than that, so far
    digest:     what this encoder is, by content: weights, tokenizer and settings
    """

    def __init__(self, path: Path, device: torch.device):
        if not path.is_dir():
            raise SiftuneError(
                "there is no such folder", where=str(path), todo="Give a sentence encoder's folder"
            )
        modules = _modules(path)
        folder = path / modules.get("Transformer", "")
        self.pooling = _pooling(path / modules["Pooling"]) if "Pooling" in modules else "mean"
        self.device = device
        self.tokenizer = load_tokenizer(str(folder.resolve()))
        self.model = _load(folder, device)
        self.prompt = _default_prompt(path)
        settings = _optional(folder / "sentence_bert_config.json")
        self.lower = bool(settings.get("do_lower_case"))
        limits = (
            settings.get("max_seq_length"),
            self.tokenizer.model_max_length,
            getattr(self.model.config, "max_position_embeddings", None),
        )
        # Transformers writes "no limit" as a number near 1e30
        self.max_length = min((n for n in limits if isinstance(n, int) and 0 < n < 2**31), default=None)
        self.n_cut = 0
        tokenizer: Any = self.tokenizer  # a fast one: it has a backend
        self.digest = digest_of(
            [
                model_digest(self.model),
                tokenizer.backend_tokenizer.to_str(),
                self.pooling,
                self.max_length,
                self.lower,
                self.prompt,
            ]
        )[:32]

    def __call__(self, texts: list[str], on_rows: Callable[[int], None] = lambda rows: None) -> np.ndarray:
        """Unit vectors [n, H] of n texts, in their order; NaN for a text without tokens or whose states are not finite."""
        ids = self._tokens(texts)
        vectors_N_H = np.full((len(texts), self.model.config.hidden_size), np.nan, np.float32)
        for batch in token_batches([len(row) for row in ids], BATCH_TOKENS):
            filled = [i for i in batch if ids[i]]
            if filled:
                vectors_N_H[filled] = self._pooled([ids[i] for i in filled])
            on_rows(len(batch))
        return vectors_N_H

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        given = [self.prompt + text.strip() for text in texts]
        if self.lower:
            given = [text.lower() for text in given]
        encoded = self.tokenizer(given, truncation=self.max_length is not None, max_length=self.max_length)
        self.n_cut += sum(bool(row.overflowing) for row in encoded.encodings or [])
        return encoded["input_ids"]

    @torch.no_grad()
    def _pooled(self, ids: list[list[int]]) -> np.ndarray:
        length_B = torch.tensor([len(row) for row in ids])
        longest = int(length_B.max())
        pad = self.tokenizer.pad_token_id or 0
        ids_B_T = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
        inside_B_T = (torch.arange(longest) < length_B[:, None]).to(self.device)
        output = self.model(input_ids=ids_B_T.to(self.device), attention_mask=inside_B_T.long())
        states_B_T_H = output.last_hidden_state.float()
        if self.pooling == "cls":
            return unit_rows(states_B_T_H[:, 0])
        sums_B_H = states_B_T_H.masked_fill(~inside_B_T[..., None], 0).sum(dim=1)
        return unit_rows(sums_B_H / length_B.to(self.device)[:, None])


def _modules(path: Path) -> dict[str, str]:
    """Kind of each sentence-transformers module -> its folder; empty for a plain Transformers folder."""
    if not (path / "modules.json").exists():
        return {}
    found = {module["type"].rpartition(".")[2]: module["path"] for module in _read(path / "modules.json")}
    for kind, folder in found.items():
        if not (path / folder).resolve().is_relative_to(path.resolve()):
            raise SiftuneError(
                f"names the folder {folder!r}, which is not in it",
                where=str(path / "modules.json"),
                todo="Copy the whole folder of the sentence encoder",
            )
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise SiftuneError(
                f"has a {kind} module, which is not supported",
                where=str(path / "modules.json"),
                todo="Use a sentence encoder made of Transformer, Pooling and Normalize",
            )
    return found


def _pooling(folder: Path) -> str:
    """`mean` or `cls`. Newer folders say `pooling_mode`, older ones a flag for each kind."""
    config = _read(folder / "config.json")
    flags = [
        key.removeprefix("pooling_mode_")
        for key, on in config.items()
        if "pooling_mode_" in key and on is True
    ]
    named = [config["pooling_mode"]] if "pooling_mode" in config else flags
    if len(named) != 1 or named[0] not in _POOLINGS:
        raise SiftuneError(
            f"pools by {' and '.join(map(str, named)) or 'nothing'}, which is not supported",
            where=str(folder / "config.json"),
            todo="Use a sentence encoder that pools by the mean or by the first token (cls)",
        )
    return _POOLINGS[named[0]]


def _default_prompt(path: Path) -> str:
    """What sentence-transformers puts before each text where nothing else is asked for; mostly nothing."""
    config = _optional(path / "config_sentence_transformers.json")
    name = config.get("default_prompt_name")
    return config["prompts"][name] if name else ""


def _load(folder: Path, device: torch.device) -> PreTrainedModel:
    if not any(folder.glob("*.safetensors")):
        raise SiftuneError(
            "holds no weights as safetensors, and others are not opened",
            where=str(folder),
            todo="Save the encoder again with save_pretrained",
        )
    try:
        with quiet_transformers():
            check_size(AutoConfig.from_pretrained(str(folder), trust_remote_code=False), folder)
            result: Any = AutoModel.from_pretrained(
                str(folder),
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        text = " ".join(str(error).split())[:300]
        raise SiftuneError(
            f"cannot be loaded as a sentence encoder ({text})",
            where=str(folder),
            todo="Give a folder that sentence-transformers or save_pretrained wrote",
        ) from error
    model, info = result
    if (
        getattr(model, "pooler", None) is not None
    ):  # BERT's own, not used here; random in encoders that come without it
        model.pooler = None
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    missing += sorted(str(key) for key in info["mismatched_keys"])
    if missing or model.config.is_encoder_decoder:
        what = (
            f"{len(missing)} weights are missing, {missing[0]} among them"
            if missing
            else "is an encoder-decoder"
        )
        raise SiftuneError(
            what, where=str(folder), todo="Give the folder of a whole encoder, such as BERT or MiniLM"
        )
    return model.to(device).requires_grad_(False).eval()


def _read(file: Path) -> Any:
    if not file.exists():
        raise SiftuneError(
            "is missing", where=str(file), todo="Copy the whole folder of the sentence encoder"
        )
    return read_json(file)


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}
