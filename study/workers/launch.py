"""The launcher: as many workers as there is work for, until everything is done."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from enum import StrEnum

from study.store.claims import release_owner
from study.store.outage import Outage, Patience
from study.store.owner import host_of
from study.store.records import headway, remaining
from study.store.store import Store
from study.workers.engine import REFUSED, Engine, EngineLost, Handle
from study.workers.processes import LocalEngine
from study.workers.signals import GRACE, Signals, counted_signals
from vae.errors import FailureError, UserError

#: Deaths in a row with no progress in between that end a launch. Deaths by SIGKILL come from outside (a
#: user, the kernel short of memory) and say less about the next try.
MAX_QUICK_DEATHS = 3
MAX_QUICK_KILLS = 20

_POLL = 0.3
_LONGEST_DELAY = 10.0


class Ended(StrEnum):
    """How a launch ended."""

    DONE = "done"
    STOPPED = "stopped"
    KILLED = "killed"

    @property
    def sentence(self) -> str:
        """What it means for the trials."""
        return {
            Ended.DONE: "Everything that was planned has been run.",
            Ended.STOPPED: "Stopped. Finished trials are kept, running ones were saved.",
            Ended.KILLED: "Stopped at once. Finished trials are kept; running ones were not saved now and go on from "
            "their last saved state, some ten seconds back, or from their start.",
        }[self]


StartWorker = Callable[[int], Handle]


def launch(
    store: Store,
    name: str,
    *,
    workers: int,
    threads: int,
    advance: Callable[[], bool],
    on_progress: Callable[[], None],
    engine: Engine | None = None,
    extra_args: Sequence[str] = (),
) -> Ended:
    """Keep `workers` processes busy with NAME until `advance()` says that everything is done.

    `advance` plans and enqueues what can be, and `on_progress` draws; both are called about every 0.3 s, and again
    where the database failed for a while in the middle of them.
    A worker is `study worker --name NAME --threads T --worker-seed I extra_args...` where `engine` runs it, by
    default as a process of this machine; I counts starts, so a restarted worker doesn't repeat its predecessor's
    random numbers.
    Must be called from the main thread: Ctrl-C or SIGTERM makes the workers put their trials back; a second one
    kills them. Raises FailureError where
    the database fails, EngineLost where the engine does, and, with a worker's last lines, UserError where one refuses
    to take part and FailureError where workers die again and again without progress.
    """
    place = engine or LocalEngine(store.url, threads)

    def start(index: int) -> Handle:
        return place.start(
            ["--name", name, "--threads", str(threads), "--worker-seed", str(index), *extra_args]
        )

    running = Workers(store, name, workers, start)
    patience = Patience(store.disconnect)
    done = False
    with counted_signals() as signals:
        try:
            while not signals.received:
                try:
                    with store.database.explained():
                        done = advance()
                        if done:
                            break
                        running.replace_ended()
                        on_progress()
                    patience.answered()
                except Outage as outage:
                    patience.wait(outage)
                time.sleep(_POLL)
        except KeyboardInterrupt:
            done = False
        finally:
            signals.interrupt = False
            killed = running.stop(signals)
    return Ended.DONE if done else Ended.KILLED if killed else Ended.STOPPED


class Workers:
    """The workers of one launch; `start(i)` gives the i-th. Counts those that end without progress."""

    def __init__(self, store: Store, name: str, size: int, start: StartWorker) -> None:
        self._store = store
        self._name = name
        self._size = size
        self._start = start
        self._running: list[Handle] = []
        self._n_started = 0
        self._deaths: list[int] = []  # exit codes since the last progress
        self._headway: tuple[int, ...] = ()
        self._next_start = 0.0

    def replace_ended(self) -> None:
        """Let go of workers that have ended, and start as many as there is work for.

        Raises UserError where one refuses to take part, as it does where its data differ, and FailureError where they
        end again and again without progress, each with the last lines of one.
        """
        for worker in list(self._running):
            code = worker.ended()
            if code is not None:
                self._count_death(worker, code)
        if len(self._running) < self._size and time.monotonic() >= self._next_start:
            wanted = min(self._size, remaining(self._store, self._name))
            while len(self._running) < wanted:
                self._running.append(self._start(self._n_started))
                self._n_started += 1

    def stop(self, signals: Signals) -> bool:
        """End every worker: gracefully, at once after a second signal, and after GRACE seconds in any case. Whether
        any had to be killed. Those of an engine that is lost end by themselves."""
        try:
            return self._stop(signals)
        except EngineLost:
            return False
        finally:
            self._running.clear()

    def _stop(self, signals: Signals) -> bool:
        killed = False
        patience = min(signals.received, 1)
        for worker in self._running:
            worker.stop()
        deadline = time.monotonic() + GRACE
        while any(worker.ended() is None for worker in self._running):
            if signals.received > patience or time.monotonic() > deadline:
                killed = True
                for worker in self._running:
                    worker.kill()
            time.sleep(0.02)
        for worker in self._running:
            worker.close()
        return killed

    def _count_death(self, worker: Handle, code: int) -> None:
        # Workers here see that the process is gone; those on other machines need to be told.
        if worker.owner:
            release_owner(self._store, worker.owner)
        before, self._headway = self._headway, headway(self._store, self._name)
        self._running.remove(worker)
        if self._headway != before:
            self._deaths.clear()
        self._deaths.append(code)
        last_lines = worker.last_lines()
        worker.close()
        if code == REFUSED:
            where = f" on {host_of(worker.owner)}" if worker.owner else ""
            raise UserError(f"A worker{where} can't take part: {last_lines.rpartition('Error: ')[2]}")
        failures = [code for code in self._deaths if code != -signal.SIGKILL]
        if len(failures) >= MAX_QUICK_DEATHS or len(self._deaths) >= MAX_QUICK_KILLS:
            raise FailureError(
                f"{len(self._deaths)} workers ended one after another without progress (the last with code"
                f" {code}). Its last lines: {last_lines}"
            )
        if len(self._deaths) > 1:
            self._next_start = time.monotonic() + min(0.5 * 2 ** len(self._deaths), _LONGEST_DELAY)
