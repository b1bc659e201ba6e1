"""Features made in batches against one-example-at-a-time autograd, over architectures, directions, projections and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import scaled_dot_product_attention

from gradient_oracle import directed, gradients, projected, random_state
from model_helpers import ARCHITECTURES, VOCAB, tiny_model, write_tiny_model
from siftune.gradients import features
from siftune.gradients.features import FeatureExtractor
from siftune.gradients.projection import make_projector
from siftune.model.attention import SHORT, ShortAttentionInFp32
from siftune.model.load import load_model
from siftune.model.lora import add_lora, lora_parameters
from siftune.records.errors import SiftuneError

LENGTHS = (9, 3, 17, 6)


def trained_lora(
    arch: str, targets: tuple[str, ...] = ("all-linear",), dropout: float = 0.3, seed: int = 0
) -> PeftModel:
    """An adapter whose B is not zero, with dropout that must not show in features."""
    model = add_lora(tiny_model(arch), rank=4, alpha=8.0, dropout=dropout, targets=targets, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for p in lora_parameters(model).values():
        p.data = torch.randn(p.shape, generator=generator) * 0.1
    return model


def rows(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    made = []
    for length in lengths:
        trained = generator.random(length) < 0.6
        trained[0], trained[-1] = False, True
        made.append((generator.integers(3, VOCAB, length).astype(np.int32), trained))
    return made


def padded(
    some: list[tuple[np.ndarray, np.ndarray]], extra: int = 0, pad: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    width = max(len(ids) for ids, _ in some) + extra
    ids = np.full((len(some), width), pad, np.int64)
    trained = np.zeros((len(some), width), bool)
    for b, (row_ids, row_trained) in enumerate(some):
        ids[b, : len(row_ids)], trained[b, : len(row_ids)] = row_ids, row_trained
    return ids, trained


def extractor(
    model: PeftModel, projection: str = "none", n_features: int = 64, **settings: bool
) -> FeatureExtractor:
    sizes = {name: p.numel() for name, p in lora_parameters(model).items()}
    return FeatureExtractor(
        model, make_projector(projection, sizes, n_features, 7), random_state(model), **settings
    )


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_batched_features_are_those_of_plain_autograd(arch: str, checkpointing: bool) -> None:
    model = trained_lora(arch)
    extract = extractor(model, gradient_checkpointing=checkpointing)
    some = rows()
    for kind in ("sgd", "adam"):
        batch = extract(*padded(some, extra=2), kind)
        for b, (ids, trained) in enumerate(some):
            loss, gradient = gradients(model, ids, trained)
            parts = directed(kind, gradient, extract.state)
            whole = projected("none", parts, 0, 0)
            norm = np.linalg.norm(whole)
            assert relative_error(batch.features_B_D[b], whole / norm) < 1e-5
            assert batch.loss_B[b] == pytest.approx(loss, rel=1e-5)
            assert batch.direction_norm_B[b] == pytest.approx(norm, rel=1e-5)
            assert batch.projection_norm_B[b] == pytest.approx(norm, rel=1e-5)
            grad_norm = torch.cat(list(gradient.values())).norm().item()
            assert batch.grad_norm_B[b] == pytest.approx(grad_norm, rel=1e-5)


@pytest.mark.parametrize("projection", ["none", "sketch", "rademacher"])
@pytest.mark.parametrize("kind", ["adam", "adam-less", "adam-precond", "sgd", "sign"])
def test_every_direction_and_projection(kind: str, projection: str) -> None:
    model = trained_lora("llama", ("q_proj", "o_proj"))
    extract = extractor(model, projection, n_features=96)
    some = rows((5, 8))
    batch = extract(*padded(some), kind)
    for b, (ids, trained) in enumerate(some):
        _, gradient = gradients(model, ids, trained)
        parts = directed(kind, gradient, extract.state)
        whole = projected(projection, parts, 96, 7)
        if kind == "sign":  # coordinates whose gradient is rounding noise have either sign
            assert batch.features_B_D[b] @ (whole / np.linalg.norm(whole)) > 0.999
            continue
        assert relative_error(batch.features_B_D[b], whole / np.linalg.norm(whole)) < 1e-5
        assert batch.projection_norm_B[b] == pytest.approx(np.linalg.norm(whole), rel=1e-5)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("arch", ["llama", "gemma", "gpt2"])
def test_batch_mates_order_and_padding_change_a_feature_by_rounding_only(arch: str, attn: str) -> None:
    model = trained_lora(arch)
    model.get_base_model().set_attn_implementation(attn)
    extract = extractor(model, "sketch", 128)
    some = rows()
    alone = [extract(*padded([row]), "adam").features_B_D[0] for row in some]
    for order, extra, pad in (((0, 1, 2, 3), 0, 2), ((3, 2, 1, 0), 5, 0), ((1, 3), 1, 9), ((2, 2, 0), 0, 2)):
        batch = extract(*padded([some[i] for i in order], extra, pad), "adam")
        for b, i in enumerate(order):
            assert relative_error(batch.features_B_D[b], alone[i]) < 1e-5


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_gradient_taken_in_parts_is_the_same_to_the_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained_lora("llama")
    whole = extractor(model, "sketch", 128)(*padded(rows()), kind)
    for numbers in (
        1,
        3 * max(p.numel() for p in lora_parameters(model).values()),
    ):  # one row at a time; three
        monkeypatch.setattr(features, "PART_NUMBERS_CPU", numbers)
        for of_whole, of_parts in zip(
            whole, extractor(model, "sketch", 128)(*padded(rows()), kind), strict=True
        ):
            np.testing.assert_array_equal(of_parts, of_whole)


def test_a_broken_row_has_no_feature_and_leaves_its_batch_mates_alone() -> None:
    model = trained_lora("llama")
    extract = extractor(model, "sketch", 64)
    some = rows()
    sound = extract(*padded(some), "adam").features_B_D
    poison = int(some[1][0][0])
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[poison] = torch.nan
    clean = [i for i, (ids, _) in enumerate(some) if poison not in ids]
    batch = extract(*padded(some), "adam")
    assert 1 not in clean
    assert len(clean) >= 1
    assert np.isnan(batch.features_B_D[1]).all()
    assert not np.isfinite(batch.loss_B[1])
    for i in clean:
        assert relative_error(batch.features_B_D[i], sound[i]) < 1e-5


def test_a_zero_direction_has_no_feature() -> None:
    model = trained_lora("llama")
    for name, p in lora_parameters(model).items():
        if "lora_A" in name:
            p.data.zero_()
    for p in lora_parameters(model).values():
        p.data.zero_()
    batch = extractor(model, "sketch", 64)(*padded(rows()), "sgd")
    assert np.isnan(batch.features_B_D).all()
    assert (batch.grad_norm_B == 0).all()


def test_parameters_are_left_as_they_were() -> None:
    model = trained_lora("qwen2")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    extract = extractor(model)
    extract(*padded(rows()), "adam")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    loss_now = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert torch.isfinite(loss_now).all()


def test_a_module_used_twice_is_refused() -> None:
    model = trained_lora("llama", ("q_proj",))
    layers = model.get_base_model().model.layers
    layers[1].self_attn.q_proj = layers[0].self_attn.q_proj
    with pytest.raises(SiftuneError, match="more than once"):
        extractor(model)(*padded(rows()), "sgd")


def test_rows_and_tokens_may_be_flattened_but_not_a_part_of_them_taken() -> None:
    model = trained_lora("llama", ("down_proj",))
    some = padded(rows())
    wanted = extractor(model)(*some, "adam").features_B_D
    mlp = model.get_base_model().model.layers[0].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x.flatten(0, 1)).view(x.shape)  # as OPT does
    np.testing.assert_allclose(extractor(model)(*some, "adam").features_B_D, wanted, rtol=1e-5, atol=1e-7)
    mlp.forward = lambda x: x + plain(x.flatten(0, 1)[:5]).sum()  # as an expert of a mixture does
    with pytest.raises(SiftuneError, match="told apart by example"):
        extractor(model)(*some, "sgd")


def test_a_part_of_the_model_that_no_row_reaches_counts_as_gradient_zero() -> None:
    model = trained_lora("llama", ("q_proj", "down_proj"))
    mlp = model.get_base_model().model.layers[0].mlp
    mlp.forward = lambda x: x * 0.5
    extract = extractor(model)
    ids, trained = rows()[0]
    batch = extract(*padded([(ids, trained)]), "adam")
    parameters = lora_parameters(model)
    unreached = {n for n in parameters if "layers.0.mlp" in n}
    for n in unreached:  # so that plain autograd has something to differentiate
        assert parameters[n].numel() > 0
    loss = -model(input_ids=torch.from_numpy(ids).long()[None]).logits[0].log_softmax(-1)
    assert torch.isfinite(loss).all()
    offset, start = 0, {}
    for n, p in parameters.items():
        start[n] = offset
        offset += p.numel()
    m_only = directed("adam", {n: torch.zeros(parameters[n].numel()) for n in unreached}, extract.state)
    for n in unreached:
        got = batch.features_B_D[0, start[n] : start[n] + parameters[n].numel()] * batch.direction_norm_B[0]
        np.testing.assert_allclose(got, m_only[n].float().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("quantize", "tolerance"), [("4bit", 1e-5), ("8bit", 2e-2)])
def test_the_base_may_be_quantised(quantize: str, tolerance: float, tmp_path: Path) -> None:
    """The 8-bit base rounds activations to fp16, so rows agree less closely with their lone selves."""
    base = load_model(
        str(write_tiny_model(tmp_path, "llama", hidden=64)), quantize=quantize
    )  # 4-bit blocks are of 64
    model = add_lora(base, rank=4, alpha=8.0, dropout=0.0, targets=("q_proj", "v_proj", "down_proj"), seed=0)
    generator = torch.Generator().manual_seed(1)
    for p in lora_parameters(model).values():
        p.data = torch.randn(p.shape, generator=generator) * 0.1
    extract = extractor(model)
    some = rows((5, 9, 7))
    batch = extract(*padded(some), "adam")
    for b, (ids, trained) in enumerate(some):
        _, gradient = gradients(model, ids, trained)
        whole = projected("none", directed("adam", gradient, extract.state), 0, 0)
        assert relative_error(batch.features_B_D[b], whole / np.linalg.norm(whole)) < tolerance


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_features_in_bf16_are_those_of_fp32_but_for_rounding(arch: str) -> None:
    """LoRA terms, their gradients and short attention take other ways there; fp16 activations get fp32 terms."""
    some = rows((30, 12, 41))
    exact = extractor(trained_lora(arch, dropout=0.0))(*padded(some), "sgd")
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        model = trained_lora(arch, dropout=0.0)
        kept = {name: p.data.clone() for name, p in lora_parameters(model).items()}
        model.to(dtype)
        for name, p in lora_parameters(model).items():
            p.data = kept[name]
        found = extractor(model)(*padded(some), "sgd")
        for b in range(len(some)):
            assert relative_error(found.features_B_D[b], exact.features_B_D[b]) < tolerance
        np.testing.assert_allclose(found.loss_B, exact.loss_B, rtol=tolerance)


def test_short_attention_of_a_16_bit_model_runs_in_fp32() -> None:
    """Short rows only, only where a gradient is wanted, and the values are those of bf16 attention but for rounding."""

    def attend(tokens: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        generator = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(2, heads, tokens, 8, generator=generator).bfloat16().requires_grad_(True)
            for heads in (4, 2, 2)
        )
        out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        (slope,) = torch.autograd.grad(out.float().square().sum(), q)
        return out, slope, type(out.grad_fn).__name__

    plain, plain_slope, kernel = attend(SHORT)
    with ShortAttentionInFp32():
        wide, wide_slope, cast = attend(SHORT)
        *_, long = attend(SHORT + 1)
        with torch.no_grad():
            untouched = scaled_dot_product_attention(*(torch.ones(1, 1, 2, 4).bfloat16(),) * 3)
    assert cast == "ToCopyBackward0"
    assert long == kernel != cast
    assert wide.dtype == wide_slope.dtype == untouched.dtype == torch.bfloat16
    torch.testing.assert_close(wide, plain, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(wide_slope, plain_slope, rtol=5e-2, atol=5e-2)


def test_recomputed_layers_of_a_16_bit_model_attend_as_they_did() -> None:
    model = trained_lora("llama")
    model.get_base_model().to(torch.bfloat16)
    some = rows()
    stored, again = (
        extractor(model, gradient_checkpointing=on)(*padded(some), "sgd").features_B_D for on in (False, True)
    )
    np.testing.assert_array_equal(again, stored)


def test_another_adapter_than_plain_lora_is_refused_here_too() -> None:
    """An extractor may be given any PEFT model; DoRA's gradients of A and B are not those of LoRA."""
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model("llama"), config)
    assert isinstance(model, PeftModel)
    with pytest.raises(SiftuneError, match="DoRA"):
        extractor(model)


def test_long_answers_keep_their_gradient_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean over many tokens makes each token's part small, for fp16 too small: the loss is lifted on the way down."""
    some = rows((900,))
    exact = extractor(trained_lora("llama", dropout=0.0))(*padded(some), "sgd")

    def error_in_fp16() -> float:
        model = trained_lora("llama", dropout=0.0)
        kept = {name: p.data.clone() for name, p in lora_parameters(model).items()}
        model.to(torch.float16)
        for name, p in lora_parameters(model).items():
            p.data = kept[name]
        found = extractor(model)(*padded(some), "sgd")
        np.testing.assert_allclose(found.grad_norm_B, exact.grad_norm_B, rtol=0.05)
        return relative_error(found.features_B_D[0], exact.features_B_D[0])

    lifted = error_in_fp16()
    assert lifted < 0.01
    monkeypatch.setattr(features, "_lift", lambda model, trained: torch.ones(len(trained)))
    assert error_in_fp16() > 1.3 * lifted
