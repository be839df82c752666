"""Who runs which trial: claims, leases and fencing, so that no trial is lost, run twice or overwritten.

The row in `trial_run` decides, not Optuna's state. A claim writes owner, attempt and the end of the lease;
every later write asks for the same owner and attempt, so a worker that lost its lease changes nothing.
A trial whose lease is over is taken over under the next attempt: same trial, same parameters, same curve.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    case,
    extract,
    false,
    func,
    null,
    or_,
    select,
    text,
)

from study.store import optuna_private
from study.store.database import CLAIM_LOCK
from study.store.keepalive import LeaseLost
from study.store.owner import is_gone
from study.store.records import study_ids
from study.store.schema import curve, of_name, studies, trial_run, trials, unix_now
from study.store.store import LEASE, Store

#: A trial that so many workers died on, with no progress in between, is finished as failed: it kills them.
MAX_DEATHS = 3

UNFINISHED = (TrialState.WAITING, TrialState.RUNNING)


class Claim:
    """One trial that this worker holds. Every method but `trial`'s own raises LeaseLost once it doesn't."""

    def __init__(self, store: Store, trial: optuna.Trial, study_name: str, owner: str, attempt: int) -> None:
        self.trial = trial
        self.study_name = study_name
        self.trial_id = optuna_private.trial_id(trial)
        self.number = trial.number
        self.owner = owner
        self.attempt = attempt
        #: Whether it is neither finished nor released.
        self.open = True
        self._unwritten_rows: list[dict[str, Any]] = []
        self._unwritten_reports: list[tuple[int, float]] = []
        self._store = store

    @property
    def reported(self) -> frozenset[int]:
        """Steps that are reported to Optuna, by an earlier attempt too: it warns about repeats."""
        return frozenset(optuna_private.reports(self.trial))

    def describe(self, **columns: Any) -> None:
        """Fill columns of `trial_run`: recipe, seed, phase, device, versions, ..."""
        with self._store.write() as connection:
            self._fence(connection, columns)

    def report(self, value: float, step: int) -> None:
        """Optuna's `Trial.report`, for this trial's pruner at once and for everybody with the next `record`:
        by itself each costs as much as some epochs of a small model."""
        known = optuna_private.reports(self.trial)
        if step not in known:
            known[step] = value
            self._unwritten_reports.append((step, value))

    def append(self, row: dict[str, Any]) -> None:
        """A row of the curve, which is written with the next `record` or with the result, whatever that is."""
        self._unwritten_rows.append(row)

    def record(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        """Write the rows and reports since the last time, and these rows, and renew the lease, in one transaction."""
        self._unwritten_rows += rows
        furthest = max((row["number"] for row in self._unwritten_rows), default=-1)
        is_new = trial_run.c.furthest < furthest
        progress = {
            "died": case((is_new, 0), else_=trial_run.c.died),
            "furthest": case((is_new, furthest), else_=trial_run.c.furthest),
        }
        with self._store.write() as connection:
            self._fence(connection, progress)
            self._write_curve(connection)

    def truncate(self, after_number: int) -> None:
        """Drop the curve's rows and the reports numbered above `after_number`: those past the checkpoint that is
        resumed, by which a pruner would judge the trial before it is there again."""
        with self._store.write() as connection:
            self._fence(connection, {})
            optuna_private.drop_reports(connection, self.trial, after_number)
            past = and_(curve.c.trial_id == self.trial_id, curve.c.number > after_number)
            connection.execute(curve.delete().where(past))

    def renew(self) -> None:
        """Hold the trial for another lease from now."""
        with self._store.write() as connection:
            self._fence(connection, {})

    def finish(
        self,
        *,
        state: TrialState,
        value: float | None,
        outcome: str,
        rows: Iterable[dict[str, Any]] = (),
        attributes: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> None:
        """Write the last rows, the result and user attributes of Optuna's trial in one transaction, then tell Optuna.

        A worker that dies in between leaves a finished row; whoever claims next tells Optuna.
        """
        if state is TrialState.COMPLETE and (value is None or math.isnan(value)):
            raise ValueError(f"A complete trial needs a value, not {value}.")
        result = {"state": state.name, "value": value, "outcome": outcome, "finished": unix_now()}
        self._unwritten_rows += rows
        with self._store.write() as connection:
            self._fence(connection, columns | result)
            self._write_curve(connection)
            optuna_private.write_attributes(connection, self.trial_id, attributes or {})
        self.open = False
        optuna_private.tell(self.trial.study, self.trial, state, value)

    def release(self) -> None:
        """Put the trial back: it waits again with its parameters and curve; this attempt has not died."""
        self.renew()
        # Optuna first: once the row is free another worker may set the state to RUNNING.
        if not optuna_private.put_back(self.trial):
            raise LeaseLost
        with self._store.write() as connection:
            self._fence(connection, {"owner": None}, expires=null())
        self.open = False

    def fail(self, reason: str) -> None:
        """Finish as failed, for this reason."""
        self.finish(state=TrialState.FAIL, value=None, outcome="failed", reason=reason)

    def _fence(
        self, connection: Connection, columns: Mapping[str, Any], expires: ColumnElement[Any] | None = None
    ) -> None:
        if expires is None:
            expires = unix_now() + self._store.lease
        changed = connection.execute(
            trial_run.update()
            .where(
                trial_run.c.trial_id == self.trial_id,
                trial_run.c.owner == self.owner,
                trial_run.c.attempt == self.attempt,
                trial_run.c.outcome.is_(None),
            )
            .values(without_nan(columns) | {"lease_expires": expires})
        )
        if changed.rowcount != 1:
            raise LeaseLost(f"trial {self.number} of {self.study_name}")

    def _write_curve(self, connection: Connection) -> None:
        # Taken out first: what can't be written must not fail the next write too.
        rows, self._unwritten_rows = self._unwritten_rows, []
        reports, self._unwritten_reports = self._unwritten_reports, []
        if rows:
            connection.execute(
                curve.insert(), [without_nan(row) | {"trial_id": self.trial_id} for row in rows]
            )
        optuna_private.write_reports(connection, self.trial_id, reports)


def next_claim(
    store: Store, name: str, owner: str, make_study: Callable[[str], optuna.Study]
) -> Claim | None:
    """The next waiting or abandoned trial of NAME, lowest study first, then number; None where none is free.

    An owner runs one trial at a time: what it still holds when it asks is a trial that it lost sight of when the
    database failed, and comes first.
    On the way it tells Optuna about trials whose worker died between finishing and telling, and finishes
    as failed those that have outlived MAX_DEATHS workers.
    """
    while True:
        with store.write() as connection:
            taken = _take(connection, name, owner, store.lease)
        if taken is None:
            return None
        try:
            study = make_study(taken.study_name)
        except KeyError:
            if taken.study_name in study_ids(store, name):
                raise
            continue  # deleted meanwhile
        if taken.outcome is not None:
            optuna_private.tell(study, taken.number, TrialState[taken.result_state], taken.value)
            continue
        trial = optuna_private.start_trial(study, taken.trial_id, taken.state is TrialState.WAITING)
        if trial is not None:
            return Claim(store, trial, taken.study_name, owner, taken.attempt)
        with store.write() as connection:
            connection.execute(curve.delete().where(curve.c.trial_id == taken.trial_id))
            connection.execute(trial_run.delete().where(trial_run.c.trial_id == taken.trial_id))


def release_owner(store: Store, owner: str) -> None:
    """End the leases of a worker that died: its trials can be taken over at once, from any machine.

    `owner` may be the full owner or its start, `host:pid`.
    """
    dead = or_(trial_run.c.owner == owner, func.substr(trial_run.c.owner, 1, len(owner) + 1) == f"{owner}:")
    with store.write() as connection:
        connection.execute(trial_run.update().where(dead).values(lease_expires=0.0))


def without_nan(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns with NaN as None (SQL's NULL)."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in columns.items()
    }


def _take(connection: Connection, name: str, owner: str, lease: float) -> Any:
    """Choose a trial and write the claim, in the caller's transaction."""
    if connection.dialect.name == "postgresql":  # SQLite's BEGIN IMMEDIATE has locked the others out already
        connection.execute(text(f"SELECT pg_advisory_xact_lock({CLAIM_LOCK})"))
    columns = (
        studies.c.study_id,
        studies.c.study_name,
        trials.c.trial_id,
        trials.c.number,
        trials.c.state,
        trial_run.c.owner,
        trial_run.c.attempt,
        trial_run.c.died,
        trial_run.c.outcome,
        (trial_run.c.lease_expires < unix_now()).label("expired"),
        (trial_run.c.lease_expires > unix_now() + 2 * LEASE).label("ahead"),
        _cut_off(connection).label("cut_off"),
    )
    tables = studies.join(trials, trials.c.study_id == studies.c.study_id)
    order = (studies.c.study_id, trials.c.number)
    held = connection.execute(
        select(*columns)
        .select_from(tables.join(trial_run, trial_run.c.trial_id == trials.c.trial_id))
        .where(of_name(name), trials.c.state.in_(UNFINISHED), trial_run.c.owner.is_not(None))
        .order_by(*order)
    ).all()
    free = connection.execute(
        select(*columns)
        .select_from(tables.outerjoin(trial_run, trial_run.c.trial_id == trials.c.trial_id))
        .where(of_name(name), trials.c.state == TrialState.WAITING, trial_run.c.owner.is_(None))
        .order_by(*order)
        .limit(1)
    )
    for row in held:
        if row.ahead:
            # Written before the clock was set back: a worker that lives renews it, and one that doesn't holds the
            # trial no longer than any other.
            same = trial_run.c.trial_id == row.trial_id
            connection.execute(trial_run.update().where(same).values(lease_expires=unix_now() + LEASE))
    candidates = [row for row in held if row.owner == owner or row.expired or is_gone(row.owner)] + list(free)
    if not candidates:
        return None
    chosen = min(candidates, key=lambda row: (row.owner != owner, row.study_id, row.number))
    _write_claim(connection, chosen, name, owner, lease)
    return connection.execute(
        select(
            studies.c.study_name,
            trials.c.trial_id,
            trials.c.number,
            trials.c.state,
            trial_run.c.attempt,
            trial_run.c.outcome,
            trial_run.c.state.label("result_state"),
            trial_run.c.value,
        )
        .select_from(tables.join(trial_run, trial_run.c.trial_id == trials.c.trial_id))
        .where(trials.c.trial_id == chosen.trial_id)
    ).one()


