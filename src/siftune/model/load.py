"""Load the frozen base model: a Transformers folder or hub id, safetensors only, never remote code.

Whatever would make the model another one than the person meant is refused rather than warned about: weights that are
missing from the files, an adapter folder in place of a model, an encoder-decoder.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from siftune.model.memory import bound_memory
from siftune.model.size import check_size
from siftune.records.errors import SiftuneError
from siftune.records.files import check_regular

Dtype = Literal["fp32", "bf16", "fp16"]
TORCH_DTYPE: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_model(
    model: str,
    *,
    revision: str | None = None,
    dtype: Dtype = "fp32",
    attn: str | None = None,
    quantize: Literal["8bit", "4bit"] | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """The causal language model `model` (folder or hub id), every weight frozen, in eval mode, on `device` (CPU).

    dtype:    of the base weights; LoRA weights put on it are fp32 in any case
    attn:     attention implementation as Transformers names it; None = its own choice
    quantize: quantise the base while loading, with bitsandbytes; a folder that is already quantised needs none
    Raises SiftuneError for anything that isn't there, isn't whole or isn't supported.
    """
    device = device or torch.device("cpu")
    if device.type == "cpu":
        bound_memory()
    folder = _local_folder(model)
    if folder is not None:
        _check_folder(folder)
    config = _load_config(model, folder, revision)
    if folder is not None:
        check_size(config, folder)
    options: dict[str, Any] = {"attn_implementation": attn} if attn else {}
    if _is_quantised(config):
        if quantize:
            raise SiftuneError("the model is already quantised", where=model, todo="Leave out --quantize")
        options["device_map"] = {"": device}
    elif quantize:
        options |= {"quantization_config": _bitsandbytes(quantize, dtype), "device_map": {"": device}}
    try:
        with quiet_transformers():
            result: Any = AutoModelForCausalLM.from_pretrained(
                str(folder or model),
                config=config,
                revision=revision,
                dtype=TORCH_DTYPE[dtype],
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    # Any Exception: a config.json of the wrong types breaks a model's own code anywhere
    except Exception as error:
        raise _load_error(error, model, folder) from error
    loaded, info = result
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise SiftuneError(
            f"{len(missing)} weights of a {type(loaded).__name__} are not in the files, {missing[0]} among them",
            where=model,
            todo="Use a folder that holds the whole causal language model",
        )
    if not (quantize or _is_quantised(config)):
        loaded = loaded.to(device)
    loaded.config.use_cache = False
    return loaded.requires_grad_(False).eval()


def positions_of(model: str, revision: str | None) -> int | None:
    """How many positions a model has, None where its configuration doesn't say."""
    config = _load_config(model, _local_folder(model), revision).get_text_config()
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 1 else None


