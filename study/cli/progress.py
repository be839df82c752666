"""Live progress: a display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.table import Table

from study.design.experiment import Experiment
from study.protocol.plan import describe_plan
from study.store.records import Count, counts
from study.store.store import Store
from vae.live import LiveDisplay

#: Seconds between two plain lines.
LINE_SECONDS = 10.0
#: Seconds between two looks at the database.
LOOK_SECONDS = 0.5


class Progress(LiveDisplay):
    """Shows trials, evaluations, the best loss and the time left of a running experiment; the arms that have ended
    stay in sight."""

    def __init__(self, console: Console, store: Store, experiment: Experiment) -> None:
        super().__init__(console)
        self._store = store
        self._name = experiment.name
        self._planned = sum(describe_plan(experiment).values())
        self._began = time.monotonic()
        self._looked = -LINE_SECONDS
        self._finished_before: int | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None and kind is None:
            self._show()
        super().__exit__(kind, error, trace)

    def update(self) -> None:
        """Look at the database and draw, if it is time to."""
        now = time.monotonic()
        due = LOOK_SECONDS if self._live is not None else LINE_SECONDS
        if now - self._looked >= due:
            self._looked = now
            self._show()

    def _show(self) -> None:
        parts = counts(self._store, self._name)
        finished = sum(part.finished for part in parts)
        running = sum(part.running for part in parts)
        waiting = sum(part.waiting for part in parts)
        if self._finished_before is None:
            self._finished_before = finished
        # The combined arm isn't planned from the start.
        total = max(self._planned, finished + running + waiting)
        left = self._left(finished, total, time.monotonic() - self._began)
        if self._live is not None:
            self._live.update(
                arms_table(parts, f"{self._name}: {finished} of {total} trials{left}", self._room)
            )
            return
        losses = [part.best_loss for part in parts if part.best_loss is not None]
        best = f", best loss {min(losses):.3f}" if losses else ""
        evaluations = sum(part.evaluations for part in parts)
        self._console.print(
            f"{finished} of {total} trials finished, {running} running, {waiting} waiting, "
            f"{evaluations} evaluations{best}{left}",
            soft_wrap=True,
        )

    @property
    def _room(self) -> int:
        """Rows of arms that the terminal has room for, beside the title, the heading and what else was printed."""
        return max(5, self._console.height - 6)

    def _left(self, finished: int, total: int, elapsed: float) -> str:
        done = finished - (self._finished_before or 0)
        if done < 3 or total <= finished:
            return ""
        seconds = (total - finished) * elapsed / done
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def arms_table(parts: list[Count], title: str, room: int) -> Table:
    """A row an arm, in order of creation: what it is at, trials finished and running, evaluations, best loss. Where
    there are more than `room`, those that have ended longest ago are left out and counted."""
    arms: dict[str, list[Count]] = {}
    for part in parts:
        arms.setdefault(part.arm, []).append(part)
    at_work = [arm for arm, own in arms.items() if any(part.running or part.waiting for part in own)]
    ended = [arm for arm in arms if arm not in at_work]
    shown = set([*at_work, *reversed(ended)][:room])
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("arm", "at"):
        table.add_column(column, overflow="fold")
    for column in ("trials", "running", "evaluations", "best loss"):
        table.add_column(column, justify="right", no_wrap=True)
    for arm in (arm for arm in arms if arm in shown):
        own = arms[arm]
        running = sum(part.running for part in own)
        phases = [part.phase for part in own if part.running]
        losses = [part.best_loss for part in own if part.best_loss is not None]
        table.add_row(
            arm,
            ", ".join(phases) or ("waiting" if arm in at_work else "done"),
            str(sum(part.finished for part in own)),
            str(running) if running else "",
            str(sum(part.evaluations for part in own)),
            f"{min(losses):.3f}" if losses else "",
        )
    if len(shown) < len(arms):
        table.add_row(f"and {len(arms) - len(shown)} more")
    return table
