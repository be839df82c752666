"""Numbers as text, one way everywhere: the terminal, the report, the dashboard's notes."""

from __future__ import annotations

import math

from study.analysis.arm import Measure
from study.statistics.speed_up import Estimate

#: Stands where there is no number.
DASH = "–"


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


def ratio_of(estimate: Estimate | None) -> str:
    """An estimate's ratio with its interval; a dash without an estimate."""
    return DASH if estimate is None else ratio(estimate.ratio, estimate.low, estimate.high)
