"""Learning curves in; examples to target, tuning scores and bands over seeds out.

E is *examples to target*; a run that never gets there is a miss, which is flagged, never dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_]

#: Scores of a tuning trial that missed lie in (MISS, WORST_MISS]; a diverged one has DIVERGED.
MISS = 2.0
WORST_MISS = 9.0
DIVERGED = 10.0


@dataclass(frozen=True, eq=False)
class Curve:
    """One run's evaluations: `examples` (n,) positive and rising, `valid_loss` (n,) nats per example.

    `diverged` says that the run ended by diverging; a non-finite last evaluation says so too.
    Raises ValueError for lengths that differ or examples that don't rise.
    """

    examples: Array
    valid_loss: Array
    diverged: bool = False

    def __post_init__(self) -> None:
        examples = np.asarray(self.examples, dtype=np.float64)
        valid_loss = np.asarray(self.valid_loss, dtype=np.float64)
        if examples.ndim != 1 or examples.shape != valid_loss.shape:
            raise ValueError(
                f"a curve needs as many losses as example counts: {valid_loss.shape}, {examples.shape}"
            )
        if examples.size and not (examples[0] > 0.0 and (examples[1:] > examples[:-1]).all()):
            raise ValueError("a curve's example counts must be positive and strictly rising")
        ended_badly = bool(examples.size) and not np.isfinite(valid_loss[-1])
        object.__setattr__(self, "examples", examples)
        object.__setattr__(self, "valid_loss", valid_loss)
        object.__setattr__(self, "diverged", bool(self.diverged) or ended_badly)

    def best(self, until: float = np.inf) -> float:
        """The running minimum at `until` examples, nats: least finite loss at or before it; NaN if none."""
        seen = self.valid_loss[(self.examples <= until) & np.isfinite(self.valid_loss)]
        return float(seen.min()) if seen.size else float("nan")

    def lowered(self, nats: float) -> Curve:
        """The same run with every loss so many nats lower."""
        return self if nats == 0.0 else Curve(self.examples, self.valid_loss - nats, self.diverged)


def examples_to_target(
    examples: npt.ArrayLike, valid_loss: npt.ArrayLike, target: float
) -> tuple[float, bool]:
    """Examples (n,), validation losses (n,) nats, target nats -> (E in examples, True) or (NaN, False).

    The first finite loss at or below the target is the hit. E lies between it and the evaluation before
    it, linear in log examples; it is the evaluation's own count where it is the first, or where the one
    before is not finite (nothing is interpolated across a gap). NaN and infinities are never hits; a run
    that diverges after its hit keeps it, since with stopping at the target it would have ended there.

    Raises ValueError for a target that is not finite.
    """
    return _crossing(Curve(np.asarray(examples), np.asarray(valid_loss)), target)


def _crossing(curve: Curve, target: float) -> tuple[float, bool]:
    if not np.isfinite(target):
        raise ValueError(f"the target must be a finite loss in nats, got {target}")
    x, loss = curve.examples, curve.valid_loss
    reached = np.isfinite(loss) & (loss <= target)
    if not reached.any():
        return float("nan"), False
    i = int(reached.argmax())
    if i == 0 or not np.isfinite(loss[i - 1]):
        return float(x[i]), True
    share = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
    return float(x[i - 1] * (x[i] / x[i - 1]) ** share), True


def targets_reached(curves: Sequence[Curve], target: float) -> tuple[Array, Hits]:
    """E (S,) in examples, NaN on a miss, and hits (S,) of each seed's curve."""
    pairs = [_crossing(curve, target) for curve in curves]
    return np.array([E for E, _ in pairs], dtype=np.float64), np.array([hit for _, hit in pairs], dtype=bool)


def resolution(examples: npt.ArrayLike, E: float) -> float:
    """How far apart the two evaluations around E are: later / earlier - 1, dimensionless.

    About 0.03 on the grid; more where one step is longer than a grid cell (full batch), and the arm is
    then flagged with it. Infinite at or before the first evaluation, NaN past the last or for a NaN E.
    """
    x = np.asarray(examples, dtype=np.float64)
    i = int(np.searchsorted(x, E))
    if not E > 0.0 or i == x.size:
        return float("nan")
    return float(x[i] / x[i - 1] - 1.0) if i else float("inf")


