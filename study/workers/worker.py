"""Worker processes: one that works through the trials of a name, and the launcher of several."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from study.store.claims import Claim, LeaseLost, next_claim
from study.store.database import is_outage
from study.store.store import Store
from study.workers.processes import (
    GRACE,
    PARENT_VARIABLE,
    STORAGE_VARIABLE,
    Crew,
    counted_signals,
    this_program,
)
from vae.errors import FailureError

__all__ = ["PARENT_VARIABLE", "STORAGE_VARIABLE", "Interrupted", "launch", "stop_on_signals", "work"]

_POLL = 0.3
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
            claim = next_claim(store, name, owner, study_of)
            over = claim is None and store.remaining(name) == 0
        if claim is not None:
            finished += _run(store, claim, run_trial, stop)
        elif over and (until is None or until()):
            break
        else:
            studies.clear()  # a study may be deleted and made anew under its name meanwhile
            # Not stop.wait(): a signal handler that sets the event its own thread waits on can hang.
            time.sleep(_POLL)
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
    returns False; a second one kills them. Returns True when everything is done. Raises FailureError where
    the database fails, and, with a worker's last lines, where workers die again and again without progress.
    """
    crew = Crew(store, name, workers, threads, list(command or this_program("worker")))
    crew.command += ["--name", name, "--threads", str(threads)]
    crew.extra_args = list(extra_args)
    with store.database.explained(), counted_signals() as signals:
        try:
            done = advance()
            while not done and not signals.received:
                crew.tend()
                on_progress()
                time.sleep(_POLL)
                done = advance()
        except KeyboardInterrupt:
            done = False
        finally:
            signals.interrupt = False
            crew.stop(signals)
    return done


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
    if is_outage(error):
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