def _cut_off(connection: Connection) -> ColumnElement[bool]:
    """Whether a lease ran out before the server was started last: its worker could neither renew it nor put the trial
    back, so nobody knows that it died on the trial. A lease that was ended (0) is one of a worker that did."""
    if connection.dialect.name != "postgresql":
        return false()
    started = extract("epoch", func.pg_postmaster_start_time())
    return and_(trial_run.c.lease_expires > 0, trial_run.c.lease_expires < started)


def _write_claim(connection: Connection, chosen: Row[Any], name: str, owner: str, lease: float) -> None:
    mine = {"owner": owner, "lease_expires": unix_now() + lease, "host": socket.gethostname()}
    if chosen.attempt is None:
        arm, _, block = chosen.study_name.removeprefix(f"{name}/").partition("/")
        row = {
            "trial_id": chosen.trial_id,
            "experiment": name,
            "arm": arm,
            "block": int(block) if block.isdecimal() else 1,
            "number": chosen.number,
            "attempt": 1,
            "died": 0,
            "furthest": -1,
            "started": unix_now(),
        }
        connection.execute(trial_run.insert().values(row | mine))
        return
    change: dict[str, Any] = dict(mine)
    if chosen.outcome is None:
        died = chosen.died + (chosen.owner not in (None, owner) and not chosen.cut_off)
        change |= {"attempt": chosen.attempt + 1, "died": died}
        if died >= MAX_DEATHS:
            reason = f"{died} workers died at the same place of it"
            change |= {"outcome": "failed", "state": "FAIL", "reason": reason, "finished": unix_now()}
    connection.execute(trial_run.update().where(trial_run.c.trial_id == chosen.trial_id).values(change))
