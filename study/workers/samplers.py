"""Optuna's samplers by name."""

from __future__ import annotations

import numpy as np
import optuna

from study.stopping.pruners import quiet_about_experiments


def build_sampler(name: str, seed: int, worker: int, begun: int) -> optuna.samplers.BaseSampler:
    """The sampler of that name for a search of that seed. Every worker has a number of its own, or all suggest the same
    points; `begun` counts the trials so far, or a search that goes on suggests its first points again."""
    fresh, steady = (
        int(np.random.SeedSequence(entropy).generate_state(1)[0])
        for entropy in ([seed, worker, begun], [seed, worker])
    )
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=fresh)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=fresh)
    if name == "qmc":
        with quiet_about_experiments():
            return optuna.samplers.QMCSampler(
                scramble=True,
                # Its sequence goes on by a count in the database, which is known by this seed.
                seed=steady,
                independent_sampler=optuna.samplers.RandomSampler(seed=fresh),
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )
    if name == "gp":
        with quiet_about_experiments():
            return optuna.samplers.GPSampler(seed=fresh, warn_independent_sampling=False)
    raise ValueError(f"no sampler '{name}'")
