"""Which adapters are supported: plain LoRA on linear layers. Everything else is refused by name, before any work."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from siftune.records.errors import SiftuneError

# LoraConfig fields that change what an adapter computes, and what a person calls them
_KINDS = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "monteclora_config": "Monte Carlo LoRA",
    "velora_config": "VeLoRA",
    "kasa_config": "KaSA",
    "layer_replication": "layer replication",
    "ensure_weight_tying": "LoRA on tied weights",
}
# Starts whose loading would change the base weights once more; the others only choose the first A and B
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")


def check_config(config: Any, where: str | None = None) -> None:
    """Raise SiftuneError where an adapter's configuration (a PeftConfig) is not plain LoRA."""
    if not isinstance(config, LoraConfig):
        raise _refused(f"{config.peft_type or 'unknown'} adapters are not supported", where)
    for field, name in _KINDS.items():
        if getattr(config, field, None):
            raise _refused(f"{name} ({field}) is not supported", where)
    if config.target_parameters:
        raise _refused("adapters on MoE experts (target_parameters) are not supported", where)
    if config.init_lora_weights not in _PLAIN_STARTS:
        raise SiftuneError(
            f"an adapter that started from {config.init_lora_weights!r} changes the base weights, which is not supported",
            where=where,
            todo="Convert it to plain LoRA with peft: save_pretrained(path_initial_model_for_weight_conversion=…)",
        )


def check_supported(model: nn.Module) -> None:
    """Raise SiftuneError unless `model` is a decoder with one active plain LoRA adapter on linear layers."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise SiftuneError(
            "encoder-decoder models are not supported", todo="Use a decoder-only (causal) language model"
        )
    if not isinstance(model, PeftModel):
        raise SiftuneError(
            "the model has no adapter, and gradients of all its weights are not supported",
            todo="Put LoRA on it",
        )
    if len(model.peft_config) != 1 or len(model.active_adapters) != 1:
        raise _refused(f"several adapters ({', '.join(model.peft_config)}) are not supported", None)
    adapter = model.active_adapters[0]
    check_config(model.peft_config[adapter])
    base = model.get_base_model()
    layers, head = 0, base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            if module is head:
                raise _refused("LoRA on the output head is not supported", name)
            layers += _check_layer(name, module, adapter)
    if layers == 0:
        raise _refused("the adapter has no LoRA layer", None)


def _check_layer(name: str, layer: LoraLayer, adapter: str) -> int:
    """1 where the layer carries the adapter, 0 where it doesn't; SiftuneError where it is not plain LoRA."""
    if adapter in layer.lora_embedding_A:
        raise _refused("LoRA on an embedding is not supported", name)
    if type(layer).__name__ == "ParamWrapper" or ".experts." in f".{name}.":
        raise _refused("adapters on MoE experts are not supported", name)
    if adapter not in layer.lora_A:
        return 0
    if not isinstance(layer.lora_A[adapter], nn.Linear) or type(layer).__name__ == "MultiheadAttention":
        raise _refused(f"LoRA on a {type(layer.get_base_layer()).__name__} layer is not supported", name)
    if adapter in layer.lora_variant:
        raise _refused(f"{type(layer.lora_variant[adapter]).__name__} is not supported", name)
    if layer.merged:
        raise _refused("a merged adapter is not supported", name)
    return 1


def _refused(what: str, where: str | None) -> SiftuneError:
    return SiftuneError(what, where=where, todo="Use a plain LoRA adapter on linear layers")
