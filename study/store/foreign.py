"""Databases that aren't ours: what a SQLite file holds, and Optuna's storage opened to read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from study.store.sqlite import connect
from study.store.url import shown, without_secrets
from vae.errors import FailureError, UserError

#: Tables that tell whose a SQLite file is.
_MARKS = {
    "optuna": {"studies", "trials", "trial_intermediate_values"},
    "mlflow": {"experiments", "runs", "metrics"},
}


def kind_of(path: Path) -> str | None:
    """ "optuna" or "mlflow" for a SQLite file with their tables; None for any other file. It isn't changed."""
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\x00":
            return None
    try:
        with closing(connect(path.absolute(), read_only=True)) as connection:
            names = {
                name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
    except sqlite3.Error:
        return None
    return next((kind for kind, tables in _MARKS.items() if tables <= names), None)


@contextmanager
def open_optuna(url: str) -> Iterator[tuple[RDBStorage, str]]:
    """(Optuna's storage at a URL, its name without a password), to read: no table is made. Raises UserError,
    FailureError."""
    place = shown(url)
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise UserError(f"{place} is no database URL, such as sqlite:///optuna.db.") from None
    if parsed.get_backend_name() == "sqlite" and not (parsed.database and Path(parsed.database).is_file()):
        raise UserError(f"There is no {place}.")
    storage = None
    try:
        storage = RDBStorage(url, skip_table_creation=True)
        yield storage, place
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, ImportError) as error:
        reason = without_secrets(str(error).partition("\n")[0], [parsed.password or ""])
        raise FailureError(f"{place} can't be read as an Optuna database: {reason[:200]}.") from None
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()
