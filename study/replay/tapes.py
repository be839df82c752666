"""Recorded curves made ready to be played again: complete ones alone, all on one grid of numbered evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from study.curves.recorded import Curves, Ended, Recorded
from study.statistics.curves import Array
from vae.errors import UserError

#: With fewer runs there is nothing to choose from.
FEWEST_RUNS = 5
FEWEST_EVALUATIONS = 3
#: How a set of complete curves is recorded.
RECORD = (
    "Record complete curves: `python -m study search --pruner none`, or `compare --run-to-budget` for "
    "confirmation runs."
)


@dataclass(frozen=True, eq=False)
class Tape:
    """One complete run: its m evaluations in order, each at the first step at or past a grid point."""

    name: str
    numbers: tuple[int, ...]
    """(m,) rising: which grid point."""
    clock: Array
    """(m,) examples, steps or epochs."""
    values: tuple[float, ...]
    """(m,) lower is better."""
    seconds: Array
    """(m,) since the run's start; the clock itself where no seconds were recorded."""
    diverged: bool = False
    """It broke down at its last evaluation, by itself."""
    schedule: str = ""
    """Its learning-rate schedule, where that is known."""

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def final(self) -> float:
        """`best_after` all of them."""
        return self.best_after(len(self))

    def best_after(self, evaluations: int) -> float:
        """The lowest finite value of the first evaluations; infinite without one, and once it has broken down: such a
        run is nobody's choice, whatever it had reached."""
        if self.diverged and evaluations >= len(self):
            return float("inf")
        return min((v for v in self.values[:evaluations] if np.isfinite(v)), default=float("inf"))

    @property
    def has_horizon(self) -> bool:
        """Whether its learning rate is planned to fall by a horizon: its loss is bought late."""
        return self.schedule not in ("", "constant")


@dataclass(frozen=True, eq=False)
class Tapes:
    """Complete runs on one grid."""

    runs: Sequence[Tape]
    grid: npt.NDArray[np.float64]
    """Clock at each grid number, from number 0 on."""
    every: int
    """Grid numbers between two reports to a pruner."""
    clock: str
    """What the clock counts, a plural."""
    timed: bool
    """Whether seconds were recorded in all runs; else the clock stands in for them."""
    failed: int = 0
    """Runs without a single evaluation, which are left out."""
    maximise: bool = False
    """Whether higher is better as it was recorded: values here are the negated ones."""

    @property
    def n_points(self) -> int:
        """Length of the grid, as pruners are told it."""
        return len(self.grid)

    @cached_property
    def finals(self) -> Array:
        """(n,) the lowest value of each run; infinite for one that broke down."""
        return np.array([run.final for run in self.runs])

    @cached_property
    def best(self) -> int:
        """The run with the lowest value, the first of equals."""
        return int(np.argmin(self.finals))

    def shown(self, value: float) -> float:
        """A value as it was recorded."""
        return -value if self.maximise else value

    @cached_property
    def median(self) -> float:
        """The median of the runs' lowest values, without the runs that have none."""
        return float(np.median(self.finals[np.isfinite(self.finals)]))

    @cached_property
    def gap(self) -> float:
        """How far the median run is from the best: what regrets are compared with."""
        return self.median - float(self.finals[self.best])

    def number_at(self, share: float) -> int:
        """The first grid number at or past that share of the whole clock; neither before the first nor the last."""
        found = int(np.searchsorted(self.grid, share * self.grid[-1]))
        return max(1, min(self.n_points - 1, found))


def to_tapes(
    curves: Curves,
    *,
    grid: npt.NDArray[np.float64] | None = None,
    every: int = 1,
    schedules: Sequence[str] = (),
) -> Tapes:
    """The runs, each evaluation numbered by the last grid point that it has passed.

    `grid` is a study's own, whose numbers begin at 0; without one it is the clock of the run with the fewest
    evaluations, whose numbers begin at 1, and of several evaluations between two grid points the first counts.
    `schedules` are the runs' learning-rate schedules, in their order. Raises UserError for runs that were cut short,
    and for too few."""
    kept = [(run, schedule) for run, schedule in _with_schedules(curves, schedules) if len(run)]
    runs = [run for run, _ in kept]
    _require_complete(runs)
    if grid is None:
        shortest = min((run for run in runs if run.ended is not Ended.DIVERGED), key=len, default=None)
        if shortest is None or len(shortest) < FEWEST_EVALUATIONS:
            raise UserError(
                f"A replay needs curves of at least {FEWEST_EVALUATIONS} evaluations; the shortest has "
                f"{0 if shortest is None else len(shortest)}."
            )
        # Number 0 is before the first evaluation, so the first is number 1, as an epoch is counted.
        grid = np.concatenate([[0.0], shortest.clock])
    if len(runs) < FEWEST_RUNS:
        raise UserError(f"A replay needs at least {FEWEST_RUNS} runs to choose from; there are {len(runs)}.")
    timed = all(run.seconds is not None for run in runs)
    tapes = [_tape(run, grid, timed, schedule) for run, schedule in kept]
    made = Tapes(tapes, grid, every, curves.clock, timed, len(curves) - len(runs), curves.maximise)
    if not np.isfinite(made.finals.min()):
        raise UserError("Every run broke down or has no finite value: there is nothing to choose from.")
    return made


def _with_schedules(curves: Curves, schedules: Sequence[str]) -> list[tuple[Recorded, str]]:
    return list(zip(curves, schedules or [""] * len(curves), strict=True))


def _tape(run: Recorded, grid: npt.NDArray[np.float64], timed: bool, schedule: str) -> Tape:
    passed = np.searchsorted(grid, run.clock, side="right") - 1
    # The first evaluation past each grid point; those before the first point have none.
    first = np.unique(passed, return_index=True)[1]
    first = first[passed[first] >= (0 if grid[0] > 0.0 else 1)]
    seconds = run.seconds if timed and run.seconds is not None else run.clock
    return Tape(
        name=f"{run.arm}, {run.label}",
        numbers=tuple(int(number) for number in passed[first]),
        clock=run.clock[first],
        values=tuple(float(value) for value in run.value[first]),
        seconds=np.asarray(seconds[first], dtype=np.float64),
        diverged=run.ended is Ended.DIVERGED,
        schedule=schedule,
    )


def _require_complete(runs: Sequence[Recorded]) -> None:
    cut = [run for run in runs if not run.is_complete]
    if cut:
        first = cut[0]
        raise UserError(
            f"{len(cut)} of {len(runs)} runs were cut short, such as {first.arm}, {first.label} ({first.ended}: it "
            f"{first.ended.sentence}): what they would have become is not known. {RECORD}"
        )
    complete = [run for run in runs if run.ended is not Ended.DIVERGED]
    end = max((run.end for run in complete), default=0.0)
    for run in complete:
        # A coarse clock may end within a cell of the end.
        cell = run.clock[-1] - run.clock[-2] if len(run) > 1 else 0.0
        if run.end + cell <= end * (1.0 - 1e-9):
            raise UserError(
                f"{run.arm}, {run.label} ends at {run.end:g} and others at {end:g}: was it stopped early? What it "
                f"would have become is not known. {RECORD}"
            )
