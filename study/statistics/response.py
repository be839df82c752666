"""The response of an arm to what is tuned: how far each run was behind the best one, a Gaussian process through
that, its lowest point (the vertex), the next points to try and how sure the vertex is.

Guided tuning: the coarse points leave the optimum a grid's step and a seed's luck apart; the vertex of a smooth curve
through all runs is four times surer than the best of them, and its remaining luck is known and goes into the interval.
Nothing is fitted but the curve: the kernel is fixed, so the next points follow from the runs alone.

Coordinates: lr in decades (log10 lr), any other dimension in share of its range (0 to 1). All lengths are in these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import linalg

from study.statistics.curves import Array, Curve, targets_reached

#: A run's loss is the mean of this many last evaluations: one alone has the noise of a minibatch.
AVERAGED = 5
#: Distances of the best run are e-folds up to about here, and their logarithm beyond: a far point matters less.
SOFT = 0.2
#: What counts as a distance at most, e-folds; a diverged run has it.
FARTHEST = 50.0
#: Standard deviations, in e-folds: of the curve, of what the runs of one seed have in common, of a single run.
CURVE_SD, SEED_SD, RUN_SD = 0.4, 0.1, 0.1
#: Variance of the curve's unknown constant: flat against everything else.
CONSTANT = 25.0
GRID = 81
DRAWS = 200
#: A vertex in this outer share of its range lies on the edge.
EDGE = 0.05


@dataclass(frozen=True)
class Axis:
    """One tuned dimension in its coordinate: range, kernel length, and how far a guided point is from the vertex."""

    low: float
    high: float
    length: float
    reach: float
    spare_low: float = 0.0
    """How far the range can be widened below; 0: no more."""
    spare_high: float = 0.0

    @classmethod
    def lr(cls, low: float, high: float) -> Axis:
        """A learning rate from `low` to `high`, in decades; it can be widened by one on each side."""
        return cls(
            float(np.log10(low)),
            float(np.log10(high)),
            length=0.35,
            reach=0.24,
            spare_low=1.0,
            spare_high=1.0,
        )

    @classmethod
    def knob(cls) -> Axis:
        """Any other dimension, in share of its range, which stands."""
        return cls(0.0, 1.0, length=0.5, reach=0.2)

    def edge(self, at: float) -> str | None:
        """ "low" or "high" where a value lies in the outer 5 % of the range; None inside it."""
        share = (at - self.low) / (self.high - self.low)
        return "low" if share <= EDGE else "high" if share >= 1.0 - EDGE else None

    def widened(self, at: float) -> Axis:
        """The range with what can be added on the side on whose edge a value lies; itself inside the range, and where
        that side has been widened before."""
        side = self.edge(at)
        if side == "low":
            return replace(self, low=self.low - self.spare_low, spare_low=0.0)
        if side == "high":
            return replace(self, high=self.high + self.spare_high, spare_high=0.0)
        return self

    def near(self, at: float, n: int) -> Array:
        """n points evenly over `at` +- reach, (n,), moved into the range as a whole where they stick out."""
        reach = min(self.reach, (self.high - self.low) / 2.0)
        centre = min(max(at, self.low + reach), self.high - reach)
        return np.linspace(centre - reach, centre + reach, n)


@dataclass(frozen=True)
class Reference:
    """Where an arm's runs are compared, fixed by its coarse points."""

    examples: float  # E0: where the first of them was at the tuning target; tau where none was
    slope: float  # by how much the best one's loss fell per e-fold of examples there, nats, above 0


def reference(curves: Sequence[Curve], target: float, tau: float, slope: float = float("nan")) -> Reference:
    """E0 and the slope from the coarse runs' curves.

    The slope is the least-squares slope on ln(examples), over [E0 / 2, E0], of the averaged loss of the run that is
    lowest at E0. Where that isn't above 0 (too few evaluations, noise): `slope`, the calibration's per e-fold; where
    that is unknown too, the mean slope from the run's first evaluation on, or 1, which orders the runs all the same.
    """
    E, hit = targets_reached(curves, target)
    examples = float(E[hit].min()) if hit.any() else float(tau)
    losses = losses_at(curves, examples)
    if not np.isfinite(losses).any():
        return Reference(examples, slope if slope > 0.0 else 1.0)
    best = curves[int(losses.argmin())]
    seen = np.isfinite(best.valid_loss) & (best.examples <= max(examples, float(best.examples[0])))
    x, loss = best.examples[seen], best.valid_loss[seen]
    candidates = [_local_slope(x, loss, examples), slope]
    if x.size > 1:
        candidates.append(float((loss[0] - loss[-1]) / np.log(x[-1] / x[0])))
    return Reference(examples, next((s for s in candidates if s > 0.0), 1.0))


