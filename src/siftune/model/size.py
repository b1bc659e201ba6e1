"""Is a model as large as its config.json says? Asked before anything of that size is made.

A config is a few lines that can promise a billion layers. The weights beside it can't lie about their own length, so what the
config promises is held against that.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.configuration_utils import PreTrainedConfig

from siftune.records.errors import SiftuneError
from siftune.records.files import check_regular

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def check_size(config: PreTrainedConfig, folder: Path) -> None:
    """Raise SiftuneError where config.json promises more than the weights of `folder` (safetensors) can fill."""
    n_bytes, n_tensors = _weights(folder)
    text = config.get_text_config()
    sizes = {name: getattr(text, name, None) for name in _SIZES}
    for name, value in sizes.items():
        if value is not None and (type(value) is not int or value < 1):
            raise _refused(f"{name} is {str(value)[:40]!r}", folder)
    if (sizes["num_hidden_layers"] or 0) > n_tensors:
        raise _refused(
            f"it promises {sizes['num_hidden_layers']:,} layers, the files hold {n_tensors:,} tensors", folder
        )
    hidden = sizes["hidden_size"] or 1
    # a weight takes a bit or more, and each of these sizes is a side of a matrix whose other side is at least the hidden size
    for name in ("vocab_size", "hidden_size", "intermediate_size"):
        if (sizes[name] or 0) * hidden > 8 * n_bytes:
            raise _refused(
                f"{name} {sizes[name]:,} is more than {n_bytes:,} bytes of weights can hold", folder
            )
    head = getattr(text, "head_dim", None)
    width = (sizes["num_attention_heads"] or 1) * (head if isinstance(head, int) else 1)
    if width > 8 * n_bytes:
        raise _refused(f"its attention is more than {n_bytes:,} bytes of weights can hold", folder)


def _weights(folder: Path) -> tuple[int, int]:
    """Bytes and number of the tensors in a folder's safetensors files."""
    n_bytes = n_tensors = 0
    for file in sorted(folder.glob("*.safetensors")):
        check_regular(file)
        try:
            with safe_open(file, framework="pt") as opened:
                n_tensors += len(opened.keys())
        except (SafetensorError, OSError) as error:
            raise SiftuneError(
                f"cannot be loaded ({error})", where=str(file), todo="Copy it again"
            ) from error
        n_bytes += file.stat().st_size
    return n_bytes, n_tensors


def _refused(what: str, folder: Path) -> SiftuneError:
    return SiftuneError(
        f"config.json does not fit the weights: {what}",
        where=str(folder),
        todo="Copy the model again, config.json and weights from one place",
    )
