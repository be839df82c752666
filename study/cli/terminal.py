"""What the commands write to, and the few things that all of them say."""

from __future__ import annotations

import gc
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from study.store.url import shown
from study.terms import STORAGE_VARIABLE

if TYPE_CHECKING:
    from pydantic import BaseModel

# Names and paths are shown as they are: no markup, no emoji codes, no colours guessed from words.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(line: str) -> None:
    """One line beside the output: progress, a warning, an error."""
    err.print(line, soft_wrap=True)


@contextmanager
def beside(document: bool) -> Iterator[None]:
    """What is printed within goes to stderr where stdout is for a document alone."""
    out.stderr = document
    try:
        yield
    finally:
        out.stderr = False


def print_document(document: BaseModel) -> None:
    """A document, alone on stdout."""
    print(document.model_dump_json(indent=1))


def again(command: str) -> str:
    """The command line to go on with, as it was typed, but for a password in it."""
    program = "vae-study" if Path(sys.argv[0]).name == "vae-study" else "python -m study"
    arguments = sys.argv[1:] or [command]
    masked = [_masked(argument) for argument in arguments]
    line = f"{program} {shlex.join(masked)}"
    if masked != arguments:
        line += f"\n  with the password in the place of the stars, or the whole URL in {STORAGE_VARIABLE}"
    return line


def _masked(argument: str) -> str:
    """An argument without a URL's password."""
    option, equals, url = argument.partition("=") if argument.startswith("--storage=") else ("", "", argument)
    hidden = shown(url)
    is_plain = "://" not in url or (url.startswith(hidden) and "password" not in url[len(hidden) :])
    return argument if is_plain else f"{option}{equals}{hidden}"


def quiet() -> None:
    """Optuna's own log lines would tear the live display."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the cycle collector, for a command that ends in seconds: nearly all that it makes are modules, which
    stay, and walking them again and again was a seventh of `show`'s processor time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def plural(n: int, thing: str) -> str:
    """ "1 worker", "2 workers"."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
