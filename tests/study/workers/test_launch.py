"""The launcher with real worker processes: it restarts, gives up, and ends cleanly."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_study import PROGRAM, Launcher, alive, check_complete, events, finish, plan, take, wait_for

from study.store import records
from study.store.owner import new_owner
from study.store.store import Store
from study.workers.engine import REFUSED
from study.workers.launch import Ended, Workers, launch
from study.workers.processes import LocalEngine
from vae.errors import FailureError, UserError


def states(store: Store) -> list[str]:
    return list(records.trials(store, "digits")["state"])


def launch_fake(store: Store, folder: Path, n_workers: int, **options: Any) -> Ended:
    settings: dict[str, Any] = {
        "advance": lambda: records.remaining(store, "digits") == 0,
        "on_progress": lambda: None,
        "engine": LocalEngine(store.url, 1, [*PROGRAM, "worker"]),
        "extra_args": ["--folder", str(folder)],
    }
    return launch(store, "digits", workers=n_workers, threads=1, **(settings | options))


def test_launch_runs_everything(store: Store, tmp_path: Path) -> None:
    """Two workers finish every trial, also one that is planned on the way; progress is told meanwhile."""
    plan(store, "digits/search", 4)
    ticks: list[int] = []
    phases = iter([2])

    def advance() -> bool:
        if records.remaining(store, "digits") == 0:
            n_more = next(phases, 0)
            plan(store, "digits/search", n_more)
            return n_more == 0
        return False

    def progress() -> None:
        ticks.append(records.remaining(store, "digits"))

    before = signal.getsignal(signal.SIGINT)
    assert launch_fake(store, tmp_path, 2, advance=advance, on_progress=progress) is Ended.DONE
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
                engine=LocalEngine(store.url, 2, [sys.executable, "-c", program]),
                extra_args=["--device", "cpu"],
            )
    message = str(caught.value)
    assert "3 workers ended one after another without progress (the last with code 5)" in message
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_cleanly_and_the_command_goes_on(
    sqlite_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C reaches the launcher alone; its workers put their trials back; run again, all is finished."""
    arguments = ("--trials", "6", "--workers", "2", "--rows", "40", "--delay", "0.02")
    first = Launcher(sqlite_url, tmp_path, *arguments)
    first.begun(3)
    os.killpg(first.process.pid, number)  # as a terminal does
    assert "stopped; run the same command to go on" in first.output()
    assert first.process.returncode == 130
    begun, ended = events(tmp_path, "begin"), events(tmp_path, "end") + events(tmp_path, "release")
    assert sorted(begun) == sorted(ended)
    assert events(tmp_path, "release")
    with Store.open(sqlite_url) as store:
        assert set(states(store)) == {"COMPLETE", "WAITING"}
        n_done = states(store).count("COMPLETE")
        second = Launcher(sqlite_url, tmp_path, *arguments)
        assert "done" in second.output()
        check_complete(store, "digits", 6, 40)
        assert len(events(tmp_path, "end")) == 6
        assert 1 <= n_done < 6
        assert set(records.trials(store, "digits")["died"]) == {0}


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
        assert set(records.trials(store, "digits")["died"].dropna()) == {0}


class GoneWorker:
    """A worker that has ended with this code."""

    owner = "node-3-0f6a84ca:1"

    def __init__(self, code: int, last_lines: str = "why") -> None:
        self.code = code
        self._last_lines = last_lines

    def ended(self) -> int:
        return self.code

    def last_lines(self) -> str:
        return self._last_lines

    def close(self) -> None:
        pass


