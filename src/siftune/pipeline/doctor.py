"""`siftune doctor`: is this machine, model, template and data fit for a run? Looks at all, changes nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from siftune.chat.encoder import ChatEncoder, Encoded
from siftune.chat.show import show
from siftune.chat.tokenizer import load_tokenizer
from siftune.datastore.manifest import versions
from siftune.model.adopt import adopt, template_folder
from siftune.model.load import load_model
from siftune.pipeline.machine import device_of, settled
from siftune.pipeline.numerics import look_at_numerics
from siftune.records.errors import SiftuneError
from siftune.records.example import Example
from siftune.records.readers import read_pool, read_target
from siftune.records.recipe import Recipe
from siftune.records.text import shown


def examine(
    recipe: Recipe, n_examples: int, console: Console | None = None, *, numerics: bool = False
) -> bool:
    """Print what was found; whether all of it is fit. Only what is given is looked at.

    numerics: try too whether features depend on batch-mates, which loads the model several times
    """
    console = console or Console(highlight=False)
    sound = _machine(recipe, console)
    if recipe.model is None:
        if numerics:
            raise SiftuneError("no model is given", where="--numerics", todo="Give a model: --model M")
        console.print("Give --model (and --pool, --target, --adopt) to have them looked at too.")
        return sound
    try:
        template_from = template_folder(Path(recipe.adopt)) if recipe.adopt else None
        tokenizer = load_tokenizer(recipe.model, recipe.revision, template_from=template_from)
        encoder = ChatEncoder(
            tokenizer, max_length=recipe.max_length, too_long=recipe.too_long, mask=recipe.mask
        )
        console.print(f"chat template    {escape(shown(encoder.describe()))}", soft_wrap=True)
    except SiftuneError as error:
        return _fault(console, error)
    for source in recipe.pool:
        sound &= _pool(source, encoder, tokenizer, n_examples, console)
    for name, source in recipe.target.items():
        sound &= _target(name, source, encoder, console)
    if recipe.adopt:
        sound &= _adoption(recipe, console)
    if numerics:
        sound &= _numerics(recipe, encoder, console)
    console.print("All of it is fit for a run." if sound else "[red]Not all of it is fit for a run.[/red]")
    return sound


def _machine(recipe: Recipe, console: Console) -> bool:
    console.print(
        "versions         " + ", ".join(f"{name} {number}" for name, number in versions().items()),
        soft_wrap=True,
    )
    try:
        resolved, notes = settled(recipe)
    except SiftuneError as error:
        return _fault(console, error)
    for note in notes:
        console.print(f"machine          {escape(shown(note))}, {resolved.threads} threads", soft_wrap=True)
    device = device_of(resolved)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        console.print(
            f"memory           {free / 2**30:.0f} of {total / 2**30:.0f} GiB free on {torch.cuda.get_device_name(device)}"
        )
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        console.print(
            f"memory           {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB in all"
        )
    console.print(f"disk             {shutil.disk_usage('.').free / 2**30:.0f} GiB free here")
    return True


def _pool(source: str, encoder: ChatEncoder, tokenizer: object, n_examples: int, console: Console) -> bool:
    """Show the first examples of a source with their trained tokens, and count what a longer look finds."""
    printed = usable = looked = 0
    reasons: dict[str, str] = {}
    try:
        for item in islice(read_pool([source]), 1000):
            looked += 1
            encoded = encoder.encode(item) if isinstance(item, Example) else item.reason
            if isinstance(encoded, Encoded):
                usable += 1
                if printed < n_examples:
                    printed += 1
                    about = f"{len(encoded.token_ids)} tokens, {int(encoded.trained.sum())} trained, found by {encoded.way}"
                    console.rule(f"{escape(shown(item.where))}: {about}", align="left")
                    console.print(show(encoded, tokenizer, colour=console.is_terminal))  # pyright: ignore[reportArgumentType]
            else:
                reasons.setdefault(encoded, item.where)
    except SiftuneError as error:
        return _fault(console, error)
    if printed:
        console.rule()
    console.print(
        f"pool             {escape(shown(source))}: {usable} of the first {looked} rows can be used",
        soft_wrap=True,
    )
    for reason, where in islice(reasons.items(), 5):
        console.print(f"                 {escape(shown(where))}: {escape(shown(reason))}", soft_wrap=True)
    return usable > 0


def _target(name: str, source: str, encoder: ChatEncoder, console: Console) -> bool:
    try:
        rows = read_target(source, name)
        for row in rows:
            if isinstance(reason := encoder.encode(row.example), str):
                raise SiftuneError(
                    f"this target row can't be used: {reason}",
                    where=row.example.where,
                    todo="Correct or remove it",
                )
    except SiftuneError as error:
        return _fault(console, error)
    subtasks = len({row.subtask for row in rows})
    console.print(
        f"target           {name}: {len(rows)} rows, {subtasks} subtask{'s' * (subtasks > 1)}, all usable"
    )
    return True


def _adoption(recipe: Recipe, console: Console) -> bool:
    assert recipe.model is not None
    assert recipe.adopt is not None
    try:
        base = load_model(recipe.model, revision=recipe.revision)
        with tempfile.TemporaryDirectory() as folder:
            adopted = adopt(Path(recipe.adopt), Path(folder), base=base, weights=recipe.weights)
            weights = ", ".join(f"{checkpoint.weight:.3f}" for checkpoint in adopted.checkpoints)
    except SiftuneError as error:
        return _fault(console, error)
    console.print(f"adopt            {len(adopted.checkpoints)} checkpoints, weights {weights}")
    for note in adopted.notes:
        console.print(f"                 {escape(shown(note))}", soft_wrap=True)
    return True


def _numerics(recipe: Recipe, encoder: ChatEncoder, console: Console) -> bool:
    """A line for each attention implementation × dtype, and what to set where the run's own is not sound."""
    try:
        found = look_at_numerics(recipe, encoder)
    except SiftuneError as error:
        return _fault(console, error)
    rows = f"{len(found.lengths)} rows of {found.lengths[0]} to {found.lengths[-1]} tokens"
    console.print(f"numerics         features of {rows}, each alone and in batches", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for title in ("", "attn", "dtype", "cosine distance", "rounding may", "norm", "from fp32 eager", ""):
        table.add_column(title, justify="left" if title in ("", "attn", "dtype") else "right")
    for f in found.findings:
        why = "as fp32 shows" if f.within_rounding else f.worst
        verdict = "sound" if found.sound(f) else f"[red]depends on batch-mates[/red] ({why})"
        numbers = (f"{number:.1e}" for number in (f.cosine, f.allowed, f.norm, f.from_fp32))
        table.add_row(" " * 15, f.attn, f.dtype, *numbers, verdict)
    console.print(table)
    for attn, reason in found.left_out.items():
        console.print(f"                 {attn} was left out: {escape(shown(reason))}", soft_wrap=True)
    own = found.default
    if found.sound(own):
        console.print(
            f"                 a run would take --attn {own.attn} --dtype {own.dtype}, which is sound"
        )
    else:
        console.print(
            f"[red]fault[/red]            features under --attn {own.attn} --dtype {own.dtype}, which a run would take,"
            f" depend on batch-mates. Use {found.advice}",
            soft_wrap=True,
        )
    return found.sound(own)


def _fault(console: Console, error: SiftuneError) -> bool:
    console.print(f"[red]fault[/red]            {escape(shown(str(error)))}", soft_wrap=True)
    return False
