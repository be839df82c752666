"""Examples per second: of each arm, timed apart and interleaved with the baseline, and of a plan as a whole."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import torch

from study.design.experiment import Experiment
from study.protocol.plan import describe_plan
from study.store import records
from study.store.store import Store
from study.terms import BASELINE
from vae.data.dataset import Dataset
from vae.errors import UserError
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
    say: Callable[[str], None],
) -> None:
    """Time each arm that has no timing yet against the baseline: A B A B, PAIRS slices of about
    slice_seconds each, in this process at its number of threads. Nothing else should run meanwhile.

    `recipes` maps arm -> recipe; without a baseline nothing can be timed. The first step's excess over a later one
    is the cold start: compilation above all. An arm that can't be trained here is said and left out.
    """
    if BASELINE not in recipes:
        say("no arm is timed: the baseline has no confirmation run that could be trained")
        return
    timed = records.throughput(store, name)
    done = {arm for arm, pairs in Counter(timing.arm for timing in timed).items() if pairs >= PAIRS}
    for arm, recipe in recipes.items():
        if arm == BASELINE or arm in done:
            continue
        say(f"timing {arm} against the baseline")
        try:
            baseline, _, baseline_steps = _warm(recipes[BASELINE], data, tau, device, slice_seconds)
            training, cold, steps = _warm(recipe, data, tau, device, slice_seconds)
        except (UserError, RuntimeError, MemoryError) as error:
            say(f"{arm} is not timed: {' '.join(str(error).split())[:200]}")
            continue
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


def estimated_minutes(
    experiment: Experiment, data: Dataset, device: torch.device, *, at_once: int, threads: int
) -> float:
    """A first guess of the wall time: every planned trial to tau, `at_once` of them at a time, from a
    few timed steps of the baseline."""
    torch.set_num_threads(threads)
    tau = experiment.workload(len(data.train)).tau
    training = train(experiment.recipe, data, tau, device)
    training.advance(2)
    began = time.perf_counter()
    training.advance(5)
    step = (time.perf_counter() - began) / 5
    trials = sum(describe_plan(experiment).values())
    # Evaluations cost about as much again on small data, and capping saves about as much.
    return trials * tau / training.batch_size * step / at_once / 60


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
