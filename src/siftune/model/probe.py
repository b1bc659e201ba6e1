"""The probe for a wrong order among tensors of equal shape.

Moments assigned to the wrong layer have the right shape, so only their content can tell. exp_avg is a running mean of
gradients, so it resembles the mean gradient of its own tensor more than that of another. For each class of
tensors with the same shape:

    c[i, j]  = |<exp_avg_i, gradient_j>| / (|exp_avg_i| |gradient_j|)
    identity = mean_i c[i, i]
    best     = max over permutations p of mean_i c[i, p(i)]
    chance   = mean of the c[i, j] outside both, noise = their root mean square times sqrt(2 ln n²), what the largest of
               n² such numbers reaches

The sign is left out because a gradient swings: on a real model a tensor's moments and its gradient are often opposed,
and still in one line. The order is refused on either of two grounds.

1. Strong signal, part of it missed: best - chance > SIGNAL noise, and best - identity > MISSED (best - chance), in any
   class. This sees a few swapped tensors too.
2. Weak signal, which noise, made for the largest of all numbers, hides: some order fits, and it is not this one. With
   d[i, j] = c[i, j] less its row's and its column's mean plus the mean of all, which no permutation's value depends on:

       structure = (best of d - mean best of shuffled d) / standard deviation of the latter, over SHUFFLES shuffles of
                   the entries, again less their means and scaled to the norm of d
       fit       = mean_i d[i, i] / its standard deviation over all n! permutations, sqrt(Σ d² / (n - 1)) / n

   both summed over the classes and divided by the root of their number: structure > STRUCTURE and fit < structure / 2.
   An honest order's fit is above its structure, as that pays for the choice among n! permutations.

Of two or three tensors too little is left to know the noise by: their figures are recorded only. What is not found:
orders where too little signal is left for any order to stand out, so that best is what shuffled numbers reach (moments of
a training on data quite unlike the pool); and, where the signal is weak, a wrong order of some of the tensors only.
A fit below 3 then says that the order is not confirmed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from siftune.model.lora import lora_parameters
from siftune.records.errors import SiftuneError

# Calibrated on warm-ups of SmolLM2-135M (60 and 120 tensors of a shape, 8 and 32 probe rows, three checkpoints) and of
# tiny models (2 to 8 tensors of a shape). Signal in units of noise: at least 1.07, unrelated moments at most 0.60.
# Missed part of it: true order at most 0.06; a third of the tensors moved, 0.30 or more; all moved, 0.9 or more.
SIGNAL, MISSED = 1.0, 0.1
# Calibrated on 29 trainings of tiny models (4 to 48 tensors of a shape; batches of one with dropout, one step, one row,
# a learning rate far too high). Honest orders: fit at least 3, and at least 1.2 structure where any is found; wrong orders
# of all tensors that only ground 2 finds: structure 3.2 or more, fit at most 0.4 structure. Random numbers: about 0 ± 1.
STRUCTURE = 3.0
SHUFFLES = 50
ENOUGH = 4
"""Tensors of a shape from which on the noise can be told from the others; fewer are recorded, never refused."""


def mean_gradients(model: PeftModel, batches: Iterable[tuple[Any, Any]]) -> dict[str, Tensor]:
    """Mean gradient of the loss over θ: name as in the adapter file -> fp32 tensor on the CPU.

    batches: of (token ids [B, T] int, trained [B, T] bool), right-padded, arrays or tensors; every trained token
             weighs the same. Plain autograd, dropout off.
    """
    device = next(model.parameters()).device
    parameters = {name: p.requires_grad_(True) for name, p in lora_parameters(model).items()}
    model.eval()
    total = {name: torch.zeros(p.shape) for name, p in parameters.items()}
    tokens = 0
    for ids, trained in batches:
        ids = torch.as_tensor(ids, device=device).long()
        mask = torch.as_tensor(trained, device=device).bool()[:, 1:]
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = cross_entropy(logits[mask].float(), ids[:, 1:][mask], reduction="sum")
        found = torch.autograd.grad(loss, list(parameters.values()))
        for name, gradient in zip(parameters, found, strict=True):
            total[name] += gradient.float().cpu()
        tokens += int(mask.sum())
    if tokens == 0:
        raise SiftuneError("the probe was given no trained token", todo="Give it some pool rows")
    return {name: value / tokens for name, value in total.items()}


def check_order(exp_avg: dict[str, Tensor], gradients: dict[str, Tensor], where: str) -> list[dict[str, Any]]:
    """Refuse moments whose order among tensors of equal shape is wrong; the figures per shape otherwise.

    Both mappings: name as in the adapter file -> tensor of the same shape. JSON: for each shape `shape`, `tensors`,
    `identity`, `best`, `chance`, `noise`, `structure`, `fit` as the module's head defines them, and `moved`: tensors
    that the best permutation puts elsewhere.
    """
    figures = order_figures(exp_avg, gradients)
    known = [figure for figure in figures if figure["tensors"] >= ENOUGH and figure["best"] > 0]
    for figure in known:
        signal = figure["best"] - figure["chance"]
        missed = figure["best"] - figure["identity"]
        if signal > SIGNAL * figure["noise"] and missed > MISSED * signal:
            raise _wrong_order(figure, where)
    structure, fit = (sum(figure[key] for figure in known) for key in ("structure", "fit"))
    if structure > STRUCTURE * math.sqrt(len(known)) and fit < structure / 2:
        raise _wrong_order(max(known, key=lambda figure: figure["structure"] - figure["fit"]), where)
    return figures


def _wrong_order(figure: dict[str, Any], where: str) -> SiftuneError:
    return SiftuneError(
        f"Adam's moments are in another order than the adapter's tensors: of {figure['tensors']} tensors of "
        f"shape {figure['shape']}, {figure['moved']} fit another tensor's gradient better (mean |cosine| "
        f"{figure['best']:.3f} in the best order, {figure['identity']:.3f} as they are)",
        where=where,
        todo="Use a checkpoint of a training whose optimizer Trainer made, or leave out --adopt",
    )


def order_figures(exp_avg: dict[str, Tensor], gradients: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The probe's figures for each shape that at least two tensors have, see `check_order`."""
    classes: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, moment in exp_avg.items():
        classes[tuple(moment.shape)].append(name)
    figures = []
    for shape, names in classes.items():
        n = len(names)
        if n < 2:
            continue
        cosine = (
            _unit_rows([exp_avg[name] for name in names]) @ _unit_rows([gradients[name] for name in names]).T
        )
        fit, rows = np.abs(cosine), np.arange(n)
        order = best_assignment(fit)
        unlike = np.ones((n, n), dtype=bool)
        unlike[rows, rows] = unlike[rows, order] = False
        rest = (
            fit[unlike] if unlike.any() else np.zeros(1)
        )  # two tensors in the wrong order leave nothing over
        spread = max(1 / math.sqrt(math.prod(shape)), float(np.sqrt(np.mean(rest**2))))
        figures.append(
            {
                "shape": list(shape),
                "tensors": n,
                "identity": float(fit[rows, rows].mean()),
                "best": float(fit[rows, order].mean()),
                "chance": float(rest.mean()),
                "noise": spread * math.sqrt(2 * math.log(n * n)),
                "moved": int((order != rows).sum()),
                "structure": _structure(fit, order),
                "fit": _fit(fit),
            }
        )
    return figures


