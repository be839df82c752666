"""Rules that end a trial before its budget does: each is one object with one method, asked at every evaluation.

The same objects decide live, where Optuna's study is asked, and over recorded curves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from study.terms import Outcome

#: Ends after which Optuna's samplers and pruners don't take the last loss for a result.
CUT = frozenset({Outcome.PRUNED, Outcome.CAPPED, Outcome.DIVERGED})

#: Optuna gets a report at every tenth grid point; the curve table has every point.
REPORT_EVERY = 10


@dataclass
class Progress:
    """A trial as far as it has come; numbers are grid points, losses validation losses."""

    number: int = -1
    """Of the last evaluation."""
    previous: int = 0
    """Of the evaluation before it; 0 at the first."""
    first: int = 0
    """Of the first evaluation: a long first step passes several grid points."""
    valid_loss: float = math.nan
    best: float = math.inf
    """Lowest finite loss; infinite before one."""
    best_number: int = -1
    over: bool = False
    """The training has ended with this evaluation."""
    min_delta: float = 0.0
    """By how much a loss must be lower than the last better one to count as better, for patience."""
    better: float = math.inf
    """The last loss that counted as better; the lowest one where min_delta is 0."""
    better_number: int = -1

    def add(self, number: int, valid_loss: float, over: bool = False) -> bool:
        """Take in the next evaluation; whether its loss is the lowest so far."""
        if self.number < 0:
            self.first = number
        else:
            self.previous = self.number
        self.number, self.valid_loss, self.over = number, valid_loss, over
        if valid_loss < self.better - self.min_delta:
            self.better, self.better_number = valid_loss, number
        if not valid_loss < self.best:  # NaN is lower than nothing
            return False
        self.best, self.best_number = valid_loss, number
        return True

    @property
    def since_better(self) -> int:
        """Grid points since a loss that counted as better, or since the first evaluation where none is finite."""
        return self.number - (self.first if self.better_number < 0 else self.better_number)


class Rule(Protocol):
    """One reason for which a trial ends."""

    def ends(self, progress: Progress) -> Outcome | None:
        """How the trial ends with the last evaluation; None: it goes on. Asked once an evaluation, in order."""


@dataclass(frozen=True)
class Target:
    """The trial ends at the first loss at or below the target."""

    loss: float

    def ends(self, progress: Progress) -> Outcome | None:
        return Outcome.HIT if progress.valid_loss <= self.loss else None


@dataclass(frozen=True)
class Patience:
    """The trial ends so many grid points after its last better loss."""

    points: int

    def ends(self, progress: Progress) -> Outcome | None:
        if progress.over:  # nothing is saved any more, and a collapse is the training's to say
            return None
        return Outcome.STOPPED if progress.since_better >= self.points else None


@dataclass(frozen=True)
class Until:
    """The trial ends at the first evaluation at or past a grid point."""

    number: int

    def ends(self, progress: Progress) -> Outcome | None:
        return Outcome.MEASURED if progress.number >= self.number else None


class Pruning:
    """Reports the loss at the first evaluation at or past every tenth grid point, say, and asks a pruner there."""

    outcome = Outcome.PRUNED

    def __init__(
        self,
        report: Callable[[float, int], object],
        should_prune: Callable[[], bool] | None,
        every: int = REPORT_EVERY,
    ) -> None:
        """`report(loss, number)` and `should_prune()` are a trial's of Optuna; without the latter it only reports."""
        self._report = report
        self._should_prune = should_prune
        self._every = every

    def due(self, progress: Progress) -> bool:
        """Whether this evaluation is reported."""
        return progress.number // self._every > progress.previous // self._every

    def ends(self, progress: Progress) -> Outcome | None:
        if not self.due(progress):
            return None
        self._report(progress.valid_loss, progress.number)
        if progress.over or self._should_prune is None:
            return None
        return self.outcome if self._should_prune() else None
