"""Optuna's samplers by name."""

from __future__ import annotations

import optuna

from study.stopping.pruners import quiet_about_experiments


def build_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of that name; every worker passes a seed of its own, or all suggest the same points."""
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "qmc":
        with quiet_about_experiments():
            return optuna.samplers.QMCSampler(
                scramble=True, seed=seed, warn_independent_sampling=False, warn_asynchronous_seeding=False
            )
    if name == "gp":
        with quiet_about_experiments():
            return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    raise ValueError(f"no sampler '{name}'")