def choose_dtype(setting: str, device: torch.device) -> tuple[Dtype, str]:
    """The dtype of the base weights for a setting (`auto`, fp32, bf16, fp16) on a device, and the reason in words."""
    if setting == "auto":
        if device.type == "cuda":
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return "bf16", "the GPU computes in bf16"
            return "fp32", "the GPU has no bf16"
        if device.type == "cpu":
            found = sorted({"amx_bf16", "avx512_bf16"} & _cpu_flags())
            if found:
                return "bf16", f"the CPU has {' and '.join(found)}"
            return "fp32", "the CPU has no bf16 instructions"
        return "fp32", f"no faster dtype is known to be safe on {device.type}"
    if setting == "fp32":
        return "fp32", "as set"
    if setting == "bf16":
        return "bf16", "as set"
    if setting == "fp16":
        return "fp16", "as set"
    raise SiftuneError(
        f"there is no dtype {setting!r}", where="dtype", todo="Choose auto, fp32, bf16 or fp16"
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers' own bars, log lines and deprecation warnings off for a block: siftune raises or tells what matters."""
    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _cpu_flags() -> set[str]:
    """The instruction sets of the CPU as Linux lists them; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    lines = (line.partition(":")[2] for line in text.splitlines() if line.startswith("flags"))
    return set(next(lines, "").split())


def _local_folder(model: str) -> Path | None:
    """The folder that `model` names, or None where it is a hub id."""
    if not model:
        raise SiftuneError(
            "no model is given", where="model", todo="Give a model folder or hub id: --model M"
        )
    path = Path(os.path.expanduser(model))
    if path.is_dir():
        return path
    if path.is_file():
        raise SiftuneError(
            "is a file, not a model folder", where=model, todo="Give the folder that holds config.json"
        )
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        if model.count("/") == 0 and model and not model.startswith((".", "~")):
            return None  # old hub names such as `gpt2`
        raise SiftuneError(
            "there is no such folder", where=model, todo="Give a model folder or a hub id owner/name"
        )
    return None


def _check_folder(folder: Path) -> None:
    """Refuse a folder that isn't a whole safetensors model."""
    names = {path.name for path in folder.iterdir()}
    if "adapter_config.json" in names:
        raise SiftuneError(
            "is a LoRA adapter, not a model",
            where=str(folder),
            todo="Give its base as --model and this folder as --adapter",
        )
    if "config.json" not in names:
        raise SiftuneError(
            "holds no config.json, so it is not a Transformers model",
            where=str(folder),
            todo="Give the folder that save_pretrained wrote",
        )
    check_regular(folder / "config.json")
    if any(name.endswith(".safetensors") for name in names):
        return
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        raise SiftuneError(
            "holds only pickled weights, which are not opened",
            where=str(folder),
            todo="Convert once where you trust the file: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW) "
            "writes safetensors",
        )
    raise SiftuneError("holds no weights (*.safetensors)", where=str(folder), todo="Copy the weights into it")


def _load_config(model: str, folder: Path | None, revision: str | None) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(str(folder or model), revision=revision, trust_remote_code=False)
    # Any Exception: see above
    except Exception as error:
        raise _load_error(error, model, folder) from error
    if getattr(config, "is_encoder_decoder", False):
        raise SiftuneError(
            f"a {config.model_type} model is an encoder-decoder, which is not supported",
            where=model,
            todo="Use a decoder-only (causal) language model",
        )
    masked = [name for name in config.architectures or [] if name.endswith("ForMaskedLM")]
    if masked:
        raise SiftuneError(
            f"{masked[0]} is a masked language model, which is not supported",
            where=model,
            todo="Use a decoder-only (causal) language model",
        )
    return config


def _is_quantised(config: PreTrainedConfig) -> bool:
    return getattr(config, "quantization_config", None) is not None


def _bitsandbytes(quantize: str, dtype: Dtype) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SiftuneError(
            f"a base in {quantize} needs the package bitsandbytes",
            where="quantize",
            todo="Install it: pip install bitsandbytes",
        )
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=TORCH_DTYPE[dtype],
    )


def _load_error(error: Exception, model: str, folder: Path | None) -> SiftuneError:
    """What Transformers said, as a sentence that names the model and the way on."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError | TypeError | AttributeError):
        text = f"{type(error).__name__}: {text}"
    if "trust_remote_code" in text:
        return SiftuneError(
            "the model brings its own code, which is never run",
            where=model,
            todo="Use a model whose architecture is part of Transformers",
        )
    short = text if len(text) <= 300 else text[:300] + " …"
    if isinstance(error, ImportError):
        return SiftuneError(
            f"a package is missing ({short})", where=model, todo="Install what it names, or change --attn"
        )
    if folder is None and isinstance(error, OSError):
        return SiftuneError(
            f"the hub gave no model ({short})",
            where=model,
            todo="Check the name, the revision and the network; gated models need HF_TOKEN; a local folder works too",
        )
    return SiftuneError(
        f"cannot be loaded ({short})", where=model, todo="Check that the folder is a whole causal model"
    )
