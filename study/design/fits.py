"""What doesn't fit the data is refused before anything is trained: batches and budgets."""

from __future__ import annotations

import math
from collections.abc import Iterator

from study.design.experiment import Experiment
from study.design.space import Space
from vae.errors import UserError
from vae.recipe import Recipe


def require_batches(experiment: Experiment, stored: Experiment | None, n_train: int, source: str) -> None:
    """No batch, given or searched, is larger than the data. What an earlier run has stored goes on as it is.

    Raises UserError with the place, the batch and the way out."""
    for place, batch, way_out in _batches(experiment, stored, n_train):
        if batch > n_train:
            raise UserError(
                f"{source}: {place}: batch_size {batch:g} is more than the {n_train} training examples of "
                f"{experiment.data}: {way_out}."
            )


def require_evaluation(experiment: Experiment, n_train: int, source: str) -> None:
    """The baseline is evaluated in time to have a target: its first step ends where a target is looked for.

    Raises UserError with the smallest budget that does."""
    if not experiment.arms:
        return
    batch, workload = experiment.recipe.batch(n_train), experiment.workload(n_train)
    share = experiment.target_at if experiment.target is None else 1.0
    if batch <= share * workload.tau:
        return
    where = f"the first {share:.0%} of it, where the target is looked for" if share < 1 else "it"
    enough = math.ceil(1000 * batch / share / n_train) / 1000
    raise UserError(
        f"{source}: budget = {experiment.budget:g} is {workload.tau} examples, and one batch of {batch} doesn't fit "
        f"into {where}: give at least {enough:g} epochs, or a smaller batch_size."
    )


def _batches(
    experiment: Experiment, stored: Experiment | None, n_train: int
) -> Iterator[tuple[str, float, str]]:
    """(where, the largest batch there, the way out)."""

    def of(recipe: Recipe) -> int:
        return recipe.batch(n_train)

    yield "recipe", of(experiment.recipe), f"use at most {n_train}, or batch_size full"
    for arm in experiment.arms:
        if stored is None or arm not in stored.arms:
            yield f"arm '{arm}'", of(experiment.base_recipe(arm)), "leave it out of --arms"
            yield f"techniques.{arm}", _largest(experiment.knobs(arm)), f"let it end at {n_train}"
    if stored is None or not stored.arms:
        yield "space", _largest(experiment.space), f"let it end at {n_train}"
    if experiment.search.trials and (stored is None or not stored.search.trials):
        yield "search.space", _largest(experiment.search.space), f"let it end at {n_train}"


def _largest(space: Space) -> float:
    """The largest batch of a space; 0 where it has none."""
    dimension = space.get("batch_size")
    if dimension is None:
        return 0
    ends = dimension.choices if dimension.choices is not None else (dimension.high,)
    return max((float(end) for end in ends if isinstance(end, int | float)), default=0)
