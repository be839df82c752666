"""Where the database is and whether it can be used: URL to engine, refusals in one clear line.

Optuna on a fresh database fails when several processes create it: here one creates it under a lock,
SQLite's in a temporary file that is renamed into place when it is complete.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

import filelock
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, Connection, Engine, func, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from study.store import schema, sqlite
from study.store.outage import Full, Outage, is_full, is_outage, is_passing, may_not, patiently, root
from study.store.url import check_readable, shown, without_secrets
from vae.errors import FailureError, UserError, did_you_mean

_log = logging.getLogger(__name__)

# Two keys of PostgreSQL's advisory locks, which share one 64-bit space per database.
_CREATION_LOCK = 0x7661655F0001
CLAIM_LOCK = 0x7661655F0002

#: Connections to a server that a worker opens at most: its trial's, and the one that renews the lease meanwhile.
WORKER_CONNECTIONS = 2
#: Those of a command that starts workers: planning, the lease on that right, the dashboard's notes.
COMMAND_CONNECTIONS = 3

_OURS = frozenset(schema.metadata.tables)
_DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql", "postgres", "postgresql+psycopg")


@dataclass(frozen=True)
class Database:
    """One database: a SQLite file (`path`) or a PostgreSQL database (`path` is None)."""

    url: URL
    path: Path | None
    identity: tuple[int, int] | None = None
    """Device and inode of the SQLite file that was opened for writing: what is at the path must stay that file."""

    @classmethod
    def parse(cls, url: str) -> Database:
        """Where a `--storage` URL points. Raises UserError for a kind that can't be used."""
        check_readable(url)
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):
            raise UserError(
                f"--storage {shown(url)} is not a database URL."
                " Use sqlite:///optuna.db or postgresql+psycopg://user@host/database."
            ) from None
        if parsed.drivername not in _DRIVERS:
            raise UserError(
                f"--storage can't be '{parsed.drivername}'."
                " Use sqlite:///optuna.db or postgresql+psycopg://user@host/database."
            )
        if parsed.drivername.startswith("postgres"):
            _check_options(parsed)
            return cls(parsed.set(drivername="postgresql+psycopg"), None)
        if parsed.database in (None, "", ":memory:") or str(parsed.database).startswith("file:"):
            raise UserError(
                "--storage must name a SQLite file that several processes can open,"
                f" not {shown(url)}. Use sqlite:///optuna.db."
            )
        return cls(parsed, Path(str(parsed.database)).absolute())

    @property
    def name(self) -> str:
        """For messages: the file as it was typed, or the URL without its password and options."""
        if self.path is not None:
            return str(self.url.database)
        return shown(self.url.render_as_string(hide_password=False))

    def opened(self) -> Database:
        """The same, to be used from now on: a SQLite file must stay the one that it is now."""
        return self if self.path is None else replace(self, identity=_identity(self.path))

    def storage(self, read_only: bool, connections: int | None = None) -> RDBStorage:
        """Optuna's storage on this database, which `check` has found complete. Raises UserError, FailureError.

        `connections` to a server are all that it opens at a time; None: as many as there are threads that ask."""
        with self.explained():
            storage = _storage(self.url, **self._engine_options(read_only, connections))
            self._begin_with(storage.engine, read_only)
            return storage

    def reader(self, connections: int | None = None) -> Engine:
        """What reads our tables and Optuna's without Optuna, whose models of its tables take longer to make than a
        command to read them; otherwise as `storage`."""
        with self.explained():
            engine = _engine(self.url, **self._engine_options(True, connections))
            self._begin_with(engine, True)
            return engine

    def _engine_options(self, read_only: bool, connections: int | None) -> dict[str, Any]:
        if self.path is not None:
            path = self.path
            return {"creator": lambda: sqlite.connect(path, read_only)}
        options = _lively(self.url, "-c default_transaction_read_only=on" if read_only else "")
        pool = {} if connections is None else {"pool_size": connections, "max_overflow": 0}
        return {"pool_pre_ping": True, "connect_args": options, **pool}

    def _begin_with(self, engine: Engine, read_only: bool) -> None:
        if self.path is not None:
            begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
            sqlite.begin_with(engine, begin, self._require_same_file)

    def check(self, create: bool, read_only: bool = False) -> bool:
        """Whether everything is there; False where `create` may put it there. Changes nothing.

        A reader of Optuna's tables as we know them doesn't ask whether the installed Optuna would use them too.

        Raises UserError or FailureError for a database that is missing, empty, foreign, damaged, newer than
        this program, or out of reach. A server that is full is waited for.
        """
        return patiently(lambda: self._check(create, read_only), waits_for=Full)

    def _check(self, create: bool, read_only: bool) -> bool:
        if self.path is not None and not self._file_is_there(self.path, create):
            return False
        with self.explained(), self._probe() as connection:
            tables = set(inspect(connection).get_table_names())
            version = schema.stored_version(connection)
            optuna_complete = {"studies", "trials", "alembic_version"} <= tables
            readable = optuna_complete and schema.knows_optunas_tables(connection)
            installed = version is not None and schema.has_triggers(connection)
            if self.path is not None and create:
                damage = connection.execute(text("PRAGMA quick_check(1)")).scalar()
                if damage != "ok":
                    raise FailureError(sqlite.explain(self.name, str(damage), damaged=True))
        if version is not None and version > schema.SCHEMA_VERSION:
            raise UserError(
                f"{self.name} was written by a newer vae-study (tables {version}, this one knows"
                f" {schema.SCHEMA_VERSION}). Upgrade: pip install -U vae-study"
            )
        if tables and "studies" not in tables:
            raise UserError(
                f"{self.name} belongs to another program (its tables: {', '.join(sorted(tables)[:3])}, ...)."
                " Give another --storage."
            )
        if version is None and (clash := sorted(tables & _OURS)):
            raise UserError(
                f"{self.name} has a table '{clash[0]}' of another program. Give another --storage."
            )
        if not create and (version is None or not optuna_complete):
            raise UserError(
                f"{self.name} holds no study of this program. Give another --storage, or begin with run."
            )
        if optuna_complete and not (read_only and readable):
            self._check_optuna()
        return installed and optuna_complete

    def create(self) -> None:
        """Make what is missing, once, however many processes ask at the same time."""
        if self.path is None:
            with self.explained(), self._postgresql_lock() as connection:
                if not self.check(create=True):
                    # Asked before, for Optuna would leave connections open behind the refusal.
                    if not connection.scalar(text("SELECT has_schema_privilege(current_schema(), 'CREATE')")):
                        raise FailureError(self._forbidden("this role may not create tables"))
                    self._install(_storage(self.url, create_tables=True))
            return
        path = self.path
        with self._creation_lock(path):
            if not path.exists():
                self._create_file(path)
            elif not self.check(create=True):
                with self.explained():
                    self._install(
                        _storage(self.url, create_tables=True, creator=lambda: sqlite.connect(path, False))
                    )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Outages leave this block as Outage with cause and way out; other errors as they are."""
        try:
            yield
        except (SQLAlchemyError, StorageInternalError, sqlite3.Error, UnboundLocalError) as error:
            if not is_outage(error):
                raise
            raise self.explain(error) from error

    def explain(self, error: BaseException) -> Outage:
        """One line for a database error: what happened and what to do; no password in it."""
        if self._is_another_file():
            return self._another_file()
        message = re.sub(r"\s+", " ", str(root(error))).strip()
        message = without_secrets(
            message, [str(self.url.password or ""), str(self.url.query.get("password", ""))]
        )
        if self.path is None and may_not(error):
            return Outage(self._forbidden(message))
        if self.path is None and is_full(error):
            return Full(
                f"The server of {self.name} has no connection left: {message}. A worker needs up to "
                f"{WORKER_CONNECTIONS}, a command up to {COMMAND_CONNECTIONS}: start fewer, or raise its "
                "max_connections.",
                passing=True,
            )
        if self.path is None:
            line = f"The database {self.name} can't be used: {message}. Check the server and --storage."
            return Outage(line, is_passing(error))
        return Outage(sqlite.explain(self.name, message))

    def _forbidden(self, message: str) -> str:
        role = self.url.username or "ROLE"
        return f"{self.name}: {message}. Its owner can allow it: GRANT CREATE ON SCHEMA public TO {role};"

    def _require_same_file(self) -> None:
        if self._is_another_file():
            raise self._another_file()

    def _is_another_file(self) -> bool:
        return self.identity is not None and self.path is not None and _identity(self.path) != self.identity

    def _another_file(self) -> Outage:
        return Outage(
            f"{self.name} was deleted or replaced while it was in use: what was found since is lost. Bring the file "
            "back, or run the same command again to begin anew."
        )

    def check_writable(self) -> None:
        """Raises FailureError where the file or its folder is read-only; takes and drops the write lock."""
        if self.path is None:
            return
        with self.explained(), closing(sqlite.connect(self.path, False)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")

    def _file_is_there(self, path: Path, create: bool) -> bool:
        try:
            found = path.stat()
        except FileNotFoundError:
            found = None
        except OSError as error:
            raise FailureError(
                f"{self.name} can't be opened: {error.strerror}. Give another --storage."
            ) from None
        if found is None:
            if not create:
                raise UserError(f"No database {self.name}. Give another --storage, or begin with run.")
            if not path.parent.is_dir():
                raise UserError(
                    f"No folder {path.parent} for {self.name}. Create it or give another --storage."
                )
            wal = path.with_name(path.name + "-wal")
            if wal.exists():  # SQLite would replay it into the new file
                raise FailureError(
                    f"{self.name} is gone but {wal.name} is still there."
                    f" Bring the file back, or delete {wal.name}."
                )
            return False
        if path.is_dir():
            raise UserError(f"{self.name} is a folder, not a database. Give another --storage.")
        if not path.is_file():  # a device or a pipe: opening it may hang, and deleting it would do harm
            raise UserError(f"{self.name} is no regular file, so no database. Give another --storage.")
        if found.st_size == 0:
            raise FailureError(f"{self.name} is empty (0 bytes), not a database. Delete it to begin anew.")
        return True

    @contextmanager
    def _probe(self) -> Iterator[Connection]:
        if self.path is None:
            engine = _engine(self.url, connect_args=_lively(self.url, ""))
        else:
            path = self.path
            engine = sqlalchemy.create_engine("sqlite://", creator=lambda: sqlite.connect(path, True))
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()

    def _check_optuna(self) -> None:
        storage = self.storage(read_only=True)
        try:
            with self.explained():
                stored = storage.get_current_version()
                if stored == storage.get_head_version():
                    return
                known = storage.get_all_versions()
        finally:
            storage.engine.dispose()
        if stored in known:
            url = shown(self.url.render_as_string(hide_password=False))
            raise UserError(
                f"{self.name} was written by an older Optuna. Upgrade it: optuna storage upgrade --storage {url}"
            )
        raise UserError(f"{self.name} was written by a newer Optuna. Upgrade: pip install -U optuna")

    def _create_file(self, path: Path) -> None:
        # Those of a process that was killed right here.
        for stale in path.parent.glob(f".{escape(path.name)}.*.new*"):
            stale.unlink()
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            with self.explained():
                with closing(sqlite3.connect(new)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")
                url = URL.create("sqlite", database=str(new))
                self._install(_storage(url, create_tables=True, creator=lambda: sqlite.connect(new, False)))
            new.rename(path)
        except OSError as error:
            raise FailureError(
                f"{self.name} can't be created: {error.strerror}. Give another --storage."
            ) from None
        finally:
            for part in path.parent.glob(f"{escape(new.name)}*"):
                part.unlink()

    def _install(self, storage: RDBStorage) -> None:
        if self.path is not None:
            sqlite.begin_with(storage.engine, "BEGIN IMMEDIATE")
        try:
            with storage.engine.begin() as connection:
                is_new = schema.stored_version(connection) is None
                n_studies = connection.execute(select(func.count()).select_from(schema.studies)).scalar_one()
                schema.install(connection)
            if is_new and n_studies:
                _log.warning(
                    "%s holds %d studies of another program: they stay as they are, and this program's tables are "
                    "added beside them.",
                    self.name,
                    n_studies,
                )
        finally:
            storage.engine.dispose()

    @contextmanager
    def _creation_lock(self, path: Path) -> Iterator[None]:
        # A file of its own. Never the database: closing it would drop SQLite's own locks of this process.
        lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire()
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise FailureError(
                    f"{self.name} is in a read-only place. Allow writing there, or give another --storage"
                    f" ({error.strerror})."
                ) from None
            raise FailureError(
                f"{self.name} can't be created: {error.strerror}. Give another --storage."
            ) from None
        try:
            yield
        finally:
            # Nothing is left behind: who waits for the file that is gone locks the next one. Windows' lock takes its
            # own away on release, and lets nobody do so before.
            with suppress(PermissionError):
                os.unlink(lock.lock_file)
            lock.release()

    @contextmanager
    def _postgresql_lock(self) -> Iterator[Connection]:
        engine = _engine(self.url, connect_args=_lively(self.url, ""))
        try:
            with engine.connect() as connection:
                connection.execute(text(f"SELECT pg_advisory_lock({_CREATION_LOCK})"))
                yield connection  # the lock goes with it
        finally:
            engine.dispose()


def _storage(url: URL, *, create_tables: bool = False, **engine_options: Any) -> RDBStorage:
    # RDBStorage passes its URL through str.format. Its own check of the version raises with connections
    # open and reads Optuna's migration scripts, 0.2 s: `_check_optuna` does it once.
    template = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    try:
        return RDBStorage(
            template,
            engine_kwargs=engine_options,
            skip_compatibility_check=True,
            skip_table_creation=not create_tables,
        )
    except ImportError:
        raise _no_driver() from None


def _engine(url: URL, **options: Any) -> Engine:
    try:
        return sqlalchemy.create_engine(url, **options)
    except ImportError:
        raise _no_driver() from None


def _no_driver() -> UserError:
    return UserError("PostgreSQL needs the driver psycopg: pip install 'vae-study[postgres]'")


def _lively(url: URL, options: str) -> dict[str, str | int]:
    """What to connect to a server with, so that either side notices within half a minute that the other is cut off:
    by themselves they wait for hours, and a lost worker's locks with them. The URL's own settings come first."""
    theirs = "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c tcp_user_timeout=30s"
    ours: dict[str, str | int] = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3}
    ours |= {"tcp_user_timeout": 30_000, "connect_timeout": 10}
    given = {key: value for key, value in ours.items() if key not in url.query}
    return given | {"options": f"{theirs} {options}".strip()}


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check_options(url: URL) -> None:
    """Raises UserError for an option of a PostgreSQL URL that there isn't, or that isn't the user's to set."""
    name = shown(url.render_as_string(hide_password=False))
    if "options" in url.query:
        # They could move our tables to another schema than the next command's.
        raise UserError(f"--storage {name}: 'options' is set by this program. Leave it out of the URL.")
    try:
        from psycopg import pq
    except ImportError:
        return  # said when it is needed
    known = [option.keyword.decode() for option in pq.Conninfo.get_defaults()]
    for option in url.query:
        if option not in known:
            raise UserError(
                f"--storage {name}: PostgreSQL has no option '{option}'. {did_you_mean(option, known)}"
            )