def _local_slope(x: Array, loss: Array, examples: float) -> float:
    if x.size < AVERAGED:
        return float("nan")
    averaged = np.convolve(loss, np.full(AVERAGED, 1.0 / AVERAGED), mode="valid")
    u = np.log(x[AVERAGED - 1 :])
    near = u >= np.log(examples / 2.0)
    if near.sum() < 2:
        return float("nan")
    du = u[near] - u[near].mean()
    return float(-(du @ averaged[near]) / (du @ du))


def losses_at(curves: Sequence[Curve], examples: float) -> Array:
    """Each run's loss at `examples`, (n,) nats: the mean of its last five evaluations up to there; infinite where it
    had diverged by then. A run whose first evaluation comes later is taken at that one."""
    losses = []
    for curve in curves:
        end = max(int(np.searchsorted(curve.examples, examples, side="right")), 1)
        last = curve.valid_loss[:end][-AVERAGED:]
        broken = curve.diverged and end == curve.examples.size and curve.examples[-1:] < examples
        losses.append(float(last.mean()) if last.size and np.isfinite(last).all() and not broken else np.inf)
    return np.array(losses, dtype=np.float64)


def behind(losses: npt.ArrayLike, slope: float) -> Array:
    """y (n,): how far each run's loss (n,) was behind the lowest one, in e-folds of examples by `slope` nats per
    e-fold; beyond about 0.2 its logarithm: 0.2 ln(1 + d / 0.2), d at most 50."""
    values = np.asarray(losses, dtype=np.float64)
    finite = np.isfinite(values)
    lowest = values[finite].min() if finite.any() else 0.0
    d = np.where(finite, np.minimum((np.where(finite, values, 0.0) - lowest) / slope, FARTHEST), FARTHEST)
    return SOFT * np.log1p(d / SOFT)


