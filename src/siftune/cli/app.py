"""The application: what is around every command. Torch and the rest are imported by the commands that need them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from siftune.pipeline.progress import Reporter
    from siftune.pipeline.run import RunResult
    from siftune.pipeline.stages import Stage

ORDER = (
    "demo",
    "plan",
    "run",
    "report",
    "score",
    "select",
    "append",
    "worker",
    "compare",
    "check",
    "doctor",
    "datastore",
)
"""Commands as a person comes to need them."""


class InOrder(TyperGroup):
    """Lists the commands in ORDER, whichever file they are in."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands."""
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    name="siftune",
    cls=InOrder,
    help="Find the few per cent of an instruction pool that teach your model one capability.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with 'siftune demo', then 'siftune run --help'.",
)


def _version(value: bool) -> bool:
    if value:
        from importlib.metadata import version

        typer.echo(f"siftune {version('siftune')}")
        raise typer.Exit
    return value


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def only_given(choice: dict[str, Any]) -> dict[str, Any]:
    """Without what was not given."""
    return {key: value for key, value in choice.items() if value not in (None, [])}


_NOT_SETTINGS = {
    "run_dir",
    "out",
    "until",
    "ray",
    "recipe",
    "preset",
    "settings",
    "price_per_hour",
    "quiet",
    "as_json",
    "debug",
}


def settings_of(values: dict[str, Any]) -> dict[str, Any]:
    """Of the values of `run` or `plan`, the settings of the recipe that were given."""
    return only_given({name: value for name, value in values.items() if name not in _NOT_SETTINGS})


def until_stage(until: str) -> Stage:
    """The stage to stop after; SiftuneError where there is none of that name."""
    from siftune.pipeline.stages import stage_named

    return stage_named(until)


def reporter(quiet: bool) -> Reporter:
    from siftune.pipeline.progress import Reporter

    return Reporter(quiet=quiet)


def again() -> str:
    import shlex

    return shlex.join(["siftune", *sys.argv[1:]])


def closing(result: RunResult, as_json: bool, until: str = "selection", report: Path | None = None) -> None:
    """Print what a command made. report: the page that was written beside it"""
    from siftune.pipeline.summary import as_values, show

    if as_json:
        typer.echo(json.dumps(as_values(result, report), indent=2))
    else:
        show(result, until, report=report)


def say(text: str) -> None:
    """Print a result that names files or quotes data."""
    from siftune.records.text import shown

    typer.echo(shown(text, keep="\n"))


@contextmanager
def told(debug: bool) -> Iterator[None]:
    """Errors as sentences (exit 2), Ctrl-C with how to go on (exit 130). With `debug` errors keep their traceback."""
    import logging

    from click import ClickException

    from siftune.records.errors import SiftuneError
    from siftune.records.secrets import without_secrets
    from siftune.records.stopping import ctrl_c_remembered
    from siftune.records.text import shown

    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # it warns at import of kernels that nobody asked for
    try:
        with ctrl_c_remembered():
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

        what = without_secrets(str(disk_error(error, Path(os.fsdecode(error.filename or ".")))))
        typer.echo(f"error: {shown(what)}", err=True)
        raise typer.Exit(2) from None
    except (ClickException, typer.Exit, typer.Abort):
        raise
    # Files that siftune never wrote, under names that it gives, can be wrong in more ways than anybody has thought of
    except Exception as error:
        if debug:
            raise
        what = without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))
        typer.echo(
            f"error: siftune did not expect this: {shown(what[:500])}. If what it read is sound, please report it;"
            " the same command with --debug says where it happened",
            err=True,
        )
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        stopped()


def stopped() -> NoReturn:
    """End by Ctrl-C: say how to go on (exit 130)."""
    from siftune.records.secrets import without_secrets
    from siftune.records.text import shown

    typer.echo(
        f"\nStopped. What is finished is kept; go on with the same command:\n  {shown(without_secrets(again()))}",
        err=True,
    )
    # Not sys.exit: worker threads of libraries must not hold a person who asked to stop
    sys.stderr.flush()
    os._exit(130)
