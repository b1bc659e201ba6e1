"""How a plan reads: a table for `siftune plan`, three lines before a run."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from siftune.pipeline.estimate import Plan, StagePlan
from siftune.records.text import shown, size, span


def show_plan(plan: Plan, console: Console | None = None) -> None:
    """Print a plan to standard output."""
    console = console or Console(highlight=False)
    console.print(_pool_line(plan), markup=False, soft_wrap=True)
    if not plan.stages:
        console.print("Nothing is left to do but to choose: seconds.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("stage")
    for title in ("row passes", "tokens", "time", "disk"):
        table.add_column(title, justify="right", no_wrap=True)
    for stage in plan.stages:
        table.add_row(escape(shown(stage.what)), *_cells(stage))
    _, low, high = plan.seconds
    table.add_row("all", "", "", span(low, high), size(plan.disk_bytes), style="bold")
    console.print()
    console.print(table)
    console.print()
    for name, value in _facts(plan):
        console.print(f"{name:<8} {escape(shown(value))}", soft_wrap=True)
    if warning := _too_full(plan):
        console.print(f"[yellow]warning:[/yellow] {warning}", soft_wrap=True)


def plan_lines(plan: Plan) -> list[str]:
    """What a run says of its plan before it starts: a line a stage, and all together."""
    _, low, high = plan.seconds
    memory = f", {size(plan.memory_bytes)} of memory" if plan.memory_bytes else ""
    disk = f"{size(plan.disk_bytes)} of disk ({size(plan.disk_free_bytes)} free)"
    lines = [(stage.what, span(stage.low, stage.high)) for stage in plan.stages]
    lines.append(("in all", f"{span(low, high)}, {disk}{memory}"))
    wide = max(len(what) for what, _ in lines)
    told = [f"{'' if n else 'plan':<5} {what:<{wide}}  {cost}" for n, (what, cost) in enumerate(lines)]
    return [*told, f"      {warning}"] if (warning := _too_full(plan)) else told


def _pool_line(plan: Plan) -> str:
    pool = plan.pool
    left_out = pool["rows"] - pool["usable"]
    text = f"{plan.method} on {pool['usable']:,} rows, {pool['tokens']:,} tokens ({pool['trained_tokens']:,} trained)"
    if left_out:
        text += f", {left_out:,} rows left out"
    targets = ", ".join(f"{shown(name)} ({rows:,} rows)" for name, rows in plan.targets.items())
    return f"{text}; target {targets}" if targets else text


def _cells(stage: StagePlan) -> tuple[str, str, str, str]:
    time = span(stage.low, stage.high) + (" (took)" if stage.stage == "pool" else "")
    return f"{stage.rows:,}", f"{stage.tokens:,}" if stage.tokens else "", time, size(stage.disk_bytes)


def _facts(plan: Plan) -> list[tuple[str, str]]:
    rests = plan.rests_on
    facts: list[tuple[str, str]] = []
    if plan.memory_bytes:
        facts.append(("memory", f"about {size(plan.memory_bytes)} at its peak"))
    facts.append(("disk", f"{size(plan.disk_free_bytes)} free; a selection adds the chosen rows once more"))
    if plan.price:
        _, low, high = plan.price
        money = f"{low:.2f} to {high:.2f}" if high >= 0.01 else "under 0.01"
        facts.append(("price", f"{money}, at {plan.price_per_hour:g} an hour"))
    on = f"{rests['device']}, {rests['dtype']}"
    if rests["device"] == "cpu":
        threads, workers = rests["threads"], rests["workers"] or 1
        on += f", {threads} thread{'s' * (threads != 1)}"
        on += f" (features: {workers} workers, memory is that of one)" if workers > 1 else ""
    probed = f"{rests['probe_batches']} probe batches in {rests['probe_seconds']:.1f} s on {on}"
    facts.append(("from", f"{probed}; the rest is counted"))
    return facts


def _too_full(plan: Plan) -> str:
    if plan.disk_bytes <= plan.disk_free_bytes:
        return ""
    return f"the run needs {size(plan.disk_bytes)} of disk and {size(plan.disk_free_bytes)} are free"
