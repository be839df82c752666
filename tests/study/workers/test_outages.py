"""A database that goes away for a while changes nothing of the answer: cut connections, a server that restarts."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy
from fake_study import Launcher, check_complete, load, plan, take
from figures import figures
from psycopg.errors import AdminShutdown, DiskFull
from sqlalchemy.exc import IntegrityError, OperationalError, PendingRollbackError

from study.design.build import Request
from study.place import Place
from study.session import Session
from study.store import records
from study.store.claims import next_claim
from study.store.locations import Local
from study.store.outage import Outage, is_outage, is_passing, patiently
from study.store.owner import new_owner
from study.store.store import Store

#: A comparison small enough to be run twice; the target is given, so there is no calibration.
COMPARE: dict[str, Any] = {"data": "digits", "budget": 2.0, "arms": ["dropout"], "tune_trials": 3, "seeds": 3}
COMPARE |= {"target": 40.0, "recipe": {"hidden": [16], "latent_size": 3}}


def compare(url: str, folder: Path, disturbed: AbstractContextManager[object]) -> None:
    """A comparison of real trainings, planned and run in this process to its end, in the context `disturbed`."""
    place = Place(url, Local(folder / "artifacts"), None, "cpu", 1)
    session = Session.prepare(place, Request(COMPARE, source="test"))
    with session.store, disturbed:
        session.run_here()


def cut(connection: sqlalchemy.Connection, database: str, rng: random.Random, pace: float) -> bool:
    """End one connection to the database, in the middle of something unless it does nothing for `pace` seconds; False
    where there is none."""
    query = "SELECT pid, state FROM pg_stat_activity WHERE datname = :name AND pid <> pg_backend_pid()"
    until = time.monotonic() + pace
    pids: list[int] = []
    while not pids:
        found = connection.execute(sqlalchemy.text(query), {"name": database}).all()
        pids = [row.pid for row in found if row.state != "idle" or time.monotonic() > until]
        if not found:
            return False
    ended = sqlalchemy.text("SELECT pg_terminate_backend(:pid)")
    return bool(connection.execute(ended, {"pid": rng.choice(pids)}).scalar())


@contextmanager
def cutting(url: str, n: int, seed: int, cuts: list[float], pace: float = 1.0) -> Iterator[None]:
    """In this block `n` connections to the database are cut, one at a time, at random moments up to 2 `pace` seconds
    apart; `cuts` gets them."""
    server, _, database = url.rpartition("/")
    engine = sqlalchemy.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    rng = random.Random(seed)
    over = threading.Event()

    def work() -> None:
        with engine.connect() as connection:
            while len(cuts) < n and not over.wait(rng.uniform(0.0, pace)):
                if cut(connection, database, rng, pace):
                    cuts.append(time.monotonic())

    cutter = threading.Thread(target=work)
    cutter.start()
    try:
        yield
    finally:
        over.set()
        cutter.join()
        engine.dispose()


@pytest.mark.timeout(900)
def test_twelve_cut_connections_change_no_figure(
    prepared_sqlite_url: str, prepared_postgresql_url: str, tmp_path: Path
) -> None:
    """Connections of a comparison are cut at twelve random moments, most of them in a transaction: it ends well, no
    trial fails, and every figure and curve is what it is undisturbed."""
    began = time.monotonic()
    compare(prepared_sqlite_url, tmp_path / "undisturbed", nullcontext())
    # However fast the machine is, the twelfth falls before the end: cut, the same work takes longer than undisturbed.
    pace = (time.monotonic() - began) / 24
    seed = random.SystemRandom().randrange(10**6)
    cuts: list[float] = []
    compare(prepared_postgresql_url, tmp_path / "cut", cutting(prepared_postgresql_url, 12, seed, cuts, pace))
    expected, found = figures(prepared_sqlite_url), figures(prepared_postgresql_url)
    with Store.open(prepared_postgresql_url) as store:
        attempts = records.trials(store, "digits")["attempt"]
    print(
        f"seed {seed}: {len(cuts)} cuts, {int((attempts > 1).sum())} of {len(attempts)} trials put back and gone on"
    )
    shown = ["study_name", "number", "outcome", "hit", "examples_to_target"]
    print(pd.concat([expected[0][shown], found[0][shown[2:]].add_suffix(" (cut)")], axis=1).to_string())
    for before, after in zip(expected, found, strict=True):
        pd.testing.assert_frame_equal(before, after, check_exact=True)
    assert len(cuts) == 12, f"seed {seed}: over too soon"


@contextmanager
def restarting(url: str, away: float, outages: list[float]) -> Iterator[None]:
    """In this block the server is stopped once a trial has ended, and started again `away` seconds later; `outages`
    gets the seconds from the stop to the start."""
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        data = Path(connection.execute(sqlalchemy.text("SHOW data_directory")).scalar_one())
    over = threading.Event()
    as_server = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    program, *arguments = shlex.split((data / "postmaster.opts").read_text())
    control = [*as_server, str(Path(program).with_name("pg_ctl")), "-D", str(data), "-w"]

    def call(*command: str) -> None:
        subprocess.run([*control, *command], check=True, stdout=subprocess.DEVNULL, cwd=data.parent)

    def ended() -> bool:
        with engine.connect() as connection:
            query = sqlalchemy.text("SELECT count(*) FROM trial_run WHERE outcome IS NOT NULL")
            return bool(connection.execute(query).scalar_one() > 0)

    def work() -> None:
        while not ended():
            if over.wait(0.05):
                return
        engine.dispose()
        stopped = time.monotonic()
        call("stop", "-m", "fast")
        time.sleep(away)
        call("-o", shlex.join(arguments[2:]), "-l", str(data.parent / "log"), "start")
        outages.append(time.monotonic() - stopped)

    restarter = threading.Thread(target=work)
    restarter.start()
    try:
        yield
    finally:
        over.set()
        restarter.join()
        engine.dispose()


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_server_that_restarts_changes_no_figure(
    prepared_sqlite_url: str, prepared_postgresql_url: str, tmp_path: Path
) -> None:
    """The server is stopped in the middle of a comparison of real trainings and is back within a minute: the
    comparison waits, ends well, and every figure and curve is what it is undisturbed."""
    compare(prepared_sqlite_url, tmp_path / "undisturbed", nullcontext())
    outages: list[float] = []
    compare(prepared_postgresql_url, tmp_path / "away", restarting(prepared_postgresql_url, 15.0, outages))
    with Store.open(prepared_postgresql_url) as store:
        trials = records.trials(store, "digits")
    (outage,) = outages
    print(
        f"away for {outage:.1f} s: {int((trials['attempt'] > 1).sum())} of {len(trials)} trials gone on,"
        f" died {sorted(set(trials['died']))}"
    )
    assert set(trials["died"]) == {0}
    for before, after in zip(figures(prepared_sqlite_url), figures(prepared_postgresql_url), strict=True):
        pd.testing.assert_frame_equal(before, after, check_exact=True)


def test_a_launcher_and_its_workers_ride_out_cuts(prepared_postgresql_url: str, tmp_path: Path) -> None:
    """Where the connections of launcher and workers are cut again and again, every trial still finishes exactly once
    with its whole curve, and the command ends well."""
    seed = random.SystemRandom().randrange(10**6)
    options = ("--trials", "20", "--workers", "2", "--rows", "20", "--delay", "0.05")
    launcher = Launcher(prepared_postgresql_url, tmp_path, *options)
    launcher.begun(1)
    cuts: list[float] = []
    with cutting(prepared_postgresql_url, 12, seed, cuts):
        output = launcher.output()
    assert "done" in output, f"seed {seed}: {launcher.errors}"
    assert len(cuts) > 3
    with Store.open(prepared_postgresql_url) as store:
        check_complete(store, "digits", 20, 20)
        assert set(records.trials(store, "digits")["died"]) == {0}


def wrapped(error: Exception) -> OperationalError:
    return OperationalError("UPDATE", {}, error)


def test_whose_fault_an_error_is() -> None:
    """The storage's errors are told from the training's, through Optuna's wrapping, and those that pass from those
    that don't."""
    lost = wrapped(AdminShutdown("terminating connection"))
    cut_in_transaction = PendingRollbackError("Can't reconnect until invalid transaction is rolled back.")
    for error in (lost, cut_in_transaction):
        assert is_outage(error)
        assert is_passing(error)
    told = UnboundLocalError("updated_state")  # as Optuna's tell ends
    told.__context__ = lost
    assert is_outage(told)
    answered = UnboundLocalError("updated_state")
    answered.__context__, answered.__suppress_context__ = lost, True
    assert not is_outage(answered)
    full = wrapped(DiskFull("could not extend file"))
    assert is_outage(full)
    assert not is_passing(full)
    for error in (IntegrityError("INSERT", {}, Exception("twice")), ValueError("nan"), RuntimeError("shape")):
        assert not is_outage(error)


