"""The store: Optuna's storage and our tables in one database, for launchers, workers and readers."""

from __future__ import annotations

import functools
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import Boolean, ColumnElement, Connection, Double, Engine, Integer, and_, func, or_, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from study.store.database import Database
from study.store.owner import is_gone, new_owner
from study.store.schema import (
    experiment,
    learning_curve,
    of_name,
    setup_lease,
    studies,
    throughput,
    trial_params,
    trial_run,
    unix_now,
)
from study.store.schema import trials as optuna_trials
from vae.errors import UserError

if TYPE_CHECKING:
    import pandas as pd  # imported where tables are made: a worker starts faster without it

_log = logging.getLogger(__name__)

#: Seconds that a worker holds a trial without a sign of life.
LEASE = 60.0


class Store:
    """One open database. `optuna` is the storage to give to Optuna; `engine` serves our tables."""

    def __init__(self, database: Database, optuna_storage: RDBStorage, lease: float) -> None:
        self.database = database
        self.url = database.url.render_as_string(hide_password=False)
        self.optuna = optuna_storage
        self.engine: Engine = optuna_storage.engine
        self.lease = lease

    @classmethod
    def open(cls, url: str, *, create: bool = False, read_only: bool = False, lease: float = LEASE) -> Self:
        """Open the database at `url`; `lease` in seconds.

        create=True is the launcher's: it makes what is missing, once, however many start together. Without it
        the database must be there. read_only=True is for readers: nothing is created, locked or changed.
        Raises UserError for a wrong URL or a database that is missing, foreign or of a newer version;
        FailureError for one that is damaged, read-only, locked or out of reach. Nothing is changed then.
        """
        database = Database.parse(url)
        complete = database.check(create)
        if complete and not read_only:
            database.check_writable()
        if create and not complete:
            database.create()
        return cls(database, database.storage(read_only), lease)

    def close(self) -> None:
        """Close every connection."""
        self.optuna.remove_session()
        self.engine.dispose()

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
        """One transaction that may write; on SQLite it holds the only write lock.

        Raises SQLAlchemy's own errors: a heartbeat and a worker tell them apart from the trial's.
        """
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def setup_lock(self) -> Iterator[None]:
        """Hold the right to plan and enqueue: one process at a time. Waits; a dead holder's right ends."""
        owner = new_owner()
        with self.database.explained():
            while not self._take_setup(owner):
                time.sleep(0.05)
        done = threading.Event()
        keeper = threading.Thread(target=self._keep_setup, args=(owner, done), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()
            with self.database.explained(), self.write() as connection:
                connection.execute(setup_lease.delete().where(setup_lease.c.owner == owner))

    def save_experiment(self, name: str, spec: dict[str, Any]) -> None:
        """Store or replace the spec of NAME. Raises UserError for a name that can't be one."""
        if not name or "/" in name or len(name) > 200:
            raise UserError(f"--name '{name}' must have 1 to 200 characters and no '/'.")
        values = {"spec": json.dumps(spec)}
        with self.database.explained(), self.write() as connection:
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
        if loaded.get("experiment", {}).get("arms"):
            # What was compared before there were these keeps its target and its winners, and so all its runs.
            loaded["experiment"] = {"tune_seeds": 1, "target_at": 0.75} | loaded["experiment"]
        return loaded

    def experiments(self) -> list[str]:
        """The names that have a spec, oldest first."""
        with self.read() as connection:
            names = select(experiment.c.name).order_by(experiment.c.created, experiment.c.name)
            return list(connection.execute(names).scalars())

    def studies(self, name: str) -> list[str]:
        """The names of Optuna's studies of NAME, in order of creation."""
        with self.read() as connection:
            names = select(studies.c.study_name).where(of_name(name)).order_by(studies.c.study_id)
            return list(connection.execute(names).scalars())

    def remaining(self, name: str) -> int:
        """Trials of NAME that wait or run (those that somebody runs through Optuna alone don't count)."""
        with self.read() as connection:
            return int(
                connection.execute(
                    select(func.count())
                    .select_from(_trials_of_studies().outerjoin(trial_run, _same_trial()))
                    .where(
                        of_name(name),
                        or_(
                            optuna_trials.c.state == TrialState.WAITING,
                            and_(
                                optuna_trials.c.state == TrialState.RUNNING, trial_run.c.trial_id.is_not(None)
                            ),
                        ),
                    )
                ).scalar_one()
            )

    def progress(self, name: str) -> int:
        """A number that grows whenever a trial of NAME is begun, taken over or finished."""
        counted = func.coalesce(func.sum(trial_run.c.attempt), 0) + func.count(trial_run.c.outcome)
        with self.read() as connection:
            return int(connection.execute(select(counted).where(trial_run.c.experiment == name)).scalar_one())

    def headway(self, name: str) -> tuple[int, ...]:
        """Changes whenever a trial of NAME is new, gets further, dies or is finished; not when put back."""
        numbers = (func.count(), func.sum(trial_run.c.furthest), func.sum(trial_run.c.died))
        query = select(*numbers, func.count(trial_run.c.outcome)).where(trial_run.c.experiment == name)
        with self.read() as connection:
            return tuple(int(number or 0) for number in connection.execute(query).one())

    def release_owner(self, owner: str) -> None:
        """End the leases of a worker that died: its trials can be taken over at once, from any machine.

        `owner` may be the full owner or its start, `host:pid`.
        """
        dead = or_(
            trial_run.c.owner == owner, func.substr(trial_run.c.owner, 1, len(owner) + 1) == f"{owner}:"
        )
        with self.database.explained(), self.write() as connection:
            connection.execute(trial_run.update().where(dead).values(lease_expires=0.0))

    def trials(self, name: str) -> pd.DataFrame:
        """One row a trial of NAME, waiting ones too, by study and number.

        Columns: study_name, those of `trial_run`, Optuna's number and state, and its parameters as
        `params_lr`, ... (absent: not suggested).
        """
        import pandas as pd

        own = [
            column
            for column in trial_run.c
            if column.name not in ("trial_id", "number", "state", "experiment")
        ]
        query = (
            select(
                studies.c.study_name,
                optuna_trials.c.trial_id,
                optuna_trials.c.number,
                optuna_trials.c.state,
                *own,
            )
            .select_from(_trials_of_studies().outerjoin(trial_run, _same_trial()))
            .where(of_name(name))
            .order_by(studies.c.study_id, optuna_trials.c.number)
        )
        given = (
            select(trial_params)
            .select_from(
                _trials_of_studies().join(trial_params, trial_params.c.trial_id == optuna_trials.c.trial_id)
            )
            .where(of_name(name))
            .order_by(trial_params.c.trial_id, trial_params.c.param_id)
        )
        with self.read() as connection:
            frame = _frame(connection, query)
            params: dict[str, dict[int, Any]] = {}
            for row in connection.execute(given):
                distribution = _distribution(row.distribution_json)
                column = params.setdefault(f"params_{row.param_name}", {})
                column[row.trial_id] = distribution.to_external_repr(row.param_value)
        frame["state"] = [state.name for state in frame["state"]]
        columns = {key: [column.get(i) for i in frame["trial_id"]] for key, column in params.items()}
        return pd.concat([frame, pd.DataFrame(columns, index=frame.index)], axis=1)

    def curves(self, name: str, trial_ids: Sequence[int] | None = None) -> pd.DataFrame:
        """The rows of `learning_curve` of NAME (or of those trials of it), by trial and evaluation; NaN where
        a value is missing."""
        query = (
            select(learning_curve)
            .where(learning_curve.c.experiment == name)
            .order_by(learning_curve.c.trial_id, learning_curve.c.number)
        )
        if trial_ids is not None:
            query = query.where(learning_curve.c.trial_id.in_(trial_ids))
        with self.read() as connection:
            return _frame(connection, query).drop(columns="experiment")

    def add_throughput(
        self,
        name: str,
        arm: str,
        pair: int,
        *,
        examples_per_second: float,
        baseline_examples_per_second: float,
        cold_start_seconds: float | None,
    ) -> None:
        """Store or replace one interleaved timing of an arm and the baseline."""
        key = and_(throughput.c.experiment == name, throughput.c.arm == arm, throughput.c.pair == pair)
        with self.database.explained(), self.write() as connection:
            connection.execute(throughput.delete().where(key))
            connection.execute(
                throughput.insert().values(
                    experiment=name,
                    arm=arm,
                    pair=pair,
                    examples_per_second=examples_per_second,
                    baseline_examples_per_second=baseline_examples_per_second,
                    cold_start_seconds=cold_start_seconds,
                )
            )

    def throughput(self, name: str) -> pd.DataFrame:
        """The timings of NAME by arm and pair, in examples per second."""
        query = select(throughput).where(throughput.c.experiment == name)
        with self.read() as connection:
            frame = _frame(connection, query.order_by(throughput.c.arm, throughput.c.pair))
        return frame.drop(columns="experiment")

    def _take_setup(self, owner: str) -> bool:
        try:
            with self.write() as connection:
                held = connection.execute(
                    select(setup_lease.c.owner, (setup_lease.c.lease_expires < unix_now()).label("expired"))
                    .where(setup_lease.c.id == 1)
                    .with_for_update()
                ).one_or_none()
                if held is not None:
                    if not held.expired and not is_gone(held.owner):
                        return False
                    connection.execute(setup_lease.delete())
                expires = unix_now() + self.lease
                connection.execute(setup_lease.insert().values(id=1, owner=owner, lease_expires=expires))
        except IntegrityError:  # PostgreSQL: another process came first
            return False
        return True

    def _keep_setup(self, owner: str, done: threading.Event) -> None:
        mine = setup_lease.update().where(setup_lease.c.owner == owner)
        while not done.wait(self.lease / 6):
            try:
                with self.write() as connection:
                    connection.execute(mine.values(lease_expires=unix_now() + self.lease))
            except (
                SQLAlchemyError
            ) as error:  # locked or unreachable for a while: the next beat may get through
                _log.warning("the setup lock was not renewed: %s", error)


def _trials_of_studies() -> Any:
    return studies.join(optuna_trials, optuna_trials.c.study_id == studies.c.study_id)


def _same_trial() -> ColumnElement[bool]:
    return trial_run.c.trial_id == optuna_trials.c.trial_id


@functools.lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _frame(connection: Connection, query: Any) -> pd.DataFrame:
    """The rows of a query with one dtype a column whatever is missing: float64, Int64, boolean, object."""
    import pandas as pd

    result = connection.execute(query)
    frame = pd.DataFrame([tuple(row) for row in result], columns=list(result.keys()), dtype=object)
    for column in query.selected_columns:
        if isinstance(column.type, Double):
            frame[column.name] = frame[column.name].astype("float64")
        elif isinstance(column.type, Boolean):
            frame[column.name] = frame[column.name].astype("boolean")
        elif isinstance(column.type, Integer):
            frame[column.name] = frame[column.name].astype("Int64")
    return frame
