"""What `study doctor` asks a database, and the repairs that are SQL: facts here, what they mean in `study.doctor`."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import optuna
from optuna.trial import TrialState
from sqlalchemy import Connection, func, inspect, or_, select, text

from study.store import optuna_private, schema, sqlite
from study.store.names import is_study
from study.store.owner import is_gone
from study.store.schema import curve, of_name, setup_lease, studies, trial_run, trials, unix_now
from study.store.store import LEASE, Store
from vae.files import write_whole

#: Problems of one kind that SQLite is asked to name.
_MOST = 20


@dataclass(frozen=True)
class TrialFacts:
    """One trial as Optuna's tables and ours have it."""

    trial_id: int
    study_name: str
    number: int
    state: TrialState
    began: datetime | None
    """By its host's clock, local time without a zone, as Optuna writes it."""
    owner: str | None
    attempt: int | None
    """None: our tables have no row of it."""
    host: str | None
    started: float | None
    """By the database's clock, unix seconds."""
    lease_left: float | None
    """Seconds until its lease ends, negative once it is over; None without a lease."""
    outcome: str | None
    result: TrialState | None
    """What Optuna is to be told."""
    value: float | None
    examples: int | None
    """What it had seen when it ended, by its result; None without one."""
    curve_examples: int
    """What it had seen by the last row of its curve; 0: it has no row."""

    @property
    def label(self) -> str:
        """Study and number, for a message."""
        return f"{self.study_name} #{self.number}"

    @property
    def is_held(self) -> bool:
        """Whether a worker holds it that may be at work."""
        return (
            self.outcome is None
            and self.owner is not None
            and self.lease_left is not None
            and 0 < self.lease_left <= 2 * LEASE
            and not is_gone(self.owner)
        )


@dataclass(frozen=True)
class Strays:
    """Rows of ours whose trial is gone."""

    curve_rows: int
    runs: int


def integrity(store: Store) -> list[str]:
    """What is broken in a SQLite file; [] where nothing is. A PostgreSQL server is asked for every value, and raises
    FailureError for one that it can't read."""
    with store.read() as connection:
        if connection.dialect.name == "sqlite":
            found = connection.execute(text(f"PRAGMA integrity_check({_MOST})")).scalars().all()
            return (
                [] if found == ["ok"] else [line for message in found for line in str(message).splitlines()]
            )
        for table in inspect(connection).get_table_names():
            # Every value is read, those that are stored out of line too.
            name = connection.dialect.identifier_preparer.quote(table)
            connection.execute(text(f"SELECT sum(length(CAST(t AS text))) FROM {name} AS t"))
    return []


def has_triggers(store: Store) -> bool:
    """Whether a deletion in Optuna's tables reaches ours."""
    with store.read() as connection:
        return schema.has_triggers(connection)


def names(store: Store) -> list[str]:
    """The experiments that have a spec or a record of a trial."""
    known = store.experiments()
    with store.read() as connection:
        recorded = connection.execute(select(trial_run.c.experiment).distinct()).scalars()
        return known + sorted({str(name) for name in recorded} - set(known))


def trial_facts(store: Store, name: str) -> list[TrialFacts]:
    """Every trial of NAME, in order of study and number; without those of another program's studies, whose names only
    begin as ours do."""
    seen = func.max(curve.c.examples).label("seen")
    last = select(curve.c.trial_id, seen).group_by(curve.c.trial_id).subquery()
    query = (
        select(
            trials.c.trial_id,
            studies.c.study_name,
            trials.c.number,
            trials.c.state,
            trials.c.datetime_start,
            trial_run.c.owner,
            trial_run.c.attempt,
            trial_run.c.host,
            trial_run.c.started,
            (trial_run.c.lease_expires - unix_now()).label("lease_left"),
            trial_run.c.outcome,
            trial_run.c.state.label("result"),
            trial_run.c.value,
            trial_run.c.examples,
            last.c.seen,
        )
        .select_from(
            studies.join(trials, trials.c.study_id == studies.c.study_id)
            .outerjoin(trial_run, trial_run.c.trial_id == trials.c.trial_id)
            .outerjoin(last, last.c.trial_id == trials.c.trial_id)
        )
        .where(of_name(name))
        .order_by(studies.c.study_id, trials.c.number)
    )
    with store.read() as connection:
        return [
            TrialFacts(
                trial_id=row.trial_id,
                study_name=row.study_name,
                number=row.number,
                state=row.state,
                began=row.datetime_start,
                owner=row.owner,
                attempt=row.attempt,
                host=row.host,
                started=row.started,
                lease_left=row.lease_left,
                outcome=row.outcome,
                result=TrialState[row.result] if row.result in TrialState.__members__ else None,
                value=row.value,
                examples=row.examples,
                curve_examples=row.seen or 0,
            )
            for row in connection.execute(query)
            if is_study(row.study_name)
        ]


