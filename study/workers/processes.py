"""The launcher's worker processes: started, restarted when they die, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from study.store.owner import host_id
from study.store.store import Store
from vae.errors import FailureError

#: Environment of a launched worker. The URL travels here because a command line, and so a password in it,
#: is visible to every user of the machine.
STORAGE_VARIABLE = "VAE_STUDY_STORAGE"
PARENT_VARIABLE = "VAE_STUDY_PARENT"

#: Deaths in a row with no progress in between that end a launch. Deaths by SIGKILL come from outside (a
#: user, the kernel short of memory) and say less about the next try.
MAX_QUICK_DEATHS = 3
MAX_QUICK_KILLS = 20

#: Seconds that a worker gets to put its trial back before it is killed.
GRACE = 60.0

_LONGEST_DELAY = 10.0


#: Runs the program whose folder is the first argument.
_RUN = (
    "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root); "
    "from study.__main__ import main; main()"
)


def this_program(*arguments: str) -> list[str]:
    """The command line that runs the code that runs now: `python -m study` would take a study.py or vae.py in the
    working folder for ours."""
    return [sys.executable, "-P", "-c", _RUN, str(Path(__file__).resolve().parents[2]), *arguments]


@dataclass
class Signals:
    """The signals that a launcher has received."""

    received: int = 0
    #: A second signal breaks off what the launcher is doing: planning may take long.
    interrupt: bool = True

    def handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.received += 1
        if self.received > 1 and self.interrupt:
            raise KeyboardInterrupt


@dataclass
class Worker:
    """A started process and the file that its output goes to."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def last_lines(self, lines: int = 8) -> str:
        """The end of what it wrote, as one line."""
        self.output.seek(0)
        text = self.output.read().decode(errors="replace").strip()
        return " / ".join(line.strip() for line in text.splitlines()[-lines:]) or "it wrote nothing"


@dataclass
class Crew:
    """The launcher's processes: started, restarted, stopped."""

    store: Store
    name: str
    size: int
    threads: int
    command: list[str]
    extra_args: list[str] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    started: int = 0
    deaths: list[int] = field(default_factory=list)  # return codes since the last progress
    headway: tuple[int, ...] = ()
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

    def stop(self, signals: Signals) -> None:
        """End every worker: gracefully, at once after a second signal, and after GRACE seconds in any case."""
        patience = min(signals.received, 1)
        for worker in self.workers:
            worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while any(worker.process.poll() is None for worker in self.workers):
            if signals.received > patience or time.monotonic() > deadline:
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
        self.workers.append(Worker(process, output))

    def _bury(self, worker: Worker) -> None:
        with worker.output:
            # Workers here see that the process is gone; those on other machines need to be told.
            self.store.release_owner(f"{host_id()}:{worker.process.pid}")
            headway = self.store.headway(self.name)
            if headway != self.headway:
                self.headway = headway
                self.deaths.clear()
            self.deaths.append(worker.process.returncode)
            failures = [code for code in self.deaths if code != -signal.SIGKILL]
            if len(failures) >= MAX_QUICK_DEATHS or len(self.deaths) >= MAX_QUICK_KILLS:
                raise FailureError(
                    f"{len(self.deaths)} workers ended one after another without progress (the last with code"
                    f" {worker.process.returncode}). Its last lines: {worker.last_lines()}"
                )
            if len(self.deaths) > 1:
                delay = min(0.5 * 2 ** len(self.deaths), _LONGEST_DELAY)
                self.next_start = time.monotonic() + delay


@contextmanager
def counted_signals() -> Iterator[Signals]:
    """In this block SIGINT and SIGTERM are counted."""
    signals = Signals()
    before = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
