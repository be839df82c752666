"""Workers as processes of this machine: started, watched, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from study.store.owner import host_id
from study.terms import STORAGE_VARIABLE
from study.workers.engine import end_of
from study.workers.signals import PARENT_VARIABLE

#: Runs the program whose folder is the first argument.
_RUN = (
    "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root); "
    "from study.__main__ import main; main()"
)


def this_program(*arguments: str) -> list[str]:
    """The command line that runs the code that runs now: `python -m study` would take a study.py or vae.py in the
    working folder for ours."""
    return [sys.executable, "-P", "-c", _RUN, str(Path(__file__).resolve().parents[2]), *arguments]


class LocalEngine:
    """Each worker is a process of this machine: `program arguments...`, by default this program's `worker`."""

    def __init__(self, url: str, threads: int, program: Sequence[str] | None = None) -> None:
        self._url = url
        self._threads = threads
        self._program = program or this_program("worker")

    def start(self, arguments: Sequence[str]) -> WorkerProcess:
        """Start a worker."""
        return WorkerProcess([*self._program, *arguments], self._url, self._threads)


class WorkerProcess:
    """A started process of `command`, and the file that its output goes to: a Handle of this machine."""

    def __init__(self, command: Sequence[str], url: str, threads: int) -> None:
        # The URL travels in the environment: a command line, and so a password in it, is visible to every user of
        # the machine.
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
            "PYTHONFAULTHANDLER": "1",
            STORAGE_VARIABLE: url,
            PARENT_VARIABLE: str(os.getpid()),
        }
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - `close` does
        # A session of its own: Ctrl-C in the terminal reaches the launcher alone, which passes it on.
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def owner(self) -> str:
        """The start of the owner of its leases, which is enough to end them."""
        return f"{host_id()}:{self._process.pid}"

    def ended(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to put its trial back and end."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def last_lines(self, lines: int = 8) -> str:
        """The end of what it wrote, as one line."""
        self._output.seek(0)
        return end_of(self._output.read().decode(errors="replace"), lines)

    def close(self) -> None:
        """Forget what it wrote."""
        self._output.close()
