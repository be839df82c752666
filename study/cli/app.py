"""The command line: the only place that parses, prints and chooses exit codes."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from study.cli import read, train
from study.cli.terminal import say
from vae.errors import FailureError, UserError

app = typer.Typer(
    name="vae-study",
    help="Which training techniques make a VAE train faster, by how much, and how sure is that?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    train.run,
    train.search,
    train.compare,
    train.worker,
    read.show,
    read.export,
    read.report,
    read.dashboard,
    read.techniques,
):
    app.command()(command)


def run() -> NoReturn:
    """Parse, run, and turn errors into one line and an exit code: 2 for usage, 1 for failure, 130 stopped."""
    arguments = sys.argv[1:] or ["--help"]
    try:
        code = app(arguments, standalone_mode=False)
    except UserError as error:
        if "--debug" in arguments:
            raise
        say(f"Error: {error}")
        raise SystemExit(1 if isinstance(error, FailureError) else 2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        # Errors in parsing: their class has moved between typer's versions, what it can do has not.
        if not hasattr(error, "format_message"):
            raise
        line = " ".join(str(error.format_message()).split())
        end = "" if line.endswith((".", "?")) else "."
        say(f"Error: {line}{end} See --help.")
        raise SystemExit(2) from None
    raise SystemExit(code or 0)
