"""`siftune doctor`: is this machine, model, template and data fit for a run? Looks at all, changes nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

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


class Examination:
    """What is printed while it is found, and the same for programs: `found`, as `siftune doctor --json` prints it."""

    def __init__(self, console: Console):
        self.console = console
        self.found: dict[str, Any] = {
            "fit": True,
            "faults": [],
            "versions": versions(),
            "machine": [],
            "chat_template": None,
            "pool": [],
            "targets": {},
            "adopt": None,
            "numerics": None,
        }

    def fault(self, what: str, where: str | None = None) -> None:
        """Say what is not fit."""
        self.found["fit"] = False
        self.found["faults"].append({"what": what, "where": where})
        self.console.print(f"[red]fault[/red]            {escape(shown(what))}", soft_wrap=True)

    def say(self, about: str, text: str) -> None:
        """A line about something."""
        self.console.print(f"{about:<16} {escape(shown(text))}", soft_wrap=True)


def examine(
    recipe: Recipe, n_examples: int, console: Console | None = None, *, numerics: bool = False
) -> dict[str, Any]:
    """Print what was found, and return it; `fit`: whether all of it is. Only what is given is looked at.

    numerics: try too whether features depend on batch-mates, which loads the model several times
    """
    look = Examination(console or Console(highlight=False))
    _machine(recipe, look)
    if recipe.model is None:
        if numerics:
            raise SiftuneError("no model is given", where="--numerics", todo="Give a model: --model M")
        look.console.print("Give --model (and --pool, --target, --adopt) to have them looked at too.")
        return look.found
    try:
        template_from = template_folder(Path(recipe.adopt)) if recipe.adopt else None
        tokenizer = load_tokenizer(recipe.model, recipe.revision, template_from=template_from)
        encoder = ChatEncoder(
            tokenizer, max_length=recipe.max_length, too_long=recipe.too_long, mask=recipe.mask
        )
    except SiftuneError as error:
        look.fault(str(error), error.where)
        return look.found
    look.found["chat_template"] = encoder.describe()
    look.say("chat template", encoder.describe())
    for source in recipe.pool:
        _pool(source, encoder, tokenizer, n_examples, look)
    for name, source in recipe.target.items():
        _target(name, source, encoder, look)
    if recipe.adopt:
        _adoption(recipe, look)
    if numerics:
        _numerics(recipe, encoder, look)
    fit = "All of it is fit for a run." if look.found["fit"] else "[red]Not all of it is fit for a run.[/red]"
    look.console.print(fit)
    return look.found


def _machine(recipe: Recipe, look: Examination) -> None:
    look.say("versions", ", ".join(f"{name} {number}" for name, number in versions().items()))
    try:
        resolved, notes = settled(recipe)
    except SiftuneError as error:
        look.fault(str(error), error.where)
        return
    lines = [("machine", f"{note}, {resolved.threads} threads") for note in notes]
    device = device_of(resolved)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        lines.append(("memory", f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free on {name}"))
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        lines.append(("memory", f"{total / 2**30:.0f} GiB in all"))
    lines.append(("disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here"))
    for about, text in lines:
        look.say(about, text)
        look.found["machine"].append(text if about == "machine" else f"{about}: {text}")


def _pool(source: str, encoder: ChatEncoder, tokenizer: object, n_examples: int, look: Examination) -> None:
    """Show the first examples of a source with their trained tokens, and count what a longer look finds."""
    printed = usable = looked = 0
    reasons: dict[str, str] = {}
    console = look.console
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
        look.fault(str(error), error.where)
        return
    if printed:
        console.rule()
    look.say("pool", f"{source}: {usable} of the first {looked} rows can be used")
    first = [{"where": where, "reason": reason} for reason, where in islice(reasons.items(), 5)]
    for one in first:
        look.say("", f"{one['where']}: {one['reason']}")
    look.found["pool"].append({"source": source, "looked_at": looked, "usable": usable, "reasons": first})
    if not usable:
        look.fault("no row that was looked at can be used", source)


def _target(name: str, source: str, encoder: ChatEncoder, look: Examination) -> None:
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
        look.fault(str(error), error.where)
        return
    subtasks = len({row.subtask for row in rows})
    look.say("target", f"{name}: {len(rows)} rows, {subtasks} subtask{'s' * (subtasks > 1)}, all usable")
    look.found["targets"][name] = {"rows": len(rows), "subtasks": subtasks}


def _adoption(recipe: Recipe, look: Examination) -> None:
    assert recipe.model is not None
    assert recipe.adopt is not None
    try:
        base = load_model(recipe.model, revision=recipe.revision)
        with tempfile.TemporaryDirectory() as folder:
            adopted = adopt(Path(recipe.adopt), Path(folder), base=base, weights=recipe.weights)
            weights = [checkpoint.weight for checkpoint in adopted.checkpoints]
    except SiftuneError as error:
        look.fault(str(error), error.where)
        return
    shares = ", ".join(f"{weight:.3f}" for weight in weights)
    look.say("adopt", f"{len(weights)} checkpoints, weights {shares}")
    for note in adopted.notes:
        look.say("", note)
    look.found["adopt"] = {"weights": weights, "notes": list(adopted.notes)}


def _numerics(recipe: Recipe, encoder: ChatEncoder, look: Examination) -> None:
    """A line for each attention implementation × dtype, and what to set where the run's own is not sound."""
    try:
        found = look_at_numerics(recipe, encoder)
    except SiftuneError as error:
        look.fault(str(error), error.where)
        return
    look.found["numerics"] = found.as_values()
    rows = f"{len(found.lengths)} rows of {found.lengths[0]} to {found.lengths[-1]} tokens"
    look.say("numerics", f"{rows}, each alone and in batches: how far is a row's feature moved (1 - cosine)?")
    table = Table(box=None, pad_edge=False)
    for title in ("attn", "dtype"):
        table.add_column(title, no_wrap=True)
    for title in (
        "by batch-\nmates",
        "rounding ex-\nplains up to",
        "its norm, by\nbatch-mates",
        "by the dtype\n(from fp32)",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for f in found.findings:
        why = "as fp32 shows" if f.within_rounding else f.worst
        verdict = "sound" if found.sound(f) else f"[red]depends on batch-mates[/red] ({why})"
        numbers = (f"{f.cosine:.1e}", f"{f.allowed:.1e}", f"{f.norm:.2%}", f"{f.from_fp32:.1e}")
        table.add_row(f.attn, f.dtype, *numbers, verdict)
    look.console.print(table)
    for attn, reason in found.left_out.items():
        look.say("", f"{attn} was left out: {reason}")
    own = f"--attn {found.default.attn} --dtype {found.default.dtype}"
    if found.sound(found.default):
        look.say("", f"a run would take {own}, which is sound")
    else:
        look.fault(
            f"features under {own}, which a run would take, depend on batch-mates. Use {found.advice}",
            "--numerics",
        )
