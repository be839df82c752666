"""Worker processes: one that works through the trials of a name, and the launcher of several."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import IO

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from study.leases import Claim, LeaseLost
from study.owners import host_id
from study.storage import Store
from vae.errors import FailureError

#: Environment of a launched worker. The URL travels here because a command line, and so a password in it,
#: is visible to every user of the machine.
STORAGE_VARIABLE = "VAE_STUDY_STORAGE"
PARENT_VARIABLE = "VAE_STUDY_PARENT"

#: Deaths in a row, with no trial begun or finished in between, that end a launch. Deaths by SIGKILL come
#: from outside (a user, the kernel short of memory) and say less about the next try.
MAX_QUICK_DEATHS = 3
MAX_QUICK_KILLS = 20

#: Seconds that a worker gets to put its trial back before it is killed.
GRACE = 60.0

_POLL = 0.3
_LONGEST_DELAY = 10.0
_NO_PLACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

_log = logging.getLogger(__name__)

RunTrial = Callable[[Claim, Callable[[], bool]], None]


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """Raised by a trial that was asked to stop, has saved its checkpoint and has released its claim."""


def work(
    store: Store,
    name: str,
    run_trial: RunTrial,
    *,
    owner: str,
    make_study: Callable[[str], optuna.Study],
    stop: threading.Event,
    until: Callable[[], bool] | None = None,
) -> int:
    """Run the trials of NAME one at a time until none is left; returns how many this worker finished.

    `run_trial(claim, stop_requested)` finishes or releases its claim; an exception finishes the trial as
    failed with `TypeName: message` as the reason. While others still run, it waits: they may die. With
    `until` it also waits for more to be planned, until that returns True. `stop` ends it after the running
    trial has ended or put itself back.
    Raises FailureError where the database or the disk fails: then the trial is put back, not failed.
    """
    studies: dict[str, optuna.Study] = {}

    def study_of(study_name: str) -> optuna.Study:
        if study_name not in studies:
            studies[study_name] = make_study(study_name)
        return studies[study_name]

    finished = 0
    while not stop.is_set():
        with store.database.explained():
            claim = store.claim(name, owner, study_of)
            over = claim is None and store.remaining(name) == 0
        if claim is not None:
            finished += _run(store, claim, run_trial, stop)
        elif over and (until is None or until()):
            break
        else:
            studies.clear()  # a study may be deleted and made anew under its name meanwhile
            time.sleep(
                _POLL
            )  # not stop.wait(): a signal handler that sets an event its thread waits on can hang
    return finished


def stop_on_signals() -> threading.Event:
    """For a worker's process: an event set by SIGINT, SIGTERM or the launcher's death.

    A second signal ends the process at once; an orphan that doesn't stop within GRACE seconds ends too.
    """
    stop = threading.Event()
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)
        if len(received) > 1:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        threading.Thread(target=_end_with, args=(int(parent), stop), daemon=True).start()
    return stop


def launch(
    store: Store,
    name: str,
    *,
    workers: int,
    threads: int,
    advance: Callable[[], bool],
    on_progress: Callable[[], None],
    command: Sequence[str] | None = None,
    extra_args: Sequence[str] = (),
) -> bool:
    """Keep `workers` processes busy with NAME until `advance()` says that everything is done.

    `advance` plans and enqueues what can be, and `on_progress` draws; both are called about every 0.3 s.
    A worker is `command --name NAME --threads T --worker-seed I extra_args...`, with the storage's URL in
    the environment; I counts starts, so a restarted worker doesn't repeat its predecessor's random numbers.
    Must be called from the main thread: Ctrl-C or SIGTERM makes the workers put their trials back and
    returns False; a second one kills them. Returns True when everything is done. Raises FailureError, with
    a worker's last lines, where workers die again and again without beginning a trial.
    """
    crew = _Crew(store, name, workers, threads, list(command or (sys.executable, "-m", "study", "worker")))
    crew.command += ["--name", name, "--threads", str(threads)]
    crew.extra_args = list(extra_args)
    with _counted_signals() as received:
        try:
            done = advance()
            while not done and not received:
                crew.tend()
                on_progress()
                time.sleep(_POLL)
                done = advance()
        finally:
            crew.stop(received)
    return done


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def last_lines(self, lines: int = 8) -> str:
        self.output.seek(0)
        text = self.output.read().decode(errors="replace").strip()
        return " / ".join(line.strip() for line in text.splitlines()[-lines:]) or "it wrote nothing"


@dataclass
class _Crew:
    """The launcher's processes: started, restarted, stopped."""

    store: Store
    name: str
    size: int
    threads: int
    command: list[str]
    extra_args: list[str] = field(default_factory=list)
    workers: list[_Worker] = field(default_factory=list)
    started: int = 0
    deaths: list[int] = field(default_factory=list)  # return codes since the last progress
    progress: int = -1
    next_start: float = 0.0

    def tend(self) -> None:
        """Bury the dead and start as many as there is work for."""
        for worker in [worker for worker in self.workers if worker.process.poll() is not None]:
            self.workers.remove(worker)
            self._bury(worker)
        if len(self.workers) < self.size and time.monotonic() >= self.next_start:
            wanted = min(self.size, self.store.remaining(self.name))
            while len(self.workers) < wanted:
                self._start()

    def stop(self, received: list[int]) -> None:
        """End every worker: gracefully, at once after another signal, and after GRACE seconds in any case."""
        signals_before = len(received)
        for worker in self.workers:
            worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while any(worker.process.poll() is None for worker in self.workers):
            if len(received) > signals_before or time.monotonic() > deadline:
                for worker in self.workers:
                    worker.process.kill()
                    worker.process.wait()
            time.sleep(0.02)
        for worker in self.workers:
            worker.output.close()
        self.workers.clear()

    def _start(self) -> None:
        output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the worker is buried
        threads = str(self.threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONFAULTHANDLER": "1",
            STORAGE_VARIABLE: self.store.url,
            PARENT_VARIABLE: str(os.getpid()),
        }
        # A session of its own: Ctrl-C in the terminal reaches the launcher alone, which passes it on.
        process = subprocess.Popen(
            [*self.command, "--worker-seed", str(self.started), *self.extra_args],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started += 1
        self.workers.append(_Worker(process, output))

    def _bury(self, worker: _Worker) -> None:
        with worker.output:
            # Workers here see that the process is gone; those on other machines need to be told.
            self.store.release_owner(f"{host_id()}:{worker.process.pid}")
            progress = self.store.progress(self.name)
            if progress != self.progress:
                self.progress = progress
                self.deaths.clear()
            self.deaths.append(worker.process.returncode)
            failures = [code for code in self.deaths if code != -signal.SIGKILL]
            if len(failures) >= MAX_QUICK_DEATHS or len(self.deaths) >= MAX_QUICK_KILLS:
                raise FailureError(
                    f"{len(self.deaths)} workers ended one after another without beginning a trial (the last with"
                    f" code {worker.process.returncode}). Its last lines: {worker.last_lines()}"
                )
            if len(self.deaths) > 1:
                delay = min(0.5 * 2 ** len(self.deaths), _LONGEST_DELAY)
                self.next_start = time.monotonic() + delay


def _run(store: Store, claim: Claim, run_trial: RunTrial, stop: threading.Event) -> int:
    """Run one claimed trial; 1 if it was finished here, 0 if it was lost or put back."""
    lost = threading.Event()

    def stop_requested() -> bool:
        if lost.is_set():
            raise LeaseLost
        return stop.is_set()

    try:
        with _heartbeat(claim, store.lease / 6, lost):
            try:
                run_trial(claim, stop_requested)
                if claim.open:
                    claim.fail("the trial ended without a result")
            except Exception as error:
                reason = _reason(store, claim, error)
                _log.warning("trial %d of %s failed", claim.number, claim.study_name, exc_info=True)
                claim.fail(reason)
        return 1
    except (LeaseLost, Interrupted):
        return 0
    finally:
        if claim.open:
            _put_back(claim)


def _reason(store: Store, claim: Claim, error: Exception) -> str:
    """Why the trial failed; raises where it isn't the trial that failed."""
    if isinstance(error, SQLAlchemyError | StorageInternalError):
        raise store.database.explain(error) from error
    if isinstance(error, OSError) and error.errno in _NO_PLACE:
        raise FailureError(f"{error.filename or 'A file'} can't be written: {error.strerror}.") from error
    if isinstance(error, LeaseLost | Interrupted | FailureError) or not claim.open:
        raise error
    return f"{type(error).__name__}: {error}"[:1000]


def _put_back(claim: Claim) -> None:
    try:
        claim.release()
    except LeaseLost:
        return  # somebody else has it already
    except (SQLAlchemyError, StorageInternalError) as error:
        _log.warning("trial %d of %s can't be put back: %s", claim.number, claim.study_name, error)


@contextmanager
def _heartbeat(claim: Claim, interval: float, lost: threading.Event) -> Iterator[None]:
    done = threading.Event()

    def beat() -> None:
        wait = interval
        while not done.wait(wait):
            try:
                claim.renew()
                wait = interval
            except LeaseLost:
                lost.set()
                return
            except SQLAlchemyError as error:  # locked or unreachable for a while: again soon
                _log.warning("heartbeat: %s", error)
                wait = min(1.0, interval)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _end_with(parent: int, stop: threading.Event) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    stop.set()
    time.sleep(GRACE)
    os._exit(1)


@contextmanager
def _counted_signals() -> Iterator[list[int]]:
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: received.append(number))  # noqa: ARG005
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
