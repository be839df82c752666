"""Adaptive capping of the tuning phase: as Optuna's pruner, and as a trial's rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from study.stopping.rules import REPORT_EVERY, Progress, Pruning
from study.terms import Outcome


class CappingPruner(BasePruner):
    """Adaptive capping (Hutter et al. 2009, ParamILS, section 3.2) on examples to target.

    A tuning trial that has seen more examples than the keep-th best hit of its arm and block needed, without a
    hit of its own, can't be among the best `keep` any more and is pruned. Those are exactly the best without
    capping, for points drawn beforehand: none of them is ever beyond its own examples to target.

    `grid` are the examples of each Optuna step: a trial at step i has seen at least grid[i] of them. `hit_of` gives
    the examples to target of a complete trial of the same arm and block; None for one that isn't a tuning trial's hit.
    """

    def __init__(
        self, grid: npt.NDArray[np.int64], hit_of: Callable[[FrozenTrial], float | None], keep: int = 1
    ) -> None:
        self._grid, self._hit_of, self._keep = grid, hit_of, keep

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        cap, step = self.cap(study), trial.last_step
        return cap is not None and step is not None and bool(self._grid[step] > cap)

    def cap(self, study: Study) -> float | None:
        """The keep-th fewest examples to target of the finished tuning trials; None: fewer hits yet."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        hits = sorted(hit for hit in map(self._hit_of, complete) if hit is not None)
        return float(hits[self._keep - 1]) if len(hits) >= self._keep else None


class Capping(Pruning):
    """Asks the capping pruner at every report, and at once where the cap that was known then is passed."""

    outcome = Outcome.CAPPED

    def __init__(
        self,
        report: Callable[[float, int], object],
        should_prune: Callable[[], bool],
        grid: npt.NDArray[np.int64],
        cap: Callable[[], float | None],
        every: int = REPORT_EVERY,
    ) -> None:
        """`cap()`: examples beyond which the trial can't win, as known now. It is asked at each report alone, for
        asking costs as much as some epochs of a small trial."""
        super().__init__(report, should_prune, every)
        self._grid, self._look = grid, cap
        self._cap = cap()

    def due(self, progress: Progress) -> bool:
        beyond = self._cap is not None and bool(self._grid[progress.number] > self._cap)
        return beyond or super().due(progress)

    def ends(self, progress: Progress) -> Outcome | None:
        due = self.due(progress)
        ended = super().ends(progress)
        if due and ended is None and not progress.over:
            self._cap = self._look()
        return ended
