"""What the commands write to, and the few things that all of them say."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from rich.console import Console

# Names and paths are shown as they are: no markup, no emoji codes, no colours guessed from words.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(line: str) -> None:
    """One line beside the output: progress, a warning, an error."""
    err.print(line, soft_wrap=True)


def again(command: str) -> str:
    """The command line to go on with, as it was typed."""
    program = "vae-study" if Path(sys.argv[0]).name == "vae-study" else "python -m study"
    return f"{program} {shlex.join(sys.argv[1:] or [command])}"


def quiet() -> None:
    """Optuna's own log lines would tear the live display."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)


def plural(n: int, thing: str) -> str:
    """ "1 worker", "2 workers"."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
