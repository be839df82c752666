"""SQLite as several processes can share it: connections, transactions, the words for its errors.

FACTS: with SQLite's defaults Optuna hands an enqueued trial to several workers; WAL together with
BEGIN IMMEDIATE stops that. Readers neither lock nor leave anything behind.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, Engine, event

#: Seconds that a connection waits for another process's lock on a SQLite file.
BUSY_TIMEOUT = 60.0

_DAMAGED = "is damaged. Restore it from a copy, or rescue what is left: sqlite3 FILE .recover"
_CAUSES = (
    (
        ("is full", "disk full"),
        "can't grow: its disk is full. Free some space and run the same command again",
    ),
    (
        ("readonly", "unable to open", "read-only"),
        "is in a read-only place. Allow writing there, or give another --storage",
    ),
    (("malformed", "not a database", "file is encrypted"), _DAMAGED),
    (
        ("is locked",),
        f"has been locked by another process for {BUSY_TIMEOUT:.0f} s. End that process, then run again",
    ),
    (("disk I/O error",), "can't be read or written: the disk reports an error. Check the disk"),
)


#: For a file in a read-only place, where no log can be made: nobody writes.
_STANDS_STILL = "mode=ro&immutable=1"


def explain(name: str, message: str, damaged: bool = False) -> str:
    """SQLite's message about the file `name` as one line with the way out."""
    message = re.sub(r"\s+", " ", message).strip()
    for words, way_out in _CAUSES:
        if any(word in message for word in words):
            return f"{name} {way_out} (SQLite: {message})."
    way_out = _DAMAGED if damaged else "can't be used"
    return f"{name} {way_out} (SQLite: {message})."


def connect(path: Path, read_only: bool) -> sqlite3.Connection:
    """A connection that never creates the file; a reader's leaves no trace beside it either.

    Raises sqlite3.Error.
    """
    if read_only:
        return _connect_reader(path)
    if path.exists() and not os.access(path, os.W_OK):  # SQLite would open it for reading and leave a log
        raise sqlite3.OperationalError("attempt to write a readonly database")
    connection = _connect(path, "mode=rw")
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")  # a kill loses nothing; a power cut the last commits
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def begin_with(engine: Engine, begin: str, check: Callable[[], None] = lambda: None) -> None:
    """Every transaction of this engine starts with the statement `begin`, after `check`, which may raise."""

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        check()
        connection.exec_driver_sql(begin)


def _connect(path: Path, query: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.as_uri()}?{query}",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )


def _connect_reader(path: Path) -> sqlite3.Connection:
    # Where a log lies beside the file, mode=ro reads it and leaves it. Where none does, mode=ro would leave
    # an empty one behind; a connection that may write, told not to, takes it away again on closing.
    has_log = any(
        log.exists() and log.stat().st_size
        for log in (path.with_name(path.name + end) for end in ("-wal", "-journal"))
    )
    if not has_log and path.exists() and not os.access(path, os.W_OK):
        return _connect(path, _STANDS_STILL)
    connection = _connect(path, "mode=ro" if has_log else "mode=rw")
    try:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1")
    except sqlite3.OperationalError as error:
        connection.close()
        if has_log or not _is_read_only_place(error):
            raise
        return _connect(path, _STANDS_STILL)  # a read-only folder
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _is_read_only_place(error: sqlite3.Error) -> bool:
    return any(word in str(error) for word in ("unable to open", "readonly"))
