"""The store: Optuna's storage and our tables in one database, for launchers, workers and readers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from optuna.storages import RDBStorage
from sqlalchemy import Connection, Engine, select

from study.store.database import Database
from study.store.names import require_name
from study.store.outage import patiently
from study.store.schema import experiment, unix_now
from vae.errors import UserError, did_you_mean
from vae.recipe import as_written

T = TypeVar("T")

#: Seconds that a worker holds a trial without a sign of life.
LEASE = 60.0


def _of_before(stored: dict[str, Any]) -> dict[str, Any]:
    """An experiment stored before it said by which method: what was compared keeps its rules, its target and its
    winners, and so all its runs. Where nothing was compared, what only a comparison reads is decided anew."""
    if stored.get("arms"):
        return {"method": 1, "tune_seeds": 1, "target_at": 0.75} | stored
    comparing = ("tune_seeds", "target_at", "seeds", "margin", "stop_at_target")
    return {key: value for key, value in stored.items() if key not in comparing}


def _of_one_split(stored: dict[str, Any]) -> dict[str, Any]:
    """An experiment stored before blocks had splits of their own: what was compared keeps the one it has."""
    return stored | ({"split_per_block": False} if stored.get("arms") else {})


def _of_unsaid_options(stored: dict[str, Any]) -> dict[str, Any]:
    """An experiment stored before a recipe held the options of its network: a technique goes on with what it trained,
    and so does the baseline."""
    techniques = {}
    for name, fields in stored.get("techniques", {}).items():
        overrides = fields.get("overrides", {})
        if "model_options.norm" not in overrides:
            overrides = as_written(overrides)
        techniques[name] = fields | ({"overrides": overrides} if overrides else {})
    return stored | {"techniques": techniques, "recipe": as_written(stored["recipe"])}


def _as_begun(spec: dict[str, Any]) -> dict[str, Any]:
    """The experiment of a spec, with what it meant when it was begun."""
    stored: dict[str, Any] = spec["experiment"]
    if "method" not in stored:
        stored = _of_before(stored)
    if "split_per_block" not in stored:
        stored = _of_one_split(stored)
    if "dimensions" not in spec:
        stored = _of_unsaid_options(stored)
    return stored


class Store:
    """One open database. `optuna` is the storage to give to Optuna; `engine` serves our tables."""

    def __init__(
        self, database: Database, engine: Engine, optuna_storage: RDBStorage | None, lease: float
    ) -> None:
        self.database = database
        self.url = database.url.render_as_string(hide_password=False)
        self.engine = engine
        self._optuna = optuna_storage
        self.lease = lease

    @classmethod
    def open(
        cls,
        url: str,
        *,
        create: bool = False,
        read_only: bool = False,
        lease: float = LEASE,
        connections: int | None = None,
    ) -> Self:
        """Open the database at `url`; `lease` in seconds, `connections` to a server at most.

        create=True is the launcher's: it makes what is missing, once, however many start together. Without it
        the database must be there. read_only=True is for readers: nothing is created, locked or changed.
        Raises UserError for a wrong URL or a database that is missing, foreign or of a newer version;
        FailureError for one that is damaged, read-only, locked or out of reach. Nothing is changed then.
        """
        database = Database.parse(url)
        complete = database.check(create, read_only)
        if complete and not read_only:
            database.check_writable()
        if create and not complete:
            database.create()
        if read_only:
            return cls(database, database.reader(connections), None, lease)
        database = database.opened()
        storage = database.storage(read_only, connections)
        return cls(database, storage.engine, storage, lease)

    @property
    def optuna(self) -> RDBStorage:
        """The storage to give to Optuna. A reader's is opened when it is first asked for: few readers do, and it takes
        a third of a second. Raises UserError for tables that the installed Optuna can't use."""
        if self._optuna is None:
            self.database.check(create=False)
            self._optuna = self.database.storage(read_only=True)
        return self._optuna

    def close(self) -> None:
        """Close every connection."""
        self.disconnect()

    def disconnect(self) -> None:
        """Let go of every connection, one that was cut in a transaction too; the next use makes new ones."""
        if self._optuna is not None:
            self._optuna.remove_session()
            self._optuna.engine.dispose()
        self.engine.dispose()

    def ride_out(self, work: Callable[[], T]) -> T:
        """The result of `work` on this store, as `patiently`, without the connections that were cut."""

        def explained() -> T:
            with self.database.explained():
                return work()

        return patiently(explained, self.disconnect)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that reads. Raises FailureError where the database fails."""
        with self.database.explained(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that may write; on SQLite it holds the only write lock. Raises FailureError where the
        database fails, and SQLAlchemy's own errors where it was asked nonsense."""
        with self.database.explained(), self.engine.begin() as connection:
            yield connection

    def save_experiment(self, name: str, spec: dict[str, Any]) -> None:
        """Store or replace the spec of NAME. Raises UserError for a name that can't be one."""
        require_name(name, "--name")
        values = {"spec": json.dumps(spec)}
        with self.write() as connection:
            changed = connection.execute(experiment.update().where(experiment.c.name == name).values(values))
            if changed.rowcount == 0:
                connection.execute(experiment.insert().values(name=name, created=unix_now(), **values))

    def load_experiment(self, name: str) -> dict[str, Any] | None:
        """The spec of NAME; None where there is none."""
        with self.read() as connection:
            spec = connection.execute(select(experiment.c.spec).where(experiment.c.name == name)).scalar()
        if spec is None:
            return None
        loaded: dict[str, Any] = json.loads(spec)
        return loaded | {"experiment": _as_begun(loaded)} if "experiment" in loaded else loaded

    def experiments(self) -> list[str]:
        """The names that have a spec, oldest first."""
        with self.read() as connection:
            names = select(experiment.c.name).order_by(experiment.c.created, experiment.c.name)
            return list(connection.execute(names).scalars())

    def pick_name(self, name: str | None) -> str:
        """The experiment meant: the given one, or the only one. Raises UserError listing what there is."""
        names = self.experiments()
        if name is None and len(names) == 1:
            return require_name(names[0], f"{self.database.name}: the experiment's name")
        if name is not None and name in names:
            return require_name(name, "--name")
        if name is None:
            listed = ", ".join(names) or "none"
            raise UserError(f"Which experiment? Give --name. Experiments in {self.database.name}: {listed}.")
        raise self.no_experiment(name)

    def no_experiment(self, name: str) -> UserError:
        """What to raise where there is no NAME, with what there is."""
        return UserError(
            f"No experiment '{name}' in {self.database.name}. {did_you_mean(name, self.experiments())}"
        )