def _centred(c_N_N: NDArray[np.float64]) -> NDArray[np.float64]:
    return c_N_N - c_N_N.mean(0) - c_N_N.mean(1, keepdims=True) + c_N_N.mean()


def _structure(c_N_N: NDArray[np.float64], order: NDArray[np.intp]) -> float:
    """How far the best permutation's value is above that of shuffled entries, in their standard deviations."""
    rng, rows = np.random.default_rng(0), np.arange(len(c_N_N))
    d_N_N = _centred(c_N_N)
    reached = np.zeros(SHUFFLES)
    for index in range(SHUFFLES):
        shuffled = _centred(rng.permuted(d_N_N.ravel()).reshape(d_N_N.shape))
        norm = np.linalg.norm(shuffled)
        if norm > 0:
            shuffled *= np.linalg.norm(d_N_N) / norm
        reached[index] = shuffled[rows, best_assignment(shuffled)].mean()
    spread = float(reached.std())
    return float(d_N_N[rows, order].mean() - reached.mean()) / spread if spread > 0 else 0.0


def _fit(c_N_N: NDArray[np.float64]) -> float:
    """How far the identity's value is above that of a random permutation, in standard deviations of the latter."""
    n, d_N_N = len(c_N_N), _centred(c_N_N)
    spread = float(np.linalg.norm(d_N_N)) / math.sqrt(n - 1) / n
    return float(d_N_N.diagonal().mean()) / spread if spread > 0 else 0.0


def best_assignment(gain_N_N: NDArray[np.floating]) -> NDArray[np.intp]:
    """The permutation p with the largest Σ gain[i, p(i)] (Hungarian method with potentials, O(N³))."""
    n = gain_N_N.shape[0]
    cost = np.zeros((n + 1, n + 1))
    cost[1:, 1:] = -gain_N_N
    row_potential, column_potential = np.zeros(n + 1), np.zeros(n + 1)
    row_of = np.zeros(n + 1, dtype=np.intp)  # column -> row; row and column 0 are the method's start
    for row in range(1, n + 1):
        row_of[0], column = row, 0
        slack, reached_from = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=np.intp)
        done = np.zeros(n + 1, dtype=bool)
        while True:
            done[column] = True
            reduced = cost[row_of[column]] - row_potential[row_of[column]] - column_potential
            better = ~done & (reduced < slack)
            slack[better], reached_from[better] = reduced[better], column
            nearest = int(np.argmin(np.where(done, np.inf, slack)))
            delta = slack[nearest]
            row_potential[row_of[done]] += delta
            column_potential[done] -= delta
            slack[~done] -= delta
            column = nearest
            if row_of[column] == 0:
                break
        while column:
            row_of[column] = row_of[reached_from[column]]
            column = int(reached_from[column])
    result = np.empty(n, dtype=np.intp)
    result[row_of[1:] - 1] = np.arange(n)
    return result


def _unit_rows(tensors: list[Tensor]) -> NDArray[np.float64]:
    rows = np.stack([tensor.detach().double().cpu().numpy().ravel() for tensor in tensors])
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)
