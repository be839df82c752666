"""Optuna pruners by name, and the capping pruner of the tuning phase."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


def build_pruner(name: str, n_points: int) -> BasePruner:
    """The pruner of that name for curves of n_points grid points (an Optuna step is a grid point's number)."""
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=n_points // 4)
    if name == "percentile":
        return optuna.pruners.PercentilePruner(25.0, n_startup_trials=5, n_warmup_steps=n_points // 4)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, n_points // 8))
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, n_points // 8), max_resource=n_points)
    if name == "patient":
        with quiet_about_experiments():
            return optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(n_startup_trials=5), patience=5)
    raise ValueError(f"no pruner '{name}'")


@contextmanager
def quiet_about_experiments() -> Iterator[None]:
    """Optuna warns that some samplers and pruners may change; the versions we name are tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


class CappingPruner(BasePruner):
    """Adaptive capping (Hutter et al. 2009, ParamILS, section 3.2) on examples to target.

    A tuning trial that has seen more examples than the keep-th best hit of its arm and block needed, without a
    hit of its own, can't be among the best `keep` any more and is pruned. Those are exactly the best without
    capping, for points drawn beforehand: none of them is ever beyond its own examples to target.

    `grid` are the examples of each Optuna step: a trial at step i has seen at least grid[i] of them. The
    trial attributes read are phase, block and examples_to_target (set on a hit only).
    """

    def __init__(self, grid: npt.NDArray[np.int64], keep: int = 1) -> None:
        self._grid, self._keep = grid, keep

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        cap, step = self.cap(study, trial.user_attrs["block"]), trial.last_step
        return cap is not None and step is not None and bool(self._grid[step] > cap)

    def cap(self, study: Study, block: int) -> float | None:
        """The keep-th fewest examples to target of the block's finished tuning trials; None: fewer hits yet."""
        hits = [
            float(other.user_attrs["examples_to_target"])
            for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if "examples_to_target" in other.user_attrs
            and other.user_attrs.get("phase") == "tune"
            and other.user_attrs.get("block") == block
        ]
        return sorted(hits)[self._keep - 1] if len(hits) >= self._keep else None
