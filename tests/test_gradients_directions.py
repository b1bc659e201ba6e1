"""Directions against a real torch.optim.AdamW step."""

from __future__ import annotations

import pytest
import torch

from siftune.gradients.directions import AdamState, direction


@pytest.mark.parametrize("steps", [1, 2, 30])
@pytest.mark.parametrize(("beta1", "beta2", "epsilon"), [(0.9, 0.999, 1e-8), (0.8, 0.95, 1e-3)])
def test_adam_is_the_next_step_of_a_real_adamw(
    steps: int, beta1: float, beta2: float, epsilon: float
) -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(50, dtype=torch.float64))
    lr = 0.01
    optimizer = torch.optim.AdamW([p], lr=lr, betas=(beta1, beta2), eps=epsilon, weight_decay=0.0)
    for _ in range(steps):
        p.grad = torch.randn_like(p) * 10 ** torch.linspace(-6, 0, 50, dtype=torch.float64)
        optimizer.step()
    state = optimizer.state[p]
    adam = AdamState(
        {"p": state["exp_avg"].clone()},
        {"p": state["exp_avg_sq"].clone()},
        beta1,
        beta2,
        epsilon,
        int(state["step"]),
    )
    g = torch.randn_like(p) * 10 ** torch.linspace(-6, 0, 50, dtype=torch.float64)
    before = p.detach().clone()
    p.grad = g.clone()
    optimizer.step()
    wanted = (before - p.detach()) / lr
    got = direction("adam", "p", g[None], adam)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


def test_moments_are_not_changed_by_asking() -> None:
    m, v, g = torch.ones(4), torch.full((4,), 1e-6), torch.randn(3, 4)
    state = AdamState({"p": m.clone()}, {"p": v.clone()}, 0.9, 0.999, 1e-8, 5)
    kept = g.clone()
    for kind in ("adam", "adam-less", "adam-precond", "sgd", "sign"):
        direction(kind, "p", g, state)
    assert torch.equal(state.exp_avg["p"], m)
    assert torch.equal(state.exp_avg_sq["p"], v)
    assert torch.equal(g, kept)


def test_without_moments_only_sgd_and_sign() -> None:
    g = torch.randn(2, 3)
    assert torch.equal(direction("sgd", "p", g, None), g)
    with pytest.raises(ValueError, match="moments"):
        direction("adam", "p", g, None)
