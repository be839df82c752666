"""Workers and their launcher: every trial ends once, interruptions lose nothing, failures are told."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from fake_study import (
    expire,
    finish,
    load,
    plan,
    row,
    take,
    wait_for,
)
from sqlalchemy.exc import OperationalError

from study.store import records
from study.store.claims import Claim, LeaseLost, next_claim
from study.store.owner import new_owner
from study.store.store import Store
from study.workers.worker import Interrupted, work
from vae.errors import FailureError

Run = Callable[[Claim, Callable[[], bool]], None]


def run(store: Store, run_trial: Run, stop: threading.Event | None = None, **options: Any) -> int:
    return work(
        store,
        "digits",
        run_trial,
        owner=new_owner(),
        make_study=load(store),
        stop=stop or threading.Event(),
        **options,
    )


def states(store: Store) -> list[str]:
    return list(records.trials(store, "digits")["state"])


def test_work_takes_every_trial_in_order(store: Store) -> None:
    """One worker runs everything there is, in order, and says how much it finished."""
    plan(store, "digits/a", 2)
    plan(store, "digits/b", 1)
    seen: list[tuple[str, int]] = []

    def trial(claim: Claim, stop_requested: Callable[[], bool]) -> None:
        seen.append((claim.study_name, claim.number))
        assert not stop_requested()
        finish(claim)

    assert run(store, trial) == 3
    assert seen == [("digits/a", 0), ("digits/a", 1), ("digits/b", 0)]
    assert states(store) == ["COMPLETE"] * 3


def test_a_failing_trial_is_finished_with_its_reason(store: Store) -> None:
    """An exception fails the trial, not the worker; so does a trial that ends without a result."""
    plan(store, "digits/a", 3)

    def trial(claim: Claim, stop_requested: Callable[[], bool]) -> None:  # noqa: ARG001
        if claim.number == 0:
            raise ZeroDivisionError("by zero")
        if claim.number == 1:
            finish(claim)

    assert run(store, trial) == 3
    frame = records.trials(store, "digits")
    assert list(frame["state"]) == ["FAIL", "COMPLETE", "FAIL"]
    assert list(frame["outcome"]) == ["failed", "reached", "failed"]
    assert list(frame["reason"]) == ["ZeroDivisionError: by zero", None, "the trial ended without a result"]


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", "artifacts/state.pt")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (full_disk(), "artifacts/state.pt can't be written: No space left on device"),
        (FailureError("the GPU is gone"), "the GPU is gone"),
        (OperationalError("INSERT", {}, Exception("database or disk is full")), "full"),
        (optuna.exceptions.StorageInternalError("during the commit"), "during the commit"),
    ],
)
def test_a_failing_place_does_not_fail_the_trial(store: Store, error: Exception, expected: str) -> None:
    """A full disk or a lost database ends the worker with the cause; its trial waits for the next one."""
    plan(store, "digits/a", 1)

    def trial(claim: Claim, stop_requested: Callable[[], bool]) -> None:  # noqa: ARG001
        claim.record([row(0)])
        raise error

    with pytest.raises(FailureError, match=expected):
        run(store, trial)
    frame = records.trials(store, "digits")
    assert (frame["state"][0], frame["died"][0], len(records.curves(store, "digits"))) == ("WAITING", 0, 1)


def test_a_connection_cut_in_a_trial_does_not_fail_it(prepared_postgresql_url: str) -> None:
    """The server ends the connection in the middle of a transaction, ours or Optuna's: the worker goes on with the same
    trial, and nobody has died."""
    with Store.open(prepared_postgresql_url) as store:
        plan(store, "digits/a", 2)

        def trial(claim: Claim, stop_requested: Callable[[], bool]) -> None:  # noqa: ARG001
            claim.truncate(-1)
            claim.record([row(0)])
            if claim.attempt == 1 and claim.number == 0:
                with store.engine.begin() as connection:
                    connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
            if claim.attempt == 1 and claim.number == 1:
                session = store.optuna.scoped_session()
                session.connection().exec_driver_sql("SELECT 1")
                with store.engine.connect() as connection:
                    connection.exec_driver_sql(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
                    )
                claim.trial.suggest_float("y", 0, 1)
            finish(claim)

        assert run(store, trial) == 2
        frame = records.trials(store, "digits")
        assert frame[["state", "attempt", "died"]].values.tolist() == [["COMPLETE", 2, 0]] * 2


def test_a_mistake_of_ours_fails_the_trial(store: Store) -> None:
    """Rows recorded twice or a column that doesn't exist are the trial's fault, not the database's."""
    plan(store, "digits/a", 2)

    def trial(claim: Claim, stop_requested: Callable[[], bool]) -> None:  # noqa: ARG001
        if claim.number == 0:
            claim.record([row(0), row(0)])
        claim.describe(no_such_column=1)

    assert run(store, trial) == 2
    reasons = list(records.trials(store, "digits")["reason"])
    assert reasons[0].startswith("IntegrityError")
    assert "no_such_column" in reasons[1]


