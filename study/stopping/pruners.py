"""Optuna's pruners by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner


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
