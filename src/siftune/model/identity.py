"""What model this is, by content: a digest of every parameter's name, type, shape and bytes."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def model_digest(model: nn.Module) -> str:
    """32 hex digits of the weights as loaded (so also of dtype and quantisation). About a second a gigabyte."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        flat = parameter.detach().contiguous().flatten().view(torch.uint8)
        for part in flat.split(2**28):
            digest.update(part.cpu().numpy().data)
    return digest.hexdigest()[:32]