def strays(store: Store) -> Strays:
    """How many rows have lost their trial."""
    alive, recorded = select(trials.c.trial_id), select(trial_run.c.trial_id)
    lost = or_(curve.c.trial_id.not_in(alive), curve.c.trial_id.not_in(recorded))
    with store.read() as connection:
        return Strays(
            connection.execute(select(func.count()).select_from(curve).where(lost)).scalar_one(),
            connection.execute(
                select(func.count()).select_from(trial_run).where(trial_run.c.trial_id.not_in(alive))
            ).scalar_one(),
        )


def planner(store: Store) -> tuple[str, float] | None:
    """(owner, seconds left) of the right to plan; None where nobody holds it."""
    with store.read() as connection:
        left = (setup_lease.c.lease_expires - unix_now()).label("left")
        row = connection.execute(select(setup_lease.c.owner, left)).first()
        return None if row is None else (str(row.owner), float(row.left))


def clock_ahead(store: Store) -> float:
    """Seconds that the database's clock is ahead of this machine's."""
    with store.read() as connection:
        before = time.time()
        theirs = float(connection.execute(select(unix_now())).scalar_one())
        return theirs - (before + time.time()) / 2


def drop_strays(store: Store) -> None:
    """Delete rows of ours whose trial is gone."""
    with store.write() as connection:
        alive, recorded = select(trials.c.trial_id), select(trial_run.c.trial_id)
        connection.execute(curve.delete().where(curve.c.trial_id.not_in(alive)))
        connection.execute(trial_run.delete().where(trial_run.c.trial_id.not_in(alive)))
        connection.execute(curve.delete().where(curve.c.trial_id.not_in(recorded)))


def install(store: Store) -> None:
    """Put the triggers back that an upgrade of Optuna's tables takes away."""
    with store.write() as connection:
        schema.install(connection)


def rebuild_indices(store: Store) -> None:
    """Make SQLite's indices anew from its tables."""
    with store.write() as connection:
        connection.execute(text("REINDEX"))


def put_back(store: Store, facts: Sequence[TrialFacts]) -> None:
    """Let trials wait again that nobody runs; their attempt has not died."""
    for trial in facts:
        store.optuna.set_trial_state_values(trial.trial_id, TrialState.WAITING)
        with store.write() as connection:
            connection.execute(
                trial_run.update()
                .where(trial_run.c.trial_id == trial.trial_id, trial_run.c.outcome.is_(None))
                .values(owner=None, lease_expires=None)
            )


def tell(store: Store, facts: Sequence[TrialFacts]) -> None:
    """Tell Optuna results that our rows hold."""
    for trial in facts:
        if trial.result is not None:
            study = optuna.load_study(study_name=trial.study_name, storage=store.optuna)
            optuna_private.tell(study, trial.number, trial.result, trial.value)


def end_planner(store: Store) -> None:
    """Take the right to plan from whoever holds it."""
    with store.write() as connection:
        connection.execute(setup_lease.delete())


def back_up(store: Store) -> str:
    """A copy of everything, made before a repair; where it is, for a message. Raises FailureError.

    SQLite: a file beside the database. PostgreSQL: a schema of its own in the same database, with every table."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path = store.database.path
    if path is not None:
        copy = _free(path.with_name(f"{path.name}.backup-{stamp}"))

        def write(new: Path) -> None:
            with closing(sqlite.connect(path, True)) as source, closing(sqlite3.connect(new)) as target:
                source.backup(target)

        with store.database.explained():
            write_whole(copy, write)
        return str(copy)
    kept = f"backup_{stamp.replace('-', '_')}"
    with store.write() as connection:
        _copy_tables(connection, kept)
    return f"schema {kept} of {store.database.name}"


def _free(path: Path) -> Path:
    """The path, or with a number where something is there already."""
    tried, n = path, 1
    while tried.exists():
        n += 1
        tried = path.with_name(f"{path.name}-{n}")
    return tried


def _copy_tables(connection: Connection, kept: str) -> None:
    connection.execute(text(f"CREATE SCHEMA {kept}"))
    quote = connection.dialect.identifier_preparer.quote
    for table in inspect(connection).get_table_names():
        connection.execute(text(f"CREATE TABLE {kept}.{quote(table)} AS TABLE {quote(table)}"))
