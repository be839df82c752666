"""Workers and their launcher: every trial ends once, interruptions lose nothing, failures are told."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from fake_study import PROGRAM, check_complete, events, expire, finish, load, plan, row, take
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from study import workers
from study.leases import Claim, LeaseLost
from study.owners import new_owner
from study.storage import Store
from study.workers import Interrupted, launch, work
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
    return list(store.trials("digits")["state"])


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


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
    frame = store.trials("digits")
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
    frame = store.trials("digits")
    assert (frame["state"][0], frame["died"][0], len(store.curves("digits"))) == ("WAITING", 0, 1)


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
    assert list(store.trials("digits")["value"]) == [2.0]
    assert store.curves("digits").empty


@pytest.fixture
def short_store(store: Store) -> Store:
    """A store whose leases last 1.2 s, renewed every 0.2 s."""
    store.lease = 1.2
    return store


def test_the_heartbeat_keeps_a_long_trial(short_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial longer than its lease stays its worker's, even where some heartbeats fail."""
    plan(short_store, "digits/a", 1)
    renew, failures = Claim.renew, [3]

    def flaky(claim: Claim) -> None:
        if failures[0] > 0:
            failures[0] -= 1
            raise OperationalError("UPDATE", {}, Exception("database is locked"))
        renew(claim)

    monkeypatch.setattr(Claim, "renew", flaky)

    def trial(claim: Claim, stop_requested: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 2 * short_store.lease
        while time.monotonic() < deadline:
            assert short_store.claim("digits", new_owner(), load(short_store)) is None
            assert not stop_requested()
            time.sleep(0.1)
        finish(claim)

    assert run(short_store, trial) == 1
    assert failures == [0]
    assert short_store.trials("digits")["attempt"][0] == 1


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
    assert short_store.trials("digits")["died"][0] == 1


def test_until_waits_for_more_work(store: Store) -> None:
    """With `until` a worker stays while more may be planned."""
    plan(store, "digits/a", 1)
    asked: list[int] = []

    def until() -> bool:
        asked.append(store.remaining("digits"))
        if len(asked) == 1:
            plan(store, "digits/b", 1)
        return len(asked) == 2

    assert run(store, lambda claim, stop_requested: finish(claim), until=until) == 2  # noqa: ARG005
    assert asked == [0, 0]


def launch_fake(store: Store, folder: Path, n_workers: int, **options: Any) -> bool:
    settings: dict[str, Any] = {
        "advance": lambda: store.remaining("digits") == 0,
        "on_progress": lambda: None,
        "command": [*PROGRAM, "worker"],
        "extra_args": ["--folder", str(folder)],
    }
    return launch(store, "digits", workers=n_workers, threads=1, **(settings | options))


def test_launch_runs_everything(store: Store, tmp_path: Path) -> None:
    """Two workers finish every trial, also one that is planned on the way; progress is told meanwhile."""
    plan(store, "digits/search", 4)
    ticks: list[int] = []
    phases = iter([2])

    def advance() -> bool:
        if store.remaining("digits") == 0:
            n_more = next(phases, 0)
            plan(store, "digits/search", n_more)
            return n_more == 0
        return False

    def progress() -> None:
        ticks.append(store.remaining("digits"))

    before = signal.getsignal(signal.SIGINT)
    assert launch_fake(store, tmp_path, 2, advance=advance, on_progress=progress)
    assert states(store) == ["COMPLETE"] * 6
    assert ticks[0] == 4
    assert signal.getsignal(signal.SIGINT) is before
    assert sorted(int(number) for _, number, _ in events(tmp_path, "end")) == list(range(6))


def test_workers_get_their_settings_before_they_start(prepared_sqlite_url: str) -> None:
    """Threads, storage and parent come by the environment; every start has a seed of its own."""
    program = (
        "import os, sys; print(sys.argv[1:], *[os.environ[key] for key in ('OMP_NUM_THREADS',"
        " 'MKL_NUM_THREADS', 'VAE_STUDY_STORAGE', 'VAE_STUDY_PARENT')], os.getsid(0) == os.getpid()); sys.exit(5)"
    )
    with Store.open(prepared_sqlite_url) as store:
        plan(store, "digits/a", 9)
        with pytest.raises(FailureError) as caught:
            launch(
                store,
                "digits",
                workers=3,
                threads=2,
                advance=lambda: False,
                on_progress=lambda: None,
                command=[sys.executable, "-c", program],
                extra_args=["--device", "cpu"],
            )
    message = str(caught.value)
    assert "3 workers ended one after another without beginning a trial (the last with code 5)" in message
    arguments = ["--name", "digits", "--threads", "2", "--worker-seed", "2", "--device", "cpu"]
    assert f"{arguments} 2 2 {prepared_sqlite_url} {os.getpid()} True" in message


def test_an_error_of_the_plan_ends_the_workers(prepared_sqlite_url: str, tmp_path: Path) -> None:
    """Where planning fails, the workers put their trials back before the error goes on."""
    with Store.open(prepared_sqlite_url) as store:
        plan(store, "digits/a", 50)

        def advance() -> bool:
            if "RUNNING" in states(store):
                raise ZeroDivisionError
            return False

        with pytest.raises(ZeroDivisionError):
            launch_fake(store, tmp_path, 1, advance=advance)
        assert set(states(store)) <= {"COMPLETE", "WAITING"}


class Launcher:
    """A launcher in a process of its own, as from a terminal."""

    def __init__(self, url: str, folder: Path, *arguments: str) -> None:
        self.url = url
        self.folder = folder
        command = [
            *PROGRAM,
            "launch",
            "--storage",
            url,
            "--name",
            "digits",
            "--folder",
            str(folder),
            *arguments,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def begun(self, n_trials: int) -> None:
        wait_for(lambda: (self.folder / "events").exists() and len(events(self.folder, "begin")) >= n_trials)

    def owners(self) -> list[int]:
        return [int(owner.split(":")[1]) for owner, _, _ in events(self.folder, "begin")]

    def output(self) -> str:
        output, _ = self.process.communicate(timeout=90)
        return output


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_cleanly_and_the_command_goes_on(
    sqlite_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C reaches the launcher alone; its workers put their trials back; run again, all is finished."""
    arguments = ("--trials", "6", "--workers", "2", "--rows", "60", "--delay", "0.02")
    first = Launcher(sqlite_url, tmp_path, *arguments)
    first.begun(3)
    os.killpg(first.process.pid, number)  # as a terminal does
    assert "stopped; run the same command to go on" in first.output()
    assert first.process.returncode == 130
    assert len(events(tmp_path, "release")) == 2
    with Store.open(sqlite_url) as store:
        assert set(states(store)) == {"COMPLETE", "WAITING"}
        n_done = states(store).count("COMPLETE")
        second = Launcher(sqlite_url, tmp_path, *arguments)
        assert "done" in second.output()
        check_complete(store, "digits", 6, 60)
        assert len(events(tmp_path, "end")) == 6
        assert 1 <= n_done < 6
        assert set(store.trials("digits")["died"]) == {0}


def test_a_second_signal_ends_at_once(sqlite_url: str, tmp_path: Path) -> None:
    """Where a worker doesn't react, a second Ctrl-C kills it; the trial can be taken at once."""
    launcher = Launcher(sqlite_url, tmp_path, "--trials", "2", "--rows", "4", "--delay", "30")
    launcher.begun(1)
    launcher.process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert launcher.process.poll() is None
    launcher.process.send_signal(signal.SIGINT)
    launcher.process.wait(timeout=5)
    assert "stopped" in launcher.output()
    assert not alive(launcher.owners()[0])
    with Store.open(sqlite_url) as store:
        assert (take(store, new_owner()).number, states(store)) == (0, ["RUNNING", "WAITING"])


def test_workers_end_when_their_launcher_dies(sqlite_url: str, tmp_path: Path) -> None:
    """A launcher killed with -9 leaves no orphans: its workers put their trials back and end."""
    launcher = Launcher(sqlite_url, tmp_path, "--trials", "9", "--workers", "2", "--rows", "400")
    launcher.begun(2)
    launcher.process.kill()
    launcher.output()
    wait_for(lambda: not any(alive(pid) for pid in launcher.owners()), 20)
    with Store.open(sqlite_url) as store:
        assert "RUNNING" not in states(store)
        assert set(store.trials("digits")["died"].dropna()) == {0}


def test_quick_deaths_are_counted_without_progress(prepared_sqlite_url: str, tmp_path: Path) -> None:
    """Three workers that die beginning nothing end the launch; progress in between forgives."""
    with Store.open(prepared_sqlite_url) as store:
        crew = workers._Crew(store, "digits", 1, 1, [])
        study = plan(store, "digits/a", 3)

        def bury(code: int) -> None:
            process = subprocess.Popen([sys.executable, "-c", f"print('why'); import os; os._exit({code})"])
            process.wait()
            crew._bury(workers._Worker(process, (tmp_path / "output").open("w+b")))

        for _ in range(3):
            bury(1)
            bury(1)
            finish(take(store, new_owner()))
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
        bury(1)
        bury(1)
        with pytest.raises(FailureError, match="3 workers ended"):
            bury(1)