def test_an_outage_is_waited_for_and_not_for_ever(prepared_sqlite_url: str) -> None:
    """What may be done twice is asked again until the database answers, RIDE_OUT seconds at most; a full disk isn't."""
    with Store.open(prepared_sqlite_url) as store:
        answers: list[Exception | int] = [Outage("gone", passing=True), Outage("gone", passing=True), 3]

        def work() -> int:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        assert store.ride_out(work) == 3
        answers[:] = [Outage("full"), 3]
        with pytest.raises(Outage, match="full"):
            store.ride_out(work)
        answers[:] = [Outage("gone", passing=True) for _ in range(9)]
        with pytest.raises(Outage, match="gone"):
            patiently(work, store.disconnect, seconds=0.3)


def test_a_result_whose_connection_was_cut_is_told(prepared_postgresql_url: str) -> None:
    """A worker whose connection is cut between a trial's result and telling it tells it, and runs nothing twice."""
    with Store.open(prepared_postgresql_url) as store:
        study = plan(store, "digits/a", 1)
        owner = new_owner()
        take(store, owner)
        with store.write() as connection:
            connection.exec_driver_sql(
                "UPDATE trial_run SET outcome = 'reached', state = 'COMPLETE', value = 0.5"
            )
        assert not study.trials[0].state.is_finished()
        assert next_claim(store, "digits", owner, load(store)) is None
        assert study.trials[0].value == 0.5
