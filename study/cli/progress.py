"""Live progress: a display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from study.design.experiment import Experiment
from study.place import Place
from study.protocol.plan import describe_plan
from study.store.records import counts
from study.store.store import Store
from vae.data.dataset import Dataset

#: Seconds between two plain lines.
LINE_SECONDS = 10.0
#: Seconds between two looks at the database.
LOOK_SECONDS = 0.5


class Progress:
    """Shows trials, evaluations, the best loss and the time left of a running experiment."""

    def __init__(self, console: Console, store: Store, experiment: Experiment) -> None:
        self._console = console
        self._store = store
        self._experiment = experiment
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        )
        self._began = time.monotonic()
        self._shown = self._looked = -LINE_SECONDS
        self._finished_before: int | None = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self) -> None:
        """Look at the database and draw, if it is time to."""
        now = time.monotonic()
        due = LOOK_SECONDS if self._live is not None else LINE_SECONDS
        if now - self._looked < due:
            return
        self._looked = now
        parts = counts(self._store, self._experiment.name)
        finished = sum(c.finished for c in parts)
        if self._finished_before is None:
            self._finished_before = finished
        left = self._left(finished, now - self._began)
        if self._live is not None:
            table = Table(title=f"{self._experiment.name}{left}", title_justify="left")
            for column in ("arm", "phase", "finished", "running", "waiting", "evaluations", "best loss"):
                table.add_column(column, justify="left" if column in ("arm", "phase") else "right")
            active = [c for c in parts if c.running or c.waiting] or parts[-3:]
            for c in active[:20]:
                best = "" if c.best_loss is None else f"{c.best_loss:.3f}"
                cells = (c.finished, c.running, c.waiting, c.evaluations)
                table.add_row(c.arm, c.phase, *map(str, cells), best)
            self._live.update(table)
            return
        running = sum(c.running for c in parts)
        waiting = sum(c.waiting for c in parts)
        losses = [c.best_loss for c in parts if c.best_loss is not None]
        best = f", best loss {min(losses):.3f}" if losses else ""
        evaluations = sum(c.evaluations for c in parts)
        self._console.print(
            f"{finished} trials finished, {running} running, {waiting} waiting, {evaluations} evaluations{best}{left}",
            soft_wrap=True,
        )

    def _left(self, finished: int, elapsed: float) -> str:
        done = finished - (self._finished_before or 0)
        total = sum(describe_plan(self._experiment).values())
        if done < 3 or total <= finished:
            return ""
        seconds = (total - finished) * elapsed / done
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def estimated_minutes(experiment: Experiment, data: Dataset, place: Place) -> float:
    """A first guess of the wall time: every planned trial to tau, from a few timed steps of the baseline."""
    import torch

    from vae.devices import pick_device
    from vae.training import train

    torch.set_num_threads(place.threads)
    tau = experiment.workload(len(data.train)).tau
    training = train(experiment.recipe, data, tau, pick_device(place.device))
    training.advance(2)
    began = time.perf_counter()
    training.advance(5)
    step = (time.perf_counter() - began) / 5
    trials = sum(describe_plan(experiment).values())
    # Evaluations cost about as much again on small data, and capping saves about as much.
    return trials * tau / training.batch_size * step / place.workers / 60
