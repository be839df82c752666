"""Errors a user can cause, told in one line: the rule, the value, the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: a wrong name, value, file or option. The command line exits with 2."""


class FailureError(UserError):
    """The input was fine and the work could not be done: a full disk, a lost server. Exits with 1."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The way out after an unknown word: the nearest known one, or all of them where none is near."""
    names = list(known)
    if not names:
        return "There is none."
    near = difflib.get_close_matches(word, names, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(names)}."


def printable(text: str) -> str:
    """On one line, with control characters written out: what a file says is shown by a terminal, never obeyed."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def out_of_memory(error: BaseException) -> str | None:
    """What an error says of memory that isn't there, in a line; None of any other error."""
    # Of torch's allocators only the GPU's has a class of its own for it, a RuntimeError as well.
    words = ("can't allocate memory", "out of memory")
    if not isinstance(error, MemoryError) and not (
        isinstance(error, RuntimeError) and any(part in str(error) for part in words)
    ):
        return None
    return str(error).splitlines()[0] if str(error) else type(error).__name__