def test_quick_deaths_are_counted_without_progress(prepared_sqlite_url: str) -> None:
    """Three workers that die without progress end the launch; progress in between forgives, and the next start
    waits."""
    with Store.open(prepared_sqlite_url) as store:
        plan(store, "digits/a", 3)
        started: list[int] = []

        def start(index: int) -> Any:
            started.append(index)
            return GoneWorker(1)

        workers = Workers(store, "digits", 1, start)

        def until_started(n: int) -> None:
            def tried() -> bool:
                workers.replace_ended()
                return len(started) >= n

            wait_for(tried)

        until_started(2)
        finish(take(store, new_owner()))
        until_started(3)  # one death since the progress
        began = time.monotonic()
        until_started(4)
        assert time.monotonic() - began > 1.5
        with pytest.raises(
            FailureError, match=r"3 workers ended one after another .* code 1\). Its last lines: why"
        ):
            workers.replace_ended()


CRASHING = """
import os, sys
from fake_study import FakeTraining, load
from study.store.owner import new_owner
from study.store.store import Store
from study.workers.signals import stop_on_signals
from study.workers.worker import work
from vae.errors import FailureError
stop = stop_on_signals()
def run(claim, stop_requested):
    if claim.number == 1:
        CRASH
    claim.fail("never mind")
with Store.open(os.environ["VAE_STUDY_STORAGE"]) as store:
    work(store, "digits", run, owner=new_owner(), make_study=load(store), stop=stop, until=lambda: False)
"""


def launch_crashing(store: Store, crash: str) -> Ended:
    plan(store, "digits/a", 3)
    return launch(
        store,
        "digits",
        workers=1,
        threads=1,
        advance=lambda: records.remaining(store, "digits") == 0,
        on_progress=lambda: None,
        engine=LocalEngine(store.url, 1, [sys.executable, "-c", CRASHING.replace("CRASH", crash)]),
    )


def test_a_trial_that_kills_workers_does_not_end_the_launch(
    prepared_sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that crashes every worker is given up after three, and the others are run."""
    monkeypatch.setenv("PYTHONPATH", str(Path(PROGRAM[1]).parent))
    with Store.open(prepared_sqlite_url) as store:
        assert launch_crashing(store, "os.abort()") is Ended.DONE
        reasons = list(records.trials(store, "digits")["reason"])
        assert reasons == ["never mind", "3 workers died at the same place of it", "never mind"]


def test_a_place_that_keeps_failing_ends_the_launch(
    prepared_sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every worker puts its trial back and ends, the launcher gives up with the worker's words."""
    monkeypatch.setenv("PYTHONPATH", str(Path(PROGRAM[1]).parent))
    with Store.open(prepared_sqlite_url) as store:
        with pytest.raises(
            FailureError, match=r"without progress .* artifacts can't be written: No space left on device"
        ):
            launch_crashing(store, "raise OSError(28, 'No space left on device', 'artifacts')")
        assert states(store) == ["FAIL", "WAITING", "WAITING"]


def test_a_second_signal_breaks_off_the_planning(prepared_sqlite_url: str, tmp_path: Path) -> None:
    """Two signals end a launch at once, even where planning takes long."""
    with Store.open(prepared_sqlite_url) as store:

        def advance() -> bool:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
            return False

        began = time.monotonic()
        assert launch_fake(store, tmp_path, 1, advance=advance) is Ended.STOPPED
        assert time.monotonic() - began < 10


def test_a_worker_that_cannot_take_part_ends_the_launch(prepared_sqlite_url: str) -> None:
    """Where other data lie on its machine than the experiment's, say: at the first, as bad input, with the machine's
    name and what the worker said."""
    said = "a warning / Error: Experiment 'digits' was started with data of SHA-256 1..., not 2..."
    with Store.open(prepared_sqlite_url) as store:
        plan(store, "digits/a", 3)
        workers = Workers(store, "digits", 1, lambda _: GoneWorker(REFUSED, said))  # type: ignore[arg-type, return-value]
        workers.replace_ended()
        with pytest.raises(
            UserError, match=r"^A worker on node-3 can't take part: Experiment .* not 2"
        ) as caught:
            workers.replace_ended()
        assert not isinstance(caught.value, FailureError)
