"""How a launcher and its workers are asked to stop: by signals, and by the launcher's death."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

#: Environment of a launched worker: its launcher's process id.
PARENT_VARIABLE = "VAE_STUDY_PARENT"

#: What asks a worker to end. SIGUSR1 is how Slurm tells a job that its time is nearly over.
_ASKING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))

#: Seconds that a worker gets to put its trial back before it is killed.
GRACE = 60.0

_POLL = 0.5


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


@contextmanager
def counted_signals() -> Iterator[Signals]:
    """In this block SIGINT and SIGTERM are counted, also where the parent process had them ignored."""
    signals = Signals()
    before = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_on_signals() -> threading.Event:
    """For a worker's process: an event set by SIGINT, SIGTERM, SIGUSR1 or the launcher's death.

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

    for number in _ASKING:
        signal.signal(number, handle)
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        end_with_parent(int(parent), stop)
    return stop


def end_with_parent(parent: int, stop: threading.Event | None = None) -> None:
    """From now on this process ends once process `parent`, which started it, is gone, however that ended.

    With `stop` it is asked to first, and has GRACE seconds for it.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL)
        if stop is not None:
            stop.set()
            time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
