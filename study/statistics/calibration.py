"""Calibration: the target and what tuning aims at, from the baseline's curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from study.statistics.curves import Curve, targets_reached

#: Above this coefficient of variation of E over the calibration seeds, the target lies on a plateau.
PLATEAU_SPREAD = 0.15
#: How far below the target tuning aims, in standard deviations over seeds of the calibration runs' loss: about
#: one fresh seed in forty is that much worse than the one that a point was tuned on.
TUNING_HEADROOM = 2.0


@dataclass(frozen=True)
class Calibration:
    """The target and how well it sits on the baseline's curves."""

    target: float  # nats per example
    tuning_target: float  # nats per example, at or below the target: what tuning aims at
    raised: bool  # more seeds than may missed the median target, and it was raised
    slope: float  # nats per doubling of examples round E; negative where the loss falls; NaN if unknown
    examples: tuple[float, ...]  # E of each seed at the target, NaN on a miss
    hits: int  # seeds that reach the target
    diverged: int  # seeds that diverged: they set no target and raise none
    spread: float  # coefficient of variation of E (sd, ddof 1, over mean) over the hits; NaN below two
    plateau: bool  # spread above 15 %: a small change of loss is a large change of E


def calibrate_target(
    curves: Sequence[Curve], tau: float, at: float, target: float | None = None, spare: int = 0
) -> Calibration:
    """The target from the baseline's calibration curves (one a seed, run to tau).

    The median over seeds of the running minimum at `at` of tau, a share. If more than `spare` seeds miss that over
    their whole curve, the target is the running minimum at `at` of tau of the worst seed but `spare`, so that all but
    `spare` have room to reach it: with 1 a single bad seed no longer sets the target. A diverged seed takes no part
    in either (its value would put the target where it broke down) and is counted. `target` overrides the rule;
    slope, spread and hits are then about it.

    The tuning target lies `TUNING_HEADROOM` standard deviations of those running minima lower, but no lower
    than every seed gets within tau. A point that is tuned on one seed to just touch the target misses it on
    every other fresh seed: a decay that ends there above all, for nothing moves beyond its horizon. A raised
    target is a bad seed's already, and is aimed at itself.

    The slope is the least-squares slope of the loss on log2(examples) within half a doubling either side
    of the median E, median over seeds.

    Raises ValueError when no seed has a finite loss by `at` of tau and no target is given.
    """
    healthy = [curve for curve in curves if not curve.diverged]
    raised = False
    values = np.array([curve.best(at * tau) for curve in healthy], dtype=np.float64)
    values = values[np.isfinite(values)]
    if target is None:
        if not values.size:
            raise ValueError(f"no calibration seed has a finite validation loss by {at:g} of tau")
        target = float(np.median(values))
        raised = sum(curve.best() > target for curve in healthy) > spare
        if raised:
            target = float(np.sort(values)[-1 - min(spare, values.size - 1)])
    headroom = TUNING_HEADROOM * float(values.std(ddof=1)) if values.size > 1 and not raised else 0.0
    attained = max((curve.best() for curve in healthy), default=target)
    tuning_target = min(target, max(target - headroom, attained))
    E, hit = targets_reached(curves, target)
    reached = E[hit]
    spread = float(reached.std(ddof=1) / reached.mean()) if reached.size > 1 else float("nan")
    return Calibration(
        target=target,
        tuning_target=tuning_target,
        raised=raised,
        slope=_slope(healthy, float(np.median(reached))) if reached.size else float("nan"),
        examples=tuple(float(value) for value in E),
        hits=int(hit.sum()),
        diverged=len(curves) - len(healthy),
        spread=spread,
        plateau=spread > PLATEAU_SPREAD,
    )


def _slope(curves: Sequence[Curve], centre: float) -> float:
    slopes = []
    for curve in curves:
        u = np.log2(curve.examples / centre)
        near = (np.abs(u) <= 0.5) & np.isfinite(curve.valid_loss)
        if near.sum() > 1:
            du = u[near] - u[near].mean()
            slopes.append(float((du * curve.valid_loss[near]).sum() / (du * du).sum()))
    return float(np.median(slopes)) if slopes else float("nan")
