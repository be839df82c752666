"""Time to target: from learning curves to examples, scores, the target itself and survival curves.

Arrays in, numbers out. E is *examples to target*; a run that never gets there is a miss, which is
flagged and set to tau, never dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_]

#: Scores of a tuning trial that missed lie in (MISS, WORST_MISS]; a diverged one has DIVERGED.
MISS = 2.0
WORST_MISS = 9.0
DIVERGED = 10.0
#: Above this coefficient of variation of E over the calibration seeds, the target lies on a plateau.
PLATEAU_SPREAD = 0.15
#: How far below the target tuning aims, in standard deviations over seeds of the calibration runs' loss: about
#: one fresh seed in forty is that much worse than the one that a point was tuned on.
TUNING_HEADROOM = 2.0


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


def censored(E: npt.ArrayLike, hit: npt.ArrayLike, tau: float) -> Array:
    """E (...,) with every miss set to tau, examples; what the misses held before doesn't matter."""
    return np.where(np.asarray(hit, dtype=bool), np.asarray(E, dtype=np.float64), float(tau))


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


@dataclass(frozen=True)
class Calibration:
    """The target and how well it sits on the baseline's curves."""

    target: float  # nats per example
    tuning_target: float  # nats per example, at or below the target: what tuning aims at
    raised: bool  # a seed missed the median target, and it was raised to the worst seed's value
    slope: float  # nats per doubling of examples round E; negative where the loss falls; NaN if unknown
    examples: tuple[float, ...]  # E of each seed at the target, NaN on a miss
    hits: int  # seeds that reach the target
    diverged: int  # seeds that diverged: they set no target and raise none
    spread: float  # coefficient of variation of E (sd, ddof 1, over mean) over the hits; NaN below two
    plateau: bool  # spread above 15 %: a small change of loss is a large change of E


def calibrate_target(
    curves: Sequence[Curve], tau: float, at: float, target: float | None = None
) -> Calibration:
    """The target from the baseline's calibration curves (one a seed, run to tau).

    The median over seeds of the running minimum at `at` of tau, a share. If a seed misses that over its whole
    curve, the target is the worst seed's running minimum at `at` of tau, so that every seed has
    room to reach it. A diverged seed takes no part in either (its value would put the target where it
    broke down) and is counted. `target` overrides the rule; slope, spread and hits are then about it.

    The tuning target lies `TUNING_HEADROOM` standard deviations of those running minima lower, but no lower
    than every seed gets within tau. A point that is tuned on one seed to just touch the target misses it on
    every other fresh seed: a decay that ends there above all, for nothing moves beyond its horizon. A raised
    target is the worst seed's already, and is aimed at itself.

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
        raised = any(curve.best() > target for curve in healthy)
        if raised:
            target = float(values.max())
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


@dataclass(frozen=True, eq=False)
class KaplanMeier:
    """A step function, right-continuous: `survival[i]` holds from `examples[i]` to the next.

    All (m,); the first point is 0 examples, survival 1, the last the largest E. `low`, `high`: pointwise
    limits; NaN where survival is 0, where they are undefined.
    """

    examples: Array  # distinct E, hits and misses, in examples
    survival: Array  # share of runs that haven't reached the target
    low: Array
    high: Array
    at_risk: npt.NDArray[np.int64]  # runs that had not reached the target or ended just before


def kaplan_meier(E: npt.ArrayLike, hit: npt.ArrayLike, level: float = 0.95) -> KaplanMeier:
    """Product-limit estimate of the share still short of the target (Kaplan & Meier 1958).

    E (S,) examples, misses where they were censored (tau); hit (S,). Greenwood's variance on the
    log(-log) scale (Kalbfleisch & Prentice 2002, eq. 1.14), which stays inside [0, 1]. Misses at a time
    are counted at risk for hits at that time.
    """
    times, event = np.asarray(E, dtype=np.float64), np.asarray(hit, dtype=bool)
    if not np.isfinite(times).all():
        raise ValueError("E must be finite: set misses to tau first (censored)")
    x = np.unique(times)
    at_risk = (times[:, None] >= x).sum(axis=0)
    events = ((times[:, None] == x) & event[:, None]).sum(axis=0)
    survival = np.cumprod(1.0 - events / at_risk)
    # Nothing is left at risk where the denominator is 0: survival is 0 there, and has no limits.
    greenwood = np.cumsum(events / np.maximum(at_risk * (at_risk - events), 1))
    inner = (survival > 0.0) & (survival < 1.0)
    low, high = np.where(survival == 0.0, np.nan, 1.0), np.where(survival == 0.0, np.nan, 1.0)
    log_survival = np.log(survival[inner])
    width = special.ndtri(0.5 + level / 2.0) * np.sqrt(greenwood[inner]) / -log_survival
    low[inner] = np.exp(log_survival * np.exp(width))
    high[inner] = np.exp(log_survival * np.exp(-width))

    def from_start(values: Array) -> Array:
        return np.concatenate([[1.0], values])

    return KaplanMeier(
        examples=np.concatenate([[0.0], x]),
        survival=from_start(survival),
        low=from_start(low),
        high=from_start(high),
        at_risk=np.concatenate([[times.size], at_risk]).astype(np.int64),
    )


def par2(E: npt.ArrayLike, hit: npt.ArrayLike, tau: float) -> float:
    """Penalised average run time, examples: the mean of E (S,) with each miss at 2 tau (PAR-2 of the SAT
    competitions; Hutter et al. 2009)."""
    return float(censored(E, hit, 2.0 * tau).mean())


def ert(E: npt.ArrayLike, hit: npt.ArrayLike, tau: float) -> float:
    """Expected running time with restarts, examples: the sum of E over all runs (misses at tau) over the
    number of hits (Hansen et al. 2009, COCO); infinite without a hit."""
    hits = int(np.asarray(hit, dtype=bool).sum())
    return float(censored(E, hit, tau).sum()) / hits if hits else float("inf")


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
