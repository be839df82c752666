"""How both commands, `python -m vae` and `python -m study`, are run: options in groups, help, --version, errors and
exit codes."""

from __future__ import annotations

import errno
import functools
import inspect
import io
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, NoReturn, get_type_hints

import typer

from vae.errors import FailureError, UserError, out_of_memory, printable
from vae.versions import version_of

#: Of an error without a file's name: what is printed can't be.
_NO_OUTPUT = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT})
#: Every command has it; `run` looks for it itself, for errors in parsing too.
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def command_line(name: str, help: str) -> typer.Typer:
    """A command line without commands yet: plain help, no colours, and --version."""
    app = typer.Typer(name=name, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.callback(help=help)
    def options(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
        ] = False,
    ) -> None: ...

    return app


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it: a parameter that is a group stands for each of the group's options, and
    --debug is there everywhere, which `app.run` looks for itself, for errors in parsing too."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint) and isinstance(hint, type)}
    options: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            of_group = get_type_hints(groups[name], include_extras=True)
            options += [_option(f.name, of_group[f.name], f.default) for f in fields(groups[name])]
        else:
            options.append(_option(name, hints[name], parameter.default))
    options.append(_option("debug", Debug, False))

    @functools.wraps(command)
    def read(**values: Any) -> None:
        del values["debug"]
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        command(**values)

    vars(read)["__signature__"] = inspect.Signature(options)
    read.__annotations__ = {option.name: option.annotation for option in options}
    return read


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def run(app: typer.Typer) -> NoReturn:
    """Parse and run sys.argv. Errors are one line on stderr, tracebacks with --debug alone; exit code 2 for usage,
    1 for failure, 130 where it was stopped."""
    arguments = sys.argv[1:] or ["--help"]
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that it hasn't is written out, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(arguments, standalone_mode=False)
        if sys.stdout is not None:  # it is closed where a service has none
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            raise
        line, code = _told(error)
        if line:
            print(f"Error: {printable(line)}", file=sys.stderr)
        raise SystemExit(code) from None
    raise SystemExit(code or 0)


def _told(error: BaseException) -> tuple[str, int]:
    """What to say about an error, and the exit code. Raises the error itself where it is one of the program's."""
    if isinstance(error, UserError):
        return str(error), 1 if isinstance(error, FailureError) else 2
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "", 130
    if hasattr(error, "format_message"):
        # Errors in parsing: their class has moved between typer's versions, what it can do has not.
        line = " ".join(str(error.format_message()).split())
        return f"{line}{'' if line.endswith(('.', '?')) else '.'} See --help.", 2
    if isinstance(error, OSError) and error.errno in _NO_OUTPUT and error.filename is None:
        # Without this Python would say so once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # The reader of the output may have gone, as `head` does: nobody to tell.
        return "" if isinstance(
            error, BrokenPipeError
        ) else f"The output can't be written: {error.strerror}.", 1
    reason = out_of_memory(error)
    if reason is not None:
        return f"There is not enough memory for this ({reason.rstrip('.')}).", 1
    raise error


def _version(wanted: bool) -> None:
    if not wanted:
        return
    versions = [f"vae-study {version_of('vae-study')}", f"Python {platform.python_version()}"]
    print(", ".join([*versions, *(f"{name} {version_of(name)}" for name in ("torch", "optuna"))]))
    raise typer.Exit