def test_stop_ends_after_the_running_trial(store: Store) -> None:
    """A worker asked to stop ends when its trial has ended or put itself back, and takes no other."""
    plan(store, "digits/a", 3)
    stop = threading.Event()

    def trial(claim: Claim, stop_requested: Callable[[], bool]) -> None:
        if claim.number == 1:
            stop.set()
            assert stop_requested()
            claim.record([row(0)])
            claim.release()
            raise Interrupted
        finish(claim)

    assert run(store, trial, stop) == 1
    assert states(store) == ["COMPLETE", "WAITING", "WAITING"]
    assert run(store, lambda claim, stop_requested: finish(claim)) == 2  # noqa: ARG005


def test_a_lost_trial_is_dropped_quietly(store: Store) -> None:
    """Whether the lease went to another worker or the study was deleted: no error, nothing written."""
    plan(store, "digits/a", 1)
    plan(store, "digits/b", 1)
    others: list[Claim] = []

    def trial(claim: Claim, stop_requested: Callable[[], bool]) -> None:  # noqa: ARG001
        if claim.study_name == "digits/b":
            optuna.delete_study(study_name="digits/b", storage=store.optuna)
            claim.trial.report(1.0, 1)  # KeyError by Optuna
        elif not others:
            expire(store)
            others.append(take(store, new_owner()))
            finish(others[0], 2.0)
        claim.record([row(0)])

    assert run(store, trial) == 0
    assert list(records.trials(store, "digits")["value"]) == [2.0]
    assert records.curves(store, "digits").empty


@pytest.fixture
def short_store(store: Store) -> Store:
    """A store whose leases last 3 s, renewed every 0.5 s."""
    store.lease = 3.0
    return store


def test_the_heartbeat_keeps_a_long_trial(short_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial longer than its lease stays its worker's, even where some heartbeats fail."""
    plan(short_store, "digits/a", 1)
    renew, failures = Claim.renew, [2]

    def flaky(claim: Claim) -> None:
        if failures[0] > 0:
            failures[0] -= 1
            raise OperationalError("UPDATE", {}, Exception("database is locked"))
        renew(claim)

    monkeypatch.setattr(Claim, "renew", flaky)

    def trial(claim: Claim, stop_requested: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 1.5 * short_store.lease
        while time.monotonic() < deadline:
            assert next_claim(short_store, "digits", new_owner(), load(short_store)) is None
            assert not stop_requested()
            time.sleep(0.1)
        finish(claim)

    assert run(short_store, trial) == 1
    assert failures == [0]
    assert records.trials(short_store, "digits")["attempt"][0] == 1


def test_a_heartbeat_that_finds_the_lease_lost_stops_the_trial(short_store: Store) -> None:
    """`stop_requested` raises LeaseLost, so no checkpoint is written over the new owner's."""
    plan(short_store, "digits/a", 1)
    raised: list[bool] = []

    def trial(claim: Claim, stop_requested: Callable[[], bool]) -> None:  # noqa: ARG001
        if raised:
            return
        with short_store.write() as connection:
            connection.exec_driver_sql(
                "UPDATE trial_run SET attempt = attempt + 1, owner = 'elsewhere:1:1-x'"
            )
        try:
            wait_for(lambda: stop_requested() or False, 10)
        except LeaseLost:
            raised.append(True)
            with short_store.write() as connection:
                connection.exec_driver_sql("UPDATE trial_run SET outcome = 'reached', state = 'FAIL'")
            raise

    assert run(short_store, trial) == 0
    assert raised == [True]


def test_a_worker_waits_for_what_others_may_leave(short_store: Store) -> None:
    """While another worker holds a trial this one waits, and takes it over when that one falls silent."""
    plan(short_store, "digits/a", 1)
    take(short_store, "elsewhere:1:1-silent")
    began = time.monotonic()
    assert run(short_store, lambda claim, stop_requested: finish(claim)) == 1  # noqa: ARG005
    assert time.monotonic() - began > 0.9 * short_store.lease
    assert records.trials(short_store, "digits")["died"][0] == 1


def test_until_waits_for_more_work(store: Store) -> None:
    """With `until` a worker stays while more may be planned."""
    plan(store, "digits/a", 1)
    asked: list[int] = []

    def until() -> bool:
        asked.append(records.remaining(store, "digits"))
        if len(asked) == 1:
            plan(store, "digits/b", 1)
        return len(asked) == 2

    assert run(store, lambda claim, stop_requested: finish(claim), until=until) == 2  # noqa: ARG005
    assert asked == [0, 0]
