"""Writing an experiment to a tracker: once, or again and again while it runs, from a process of its own.

A tracker's library may hang, fail or crash: the trainings and their launcher never wait for it.
"""

from __future__ import annotations

import importlib.util
import signal
import threading
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Self

from study.store import records
from study.store.store import Store
from study.tracking.runs import Tracker, finished_runs
from study.workers.processes import WorkerProcess, this_program
from vae.errors import FailureError, UserError, did_you_mean

#: Seconds between two looks at the database, and the share of one core that writing may take.
LOOK_SECONDS = 2.0
SHARE = 0.05
#: Seconds that a run's end waits for the last trials to be written.
LAST_SECONDS = 120.0


class Kind(StrEnum):
    """The trackers there are."""

    MLFLOW = "mlflow"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


def require_kinds(kinds: Sequence[str], option: str) -> tuple[Kind, ...]:
    """The trackers meant, each once. Raises UserError for one that there isn't or that isn't installed."""
    found = []
    for text in dict.fromkeys(kinds):
        if text not in list(Kind):
            raise UserError(f"{option} {text}: no such tracker. {did_you_mean(text, list(Kind))}")
        if importlib.util.find_spec(text) is None:
            raise UserError(f"{option} {text} needs the extra: pip install 'vae-study[{text}]'")
        found.append(Kind(text))
    return tuple(found)


def open_tracker(kind: Kind, experiment: str) -> Tracker:
    """The tracker, ready for the runs of an experiment. Raises FailureError, in one line, what its library raises."""
    try:
        if kind is Kind.MLFLOW:
            from study.tracking.mlflow import Mlflow

            return Mlflow(experiment)
        if kind is Kind.WANDB:
            from study.tracking.wandb import Wandb

            return Wandb(experiment)
        from study.tracking.tensorboard import TensorBoard

        return TensorBoard(experiment)
    except Exception as error:
        raise _failure(kind, error) from error


def write_new(store: Store, name: str, tracker: Tracker, kind: Kind) -> int:
    """Write every finished trial of NAME that the tracker hasn't whole; how many. Raises FailureError."""
    written = 0
    try:
        known = tracker.known()
        for run in finished_runs(store, name, known):
            tracker.write(run)
            written += 1
    except UserError:
        raise
    except Exception as error:
        raise _failure(kind, error) from error
    return written


def follow(store: Store, name: str, tracker: Tracker, kind: Kind, stop: threading.Event) -> int:
    """`write_new` whenever a trial has ended, until `stop`, and then once more; how many were written."""
    written, seen = 0, -1
    while True:
        last = stop.is_set()
        began = time.thread_time()
        progress = store.ride_out(lambda: records.progress(store, name))
        if progress != seen or last:
            written += store.ride_out(lambda: write_new(store, name, tracker, kind))
            seen = progress
        if last:
            return written
        until = time.monotonic() + max(LOOK_SECONDS, (time.thread_time() - began) / SHARE)
        # Not stop.wait(): a signal handler that sets the event its own thread waits on can hang.
        while time.monotonic() < until and not stop.is_set():
            time.sleep(0.1)


def _failure(kind: Kind, error: Exception) -> FailureError:
    said = str(error).strip().splitlines()
    return FailureError(f"{kind}: {type(error).__name__}: {said[0] if said else 'no reason given'}"[:500])


class Followers:
    """The processes that write a running experiment to its trackers; a context manager.

    `say` gets a line for one that ended too early: the experiment goes on, and what is missing can be written later.
    """

    def __init__(self, store: Store, name: str, kinds: Sequence[Kind], say: Callable[[str], None]) -> None:
        self._url = store.url
        self._name = name
        self._say = say
        self._running = {kind: self._start(kind, "--follow") for kind in kinds}

    def _start(self, kind: Kind, *arguments: str) -> WorkerProcess:
        return WorkerProcess(
            this_program("log", kind, "--name", self._name, *arguments), self._url, threads=1
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def look(self) -> None:
        """To be called now and then: says which have ended."""
        for kind, process in list(self._running.items()):
            if process.ended() is not None:
                self._lost(kind, process)

    def close(self) -> None:
        """Let them write the last trials and end; those that take too long are ended."""
        for process in self._running.values():
            if process.ended() is None:
                process.stop()
        deadline = time.monotonic() + LAST_SECONDS
        for kind, process in list(self._running.items()):
            code = _end_of(process, deadline)
            if code == -signal.SIGTERM:  # asked before it listened
                process.close()
                process = self._running[kind] = self._start(kind)
                code = _end_of(process, deadline)
            if code == 0:
                process.close()
                del self._running[kind]
            else:
                self._lost(kind, process)

    def _lost(self, kind: Kind, process: WorkerProcess) -> None:
        self._say(
            f"--log {kind} ended: {process.last_lines(2)} The experiment goes on; to write what is missing: "
            f"python -m study log {kind}"
        )
        process.close()
        del self._running[kind]


def _end_of(process: WorkerProcess, deadline: float) -> int | None:
    """Its exit code; None where it took too long and was ended."""
    while process.ended() is None:
        if time.monotonic() > deadline:
            process.kill()
            return None
        time.sleep(0.05)
    return process.ended()
