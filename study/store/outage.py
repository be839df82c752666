"""The database and not the training failed: how such errors are told from others, and waited out where they pass."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy import exc

from vae.errors import FailureError

T = TypeVar("T")

#: Seconds that a command waits for a server that is gone: a restart takes less than a minute.
RIDE_OUT = 75.0

_POLL = 0.5

_OUTAGES = (
    exc.DatabaseError,
    exc.InterfaceError,
    exc.TimeoutError,
    # What a session or connection says that was cut in the middle of a transaction, when it is used again.
    exc.PendingRollbackError,
    exc.ResourceClosedError,
    sqlite3.Error,
)
_MISTAKES = (
    exc.IntegrityError,
    exc.DataError,
    exc.ProgrammingError,
    exc.NotSupportedError,
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.ProgrammingError,
    sqlite3.NotSupportedError,
)
#: SQLSTATEs of PostgreSQL that pass by themselves, by their beginning: connection lost, server stopping or
#: starting, too many connections, deadlock and serialisation failure.
_PASSING_STATES = ("08", "57P", "53300", "40")
_MAY_NOT = "42501"
#: How PostgreSQL, and the poolers before it, say that they take no more connections. While connecting, libpq hands
#: on the words alone: there is no SQLSTATE.
_FULL = (
    "too many connections",
    "too many clients",
    "remaining connection slots",
    "no more connections allowed",
)

_log = logging.getLogger(__name__)


class Outage(FailureError):  # noqa: N818 - what happened, as LeaseLost is
    """The database could not do its work. `passing`: asking again in a while may help."""

    def __init__(self, message: str, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class Full(Outage):
    """The server takes no more connections for now."""


def is_full(error: BaseException) -> bool:
    """Whether a server refused one more connection."""
    return any(words in str(root(error)) for words in _FULL)


def is_outage(error: BaseException) -> bool:
    """Whether the database could not do its work (full, locked, gone, damaged), not: was asked nonsense.

    The first error of the database among the causes decides: Optuna wraps some in its own, and its `tell` ends in an
    UnboundLocalError over others.
    """
    if may_not(error):
        return True
    for cause in _causes(error):
        if isinstance(cause, _MISTAKES):
            return False
        if isinstance(cause, (Outage, *_OUTAGES)):
            return True
        if isinstance(cause, StorageInternalError) and cause.__cause__ is None:
            return True
    return False


def may_not(error: BaseException) -> bool:
    """Whether the server refuses what its role may not do."""
    return any(
        getattr(getattr(cause, "orig", None), "sqlstate", None) == _MAY_NOT for cause in _causes(error)
    )


def is_passing(error: BaseException) -> bool:
    """Whether an outage may be over in a while: a server was stopped or a connection cut."""
    for cause in _causes(error):
        if isinstance(cause, Outage):
            return cause.passing
        if isinstance(cause, exc.PendingRollbackError | exc.ResourceClosedError | exc.TimeoutError):
            return True
        if isinstance(cause, exc.DBAPIError) and cause.orig is not None:
            # None: the server said nothing, the connection is gone. SQLite's errors have no such attribute.
            state = getattr(cause.orig, "sqlstate", "")
            return state is None or str(state).startswith(_PASSING_STATES)
    return False


def root(error: BaseException) -> BaseException:
    """The database's own error behind SQLAlchemy's and Optuna's."""
    found = error
    for cause in _causes(error):
        found = getattr(cause, "orig", None) or cause
        if isinstance(cause, exc.SQLAlchemyError | sqlite3.Error):
            break
    return found


class Patience:
    """Waits for a database that is gone, `seconds` at most from its first failure to its next answer."""

    def __init__(self, disconnect: Callable[[], None] | None = None, seconds: float = RIDE_OUT) -> None:
        self._disconnect = disconnect
        self._seconds = seconds
        self._since: float | None = None

    def answered(self) -> None:
        """It does its work again."""
        self._since = None

    def wait(self, outage: Outage) -> None:
        """Close all connections and sleep; raises the outage where that does not help or has lasted too long."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            if outage.passing:
                _log.warning("%s Trying again for %.0f s.", outage, self._seconds)
        if not outage.passing or now - self._since > self._seconds:
            raise outage
        if self._disconnect is not None:
            self._disconnect()
        time.sleep(_POLL)


def patiently(
    work: Callable[[], T],
    disconnect: Callable[[], None] | None = None,
    seconds: float = RIDE_OUT,
    waits_for: type[Outage] = Outage,
) -> T:
    """The result of `work`, which may be done twice, asked for `seconds` until the database answers; only outages of
    the kind `waits_for` are waited for.

    Raises FailureError."""
    patience = Patience(disconnect, seconds)
    while True:
        try:
            return work()
        except waits_for as outage:
            patience.wait(outage)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
