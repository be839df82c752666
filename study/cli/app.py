"""The command line: the only place that parses, prints and chooses exit codes."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from study.cli import read, train
from study.cli.terminal import err
from vae.errors import FailureError, UserError

app = typer.Typer(
    name="vae-study",
    help="Which training techniques make a VAE train faster, by how much, and how sure is that?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run")(train.run_command)
app.command()(train.search)
app.command()(train.compare)
app.command()(train.worker)
app.command()(read.show)
app.command()(read.export)
app.command()(read.report)
app.command()(read.dashboard)
app.command()(read.techniques)


def run() -> NoReturn:
    """Parse, run, and turn errors into one line and an exit code: 2 for usage, 1 for failure, 130 stopped."""
    arguments = sys.argv[1:] or ["--help"]
    try:
        code = app(arguments, standalone_mode=False)
    except UserError as error:
        if "--debug" in arguments:
            raise
        err.print(f"Error: {error}", soft_wrap=True, markup=False)
        raise SystemExit(1 if isinstance(error, FailureError) else 2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        # Errors in parsing: their class has moved between typer's versions, what it can do has not.
        if not hasattr(error, "format_message"):
            raise
        line = " ".join(str(error.format_message()).split())
        end = "" if line.endswith((".", "?")) else "."
        err.print(f"Error: {line}{end} See --help.", soft_wrap=True, markup=False)
        raise SystemExit(2) from None
    raise SystemExit(code or 0)
