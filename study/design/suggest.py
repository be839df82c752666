"""Search spaces as Optuna samples them."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from study.design.space import Dimension, Space, resolve
from vae.recipe import Recipe


def distribution(field: str, dimension: Dimension) -> BaseDistribution:
    """The Optuna distribution of a dimension for a recipe field."""
    if dimension.choices is not None:
        return CategoricalDistribution(dimension.stored_choices)
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.whole(field):
        return IntDistribution(round(dimension.low), round(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def suggest(trial: optuna.Trial, space: Space, base: Recipe) -> Recipe:
    """The base recipe with each field of the space suggested by the trial. Raises UserError.

    `horizon` is asked for last, and only where the schedule has one."""
    params: dict[str, Any] = {}
    for field, dimension in sorted(space.items(), key=lambda item: item[0] == "horizon"):
        if field == "horizon" and params.get("lr_schedule", base.lr_schedule) == "constant":
            continue
        params[field] = _ask(trial, field, distribution(field, dimension))
    return resolve(params, base)


def _ask(trial: optuna.Trial, field: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(field, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(field, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(field, distribution.low, distribution.high, log=distribution.log)
