"""The throughput factor: examples per second of each arm, timed apart and interleaved with the baseline."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from study.store import records
from study.store.store import Store
from vae.data.dataset import Dataset
from vae.recipe import Recipe
from vae.training import Training, train

#: Interleaved pairs per arm.
PAIRS = 10
#: Steps before the clock starts, beyond the first: caches, allocator and frequency settle.
WARM_UP_STEPS = 3


def time_arms(
    store: Store,
    name: str,
    data: Dataset,
    recipes: dict[str, Recipe],
    *,
    tau: int,
    device: torch.device,
    slice_seconds: float,
    on_arm: Callable[[str], None],
) -> None:
    """Time each arm that has no timing yet against the baseline: A B A B, PAIRS slices of about
    slice_seconds each, in this process at its number of threads. Nothing else should run meanwhile.

    `recipes` maps arm -> recipe and holds "baseline". The first step's excess over a later one is the cold
    start: compilation above all.
    """
    timed = records.throughput(store, name)
    done = {arm for arm, part in timed.groupby("arm") if len(part) >= PAIRS}
    for arm, recipe in recipes.items():
        if arm == "baseline" or arm in done:
            continue
        on_arm(arm)
        baseline, _, baseline_steps = _warm(recipes["baseline"], data, tau, device, slice_seconds)
        training, cold, steps = _warm(recipe, data, tau, device, slice_seconds)
        for pair in range(PAIRS):
            # Who goes first alternates, so that a steady drift favours neither.
            order = [(training, steps), (baseline, baseline_steps)]
            speeds = {}
            for run, n in order if pair % 2 else reversed(order):
                speeds[run] = n * run.batch_size / run.advance(n)
            records.add_throughput(
                store,
                name,
                arm,
                pair,
                examples_per_second=speeds[training],
                baseline_examples_per_second=speeds[baseline],
                cold_start_seconds=cold,
            )


def _warm(
    recipe: Recipe, data: Dataset, tau: int, device: torch.device, slice_seconds: float
) -> tuple[Training, float, int]:
    """A training past its first steps, its cold start in seconds, and the steps that fill a slice."""
    training = train(recipe, data, tau, device)
    first = training.advance(1)
    began = time.perf_counter()
    training.advance(WARM_UP_STEPS)
    step = (time.perf_counter() - began) / WARM_UP_STEPS
    return training, max(0.0, first - step), max(1, round(slice_seconds / step))