def sustained_to_target(curve: Curve, target: float, points: int = 3) -> tuple[float, bool]:
    """As `examples_to_target`, but a hit counts only once `points` evaluations in a row, its own the first, are at or
    below the target: a lucky dip doesn't. At the end of a run those that are left have to do, for a run that is
    stopped at its target has no more.

    Raises ValueError for a target that is not finite.
    """
    reached = np.isfinite(curve.valid_loss) & (curve.valid_loss <= target)
    stays = [bool(reached[i : i + points].all()) for i in range(len(reached))]
    # What came before the hit that lasts isn't looked at, but for the evaluation that it is interpolated from.
    first = next((i for i, kept in enumerate(stays) if kept), None)
    if first is None:
        return _crossing(Curve(curve.examples[:0], curve.valid_loss[:0]), target)
    start = max(first - 1, 0)
    return _crossing(Curve(curve.examples[start:], curve.valid_loss[start:]), target)


def mean_to_target(curves: Sequence[Curve], target: float) -> float:
    """Examples at which the mean curve over seeds crosses the target, as papers often give it; NaN where it doesn't.

    Interpolated in log examples from the first point that all have to the last; a seed that diverged is infinite from
    there on, and with it the mean."""
    if not curves or any(not curve.examples.size for curve in curves):
        return float("nan")
    start, end = (
        max(float(c.examples[0]) for c in curves),
        min((float(c.examples[-1]) for c in curves if not c.diverged), default=0.0),
    )
    x = np.unique(np.concatenate([curve.examples for curve in curves]))
    x = x[(x >= start) & (x <= end)]
    losses = [
        np.interp(
            np.log(x),
            np.log(c.examples),
            np.where(np.isfinite(c.valid_loss), c.valid_loss, np.inf),
            right=np.inf,
        )
        for c in curves
    ]
    return _crossing(Curve(x, np.mean(losses, axis=0)), target)[0] if x.size else float("nan")


def tuning_score(curve: Curve, target: float, tau: float) -> float:
    """Score of one tuning trial, dimensionless, lower is better, comparable between trials of one target.

    E / tau on a hit; 2 + (running minimum - target) / |target|, at most 9, on a miss; 10 if it diverged
    or has no finite evaluation. A hit comes first: a run that diverged after it had stopped there.
    Negative targets (Gaussian likelihood) work unchanged; a target of exactly 0 has no relative gap, and
    its misses are measured in nats.
    """
    E, hit = _crossing(curve, target)
    if hit:
        return E / tau
    best = curve.best()
    if curve.diverged or np.isnan(best):
        return DIVERGED
    return min(MISS + (best - target) / (abs(target) or 1.0), WORST_MISS)


def best_points(scores: npt.ArrayLike, n: int) -> list[int]:
    """Indices of the n lowest scores (K,), best first; a tie goes to the lower index, and NaN (capped, failed) is
    none of them."""
    values = np.asarray(scores, dtype=np.float64)
    order = np.argsort(values, kind="stable")  # NaN last
    return [int(i) for i in order[:n] if not np.isnan(values[i])]


@dataclass(frozen=True, eq=False)
class Band:
    """Spread over seeds at each evaluation, all (m,); infinite where a diverged seed is the quantile."""

    examples: Array
    median: Array  # nats per example
    low: Array
    high: Array


def median_and_band(curves: Sequence[Curve], coverage: float = 0.8) -> Band:
    """Median and central `coverage` of the validation losses of an arm's seeds: a spread, no interval of
    confidence.

    Curves of different evaluation points are interpolated in log examples. The band ends where the
    first healthy seed ends: past it, seeds that stopped early at the target would be missing, and the
    rest look worse than the arm is. A diverged seed counts as infinitely bad from where it broke down,
    so it moves the quantiles instead of leaving them. Quantiles are observed values, the outer ones.
    """
    if not curves or any(not curve.examples.size for curve in curves):
        raise ValueError("a band needs at least one curve, and one evaluation or more in each")
    start = max(float(curve.examples[0]) for curve in curves)
    ends = [float(curve.examples[-1]) for curve in curves if not curve.diverged]
    end = min(ends) if ends else max(float(curve.examples[-1]) for curve in curves)
    x = np.unique(np.concatenate([curve.examples for curve in curves]))
    x = x[(x >= start) & (x <= end)]
    losses = np.array(
        [np.interp(np.log(x), np.log(c.examples), c.valid_loss, right=np.nan) for c in curves],
        dtype=np.float64,
    )
    ranked = np.sort(np.where(np.isfinite(losses), losses, np.inf), axis=0)
    last = len(curves) - 1
    tail = (1.0 - coverage) / 2.0 * last
    return Band(
        examples=x,
        median=(ranked[last // 2] + ranked[(last + 1) // 2]) / 2.0,
        low=ranked[int(np.floor(tail))],
        high=ranked[int(np.ceil(last - tail))],
    )
