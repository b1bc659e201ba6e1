"""A model as the lm-eval harness asks it: in batches by tokens, told of as it goes, quietly, leaving everything else as it was."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from siftune.chat.encoder import ChatEncoder, default_template
from siftune.model.load import quiet_transformers
from siftune.proof.prompts import Prompts
from siftune.records.errors import SiftuneError

if TYPE_CHECKING:
    from torch import nn

SEED = 1234
"""The harness's own."""


def lm_eval_module(name: str) -> Any:
    """A module of lm-eval, which is an extra: type checks must do without it."""
    return import_module(f"lm_eval.{name}")


def answerer(
    model: nn.Module, encoder: ChatEncoder, batch_tokens: int, on_requests: Callable[[int], None]
) -> Any:
    """The model as the harness asks it: batches by tokens, progress told, prompts that don't fit counted in `n_cut`."""
    hook: Any = lm_eval_module("api.model").CacheHook
    hflm: Any = lm_eval_module("models.huggingface").HFLM

    class Hook(hook):
        """Called by the harness with every answer."""

        def add_partial(self, attr: str, req: Any, res: Any) -> None:
            on_requests(1)

    class Answerer(hflm):
        n_cut = 0

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            # the last token is predicted, never read
            self._fit([len(self.tok_encode(r.args[0] + r.args[1])) - 1 for r in requests], self.max_length)
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            longest_answer = max(r.args[1].get("max_gen_toks", self.max_gen_toks) for r in requests)
            if longest_answer >= self.max_length:
                raise SiftuneError(
                    f"an answer of {longest_answer} tokens leaves no room in the model's {self.max_length} positions",
                    where="--lm-eval",
                    todo="Leave the task out",
                )
            lengths = [len(self.tok_encode(r.args[0])) + longest_answer for r in requests]
            self._fit(lengths, self.max_length)
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

        def _fit(self, lengths: list[int], room: int) -> None:
            self.n_cut += sum(length > room for length in lengths)
            self.batch_size_per_gpu = max(1, batch_tokens // min(max(lengths), room))

    lm = Answerer(pretrained=model, tokenizer=_tokenizer(encoder))
    lm.set_cache_hook(Hook(None))
    return lm


def _tokenizer(encoder: ChatEncoder) -> Any:
    """A copy of the tokenizer for the harness, which changes it: with the template of the training, ending as its turns end."""
    own: Any = encoder._tokenizer
    tokenizer = copy.deepcopy(own)
    if not own.chat_template:
        tokenizer.chat_template = default_template(own)
    ends = Prompts(own).end_ids - {own.eos_token_id}
    if len(ends) == 1:
        tokenizer.eos_token = own.convert_ids_to_tokens(ends.pop())
    return tokenizer


@contextmanager
def seeded() -> Iterator[None]:
    """The random states that the harness's command line sets, put back afterwards: tasks shuffle options and sample answers."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def quiet_harness() -> Iterator[None]:
    """The harness's log lines and bars off: siftune tells what matters."""
    import datasets

    requests = lm_eval_module("api.task")
    logger, bars_off = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level, bar = logger.level, requests.tqdm
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    requests.tqdm = lambda items, **_: items  # the bar has no switch of its own
    try:
        with quiet_transformers():
            yield
    finally:
        requests.tqdm = bar
        logger.setLevel(level)
        if not bars_off:
            datasets.enable_progress_bars()
