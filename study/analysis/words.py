"""Numbers and recipes as text, one way everywhere: the terminal, the report, the dashboard's notes."""

from __future__ import annotations

import math

from study.analysis.arm import ArmResult, Measure
from study.statistics.speed_up import Estimate
from vae.recipe import Recipe

#: Stands where there is no number.
DASH = "–"
#: Before the bound of an arm whose misses leave no more to say.
AT_MOST = "at most"


def number(value: float | None, form: str = ".4g") -> str:
    """A number; a dash where there is none."""
    if value is None or math.isnan(value):
        return DASH
    return "∞" if math.isinf(value) else f"{value:{form}}"


def p_value(p: float | None) -> str:
    """A p-value; a dash where there is none."""
    return "< 0.001" if p is not None and p < 0.001 else number(p, ".3f")


def ratio(value: float, low: float, high: float) -> str:
    """A ratio with its interval, e.g. "1.42x [1.28, 1.59]"; a dash without a value."""
    if math.isnan(value):
        return DASH
    interval = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else " [no interval]"
    return f"{value:.2f}x{interval}"


def speed_up_of(measure: Measure | None) -> str:
    """A measure's ratio with the interval that is shown; a dash without a measure."""
    return DASH if measure is None else ratio(measure.ratio, *measure.shown)


def examples_of(arm: ArmResult) -> str:
    """An arm's speed-up in examples with the interval that is shown; or what it is at most, where misses leave no more
    to say."""
    measure = arm.examples
    if measure is None or measure.known or not measure.verdict.missed or arm.at_most is None:
        return speed_up_of(measure)
    return f"{AT_MOST} {arm.at_most:.2f}x"


def ratio_of(estimate: Estimate | None) -> str:
    """An estimate's ratio with its interval; a dash without an estimate."""
    return DASH if estimate is None else ratio(estimate.ratio, estimate.low, estimate.high)


def changes(recipe: Recipe | None, base: Recipe) -> str:
    """What a recipe sets differently from the experiment's baseline recipe: "lr 0.0041, optimizer muon"."""
    if recipe is None:
        return ""
    found = [f"{key} {brief(value)}" for key, value in recipe.changes(base).items() if key != "seed"]
    return ", ".join(found) or "as the baseline before tuning"


def brief(value: object) -> str:
    """A recipe's value in few characters."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "-".join(str(part) for part in value)
    return str(value)