@dataclass(frozen=True, eq=False)
class Response:
    """The Gaussian process through an arm's n tuning runs: fixed kernel, unknown constant (Rasmussen & Williams 2006,
    eq. 2.22 to 2.24; the constant as in 2.7, with its own prior variance).

    Runs of one seed share an error, for a seed that trains well does so at most points.
    """

    axes: tuple[Axis, ...]  # d of them
    points: Array  # (n, d), in the axes' coordinates
    y: Array  # (n,), of `behind`
    seeds: npt.NDArray[np.int64]  # (n,), which runs share a seed

    @cached_property
    def _lengths(self) -> Array:
        return np.array([axis.length for axis in self.axes])

    def _covariance(self, a: Array, b: Array) -> Array:
        gap = (a[:, None, :] - b[None, :, :]) / self._lengths
        return np.asarray(CONSTANT + CURVE_SD**2 * np.exp(-0.5 * (gap * gap).sum(axis=-1)))

    @cached_property
    def _factor(self) -> tuple[Array, bool]:
        same_seed = self.seeds[:, None] == self.seeds[None, :]
        noise = SEED_SD**2 * same_seed + RUN_SD**2 * np.eye(self.y.size)
        factor, lower = linalg.cho_factor(self._covariance(self.points, self.points) + noise)
        return factor, bool(lower)

    @cached_property
    def _weights(self) -> Array:
        return np.asarray(linalg.cho_solve(self._factor, self.y - self.y.mean()))

    def mean(self, at: Array) -> Array:
        """Posterior mean of the curve at (m, d) points, (m,)."""
        return np.asarray(self.y.mean() + self._covariance(at, self.points) @ self._weights)

    def covariance(self, at: Array) -> Array:
        """Posterior covariance of the curve, without the runs' noise, at (m, d) points, (m, m)."""
        cross = self._covariance(self.points, at)
        return np.asarray(self._covariance(at, at) - cross.T @ linalg.cho_solve(self._factor, cross))

    @cached_property
    def vertex(self) -> Array:
        """Where the posterior mean is lowest, (d,): on a grid of 81 values along each axis in turn, from every run's
        point, until nothing falls any more."""
        starts = np.clip(self.points, [axis.low for axis in self.axes], [axis.high for axis in self.axes])
        grids = [np.linspace(axis.low, axis.high, GRID) for axis in self.axes]
        lowest = np.full(len(starts), np.inf)
        while True:
            for k, grid in enumerate(grids):
                lines = np.repeat(starts[:, None, :], GRID, axis=1)
                lines[:, :, k] = grid
                means = self.mean(lines.reshape(-1, len(grids))).reshape(len(starts), GRID)
                starts[:, k] = grid[means.argmin(axis=1)]
            found = means.min(axis=1)
            if not (found < lowest - 1e-12).any():
                return np.asarray(starts[int(found.argmin())])
            lowest = found

    def widened(self) -> Response:
        """The same runs where each axis on whose edge the vertex lies goes on for a decade there, once a side: what
        the next round is planned from."""
        axes = tuple(axis.widened(float(v)) for axis, v in zip(self.axes, self.vertex, strict=True))
        return self if axes == self.axes else replace(self, axes=axes)

    def next_points(self) -> Array:
        """The next round: four points along a lone axis, (4, 1); else a pair along each axis through the vertex,
        (2 d, d)."""
        if len(self.axes) == 1:
            return self.axes[0].near(float(self.vertex[0]), 4)[:, None]
        pairs = []
        for k, axis in enumerate(self.axes):
            pair = np.repeat(self.vertex[None, :], 2, axis=0)
            pair[:, k] = axis.near(float(self.vertex[k]), 2)
            pairs.append(pair)
        return np.concatenate(pairs)

    def line(self, k: int, near: bool = False) -> Array:
        """81 points (81, d) through the vertex along axis k: over its range, or, `near`, within the axis's reach."""
        axis, v = self.axes[k], float(self.vertex[k])
        low, high = (
            (max(axis.low, v - axis.reach), min(axis.high, v + axis.reach)) if near else (axis.low, axis.high)
        )
        points = np.repeat(self.vertex[None, :], GRID, axis=0)
        points[:, k] = np.linspace(low, high, GRID)
        return points

    def tuning_variance(self, rng: np.random.Generator) -> float:
        """Variance over 200 posterior draws f of f(vertex) - min f: what the arm's E may still owe to the luck of its
        tuning, in ln E. With several axes the sum over the lines through the vertex, each within its reach, for far
        off a draw roams where no run has been."""
        several = len(self.axes) > 1
        return sum(self._variance(self.line(k, near=several), rng) for k in range(len(self.axes)))

    def _variance(self, line: Array, rng: np.random.Generator) -> float:
        at = np.concatenate([self.vertex[None, :], line])
        # The constant drops out of the difference. Cholesky, whose factor is unique, so equal seeds give equal draws.
        spread = self.covariance(at)
        factor = np.linalg.cholesky(spread + 1e-6 * CURVE_SD**2 * np.eye(len(at)))
        draws = self.mean(at)[:, None] + factor @ rng.standard_normal((len(at), DRAWS))
        return float((draws[0] - draws.min(axis=0)).var(ddof=1))


def respond(
    axes: tuple[Axis, ...], points: Array, losses: Array, slope: float, rounds: npt.NDArray[np.int64]
) -> Response:
    """The response to all of an arm's tuning runs so far, its ranges widened as they were before each guided round.

    points (n, d), losses (n,) of `losses_at` and the round (n,) of each run: 0 for the coarse points, one seed a
    round. Nothing else decides, so whoever has the runs has the ranges, the vertex and the next points:
    `respond(...).widened().next_points()`.
    """
    for last in range(int(rounds.max()) + 1):
        known = rounds <= last
        response = Response(axes, points[known], behind(losses[known], slope), rounds[known])
        axes = response.widened().axes
    return response
