"""The waist between the launcher and where workers run: an Engine starts them, a Handle holds one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vae.errors import FailureError

#: Exit code of a worker that can't take part: another program's release, other data than the experiment's, ...
REFUSED = 2


class Handle(Protocol):
    """One started worker. No method waits for it, but `kill` and `close`, which take a moment."""

    @property
    def owner(self) -> str:
        """The start of the owner of its leases, `host:pid`; "" where it had none yet."""

    def ended(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs or still waits for its place.

        Raises FailureError where the engine itself is gone, and with it all that can be known."""

    def stop(self) -> None:
        """Ask it to put its trial back and end."""

    def kill(self) -> None:
        """End it at once."""

    def last_lines(self) -> str:
        """The end of what it wrote, as one line."""

    def close(self) -> None:
        """Let go of it; called once, after it has ended."""


class Engine(Protocol):
    """Where workers run."""

    def start(self, arguments: Sequence[str]) -> Handle:
        """Start `study worker arguments...`, or queue it where its place is taken. Must not wait for it."""


class EngineLost(FailureError):  # noqa: N818 - what happened, as LeaseLost is
    """What ran the workers is gone: they are neither seen nor reached any more."""


def end_of(text: str, lines: int = 8) -> str:
    """The last lines of what a worker wrote, as one line."""
    return " / ".join(line.strip() for line in text.strip().splitlines()[-lines:]) or "it wrote nothing"
