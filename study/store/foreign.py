"""Databases that aren't ours: what a file holds, and Optuna's storages opened to read."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from study.store.sqlite import connect
from study.store.url import shown, without_secrets
from vae.errors import FailureError, UserError

#: Tables that tell whose a SQLite file is.
_MARKS = {
    "optuna": {"studies", "trials", "trial_intermediate_values"},
    "mlflow": {"experiments", "runs", "metrics"},
}
#: What a SQLite file begins with.
_SQLITE = b"SQLite format 3\x00"
#: Bytes of a journal's first operation, which makes a study, at most.
_FIRST_OPERATION = 2**16


def kind_of(path: Path) -> str | None:
    """ "optuna" or "mlflow" for a SQLite file with their tables, "optuna" for a journal of it; None for any other file.
    It isn't changed. Raises FailureError where it can't be read."""
    first = _first_line(path)
    if not first.startswith(_SQLITE):
        return "optuna" if _is_operation(first) else None
    try:
        with closing(connect(path.absolute(), read_only=True)) as connection:
            names = {
                name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
    except sqlite3.Error:
        return None
    return next((kind for kind, tables in _MARKS.items() if tables <= names), None)


def _first_line(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.readline(_FIRST_OPERATION)
    except OSError as error:
        raise FailureError(f"{path} can't be read: {error.strerror or error}.") from None


def _is_operation(line: bytes) -> bool:
    """Whether a line is one of Optuna's journals."""
    try:
        operation = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(operation, dict) and {"op_code", "worker_id"} <= operation.keys()


@contextmanager
def open_optuna(source: str) -> Iterator[tuple[BaseStorage, str]]:
    """(Optuna's storage, its name without a password), to read: nothing is made. `source` is a database's URL, or the
    path of a SQLite file or a journal. Raises UserError, FailureError."""
    if "://" in source:
        place = shown(source)
        try:
            url = make_url(source)
        except ArgumentError:
            raise UserError(f"{place} is no database URL, such as sqlite:///optuna.db.") from None
        with _database(url, place) as storage:
            yield storage, place
    elif _first_line(Path(source)).startswith(_SQLITE):
        with _database(URL.create("sqlite", database=source), source) as storage:
            yield storage, source
    else:
        yield _journal(Path(source)), source


def _journal(path: Path) -> JournalStorage:
    try:
        # It plays the operations of the file's lines again, which are JSON, and reads no snapshot.
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise FailureError(f"{path} can't be read as an Optuna database or journal ({reason}).") from None


@contextmanager
def _database(url: URL, place: str) -> Iterator[RDBStorage]:
    if url.get_backend_name() == "sqlite" and not (url.database and Path(url.database).is_file()):
        raise UserError(f"There is no {place}.")
    storage = None
    try:
        # As text with every brace written as %7B: RDBStorage passes it through str.format.
        storage = RDBStorage(url.render_as_string(hide_password=False), skip_table_creation=True)
        yield storage
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, ImportError) as error:
        reason = without_secrets(str(error).partition("\n")[0], [str(url.password or "")])
        raise FailureError(f"{place} can't be read as an Optuna database: {reason[:200]}.") from None
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()
