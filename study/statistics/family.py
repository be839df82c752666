"""A family of arms beside one baseline: spread shared between arms, the luck of tuning in the interval, one p that
decides, and what a look costs.

The family is the set of single-technique arms fixed beforehand. Estimates are those of `speed_up`, one an arm, over
the same seeds. All variances are of ln(ratio).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import special

from study.statistics.curves import Array
from study.statistics.speed_up import Estimate, simultaneous_interval, t_quantile
from study.statistics.verdicts import Verdict

NAN = float("nan")
#: A ratio within this of 1 is no difference.
MARGIN = 0.02
#: From this many arms on their variances are shrunk towards each other.
SHARED_FROM = 4
#: Share of the level that the first look spends; each later look spends this share of what is left.
FIRST_LOOK = 0.9
#: Below this share of seeds that reach the target an arm has no verdict.
RELIABLE = 0.9
#: Spread of a pair's log ratio, and variance of one arm's tuning, before anything has run: digits at 40 epochs.
TYPICAL_SPREAD = 0.2
TYPICAL_TUNING_VARIANCE = 0.03**2


def moderated(variances: npt.ArrayLike, df: npt.ArrayLike) -> tuple[Array, Array]:
    """Variances (m,) with df (m,) degrees of freedom, shrunk towards what they have in common: (variances, df).

    Empirical Bayes (Smyth 2004, section 6.2): variances are those of a scaled inverse chi-square with d0 degrees of
    freedom, whose moments are fitted to the log variances; where those spread no more than chance makes them, d0 is
    infinite and all get the pooled one. No variance has more degrees of freedom than all have together.

    Raises ValueError for a variance or a df that isn't above 0.
    """
    s2, d = np.asarray(variances, dtype=np.float64), np.asarray(df, dtype=np.float64)
    if not ((s2 > 0.0) & (d > 0.0)).all():
        raise ValueError("variances and their degrees of freedom must be above 0")
    if s2.size < 2:
        return s2, d
    e = np.log(s2) - special.digamma(d / 2.0) + np.log(d / 2.0)
    excess = e.var(ddof=1) - special.polygamma(1, d / 2.0).mean()
    if excess <= 0.0:
        return np.full(s2.size, math.exp(e.mean())), np.full(s2.size, d.sum())
    d0 = 2.0 * trigamma_inverse(float(excess))
    prior = math.exp(e.mean() + special.digamma(d0 / 2.0) - math.log(d0 / 2.0))
    return (d0 * prior + d * s2) / (d0 + d), np.minimum(d + d0, d.sum())


def trigamma_inverse(value: float) -> float:
    """y with trigamma(y) = value, above 0 (Newton's iteration of Smyth 2004, appendix)."""
    y = 0.5 + 1.0 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, y))
        step = trigamma * (1.0 - trigamma / value) / float(special.polygamma(2, y))
        y += step
        if -step < 1e-10 * y:
            break
    return y


def with_tuning(
    estimates: Sequence[Estimate],
    baseline_tuning: float,
    arm_tunings: Sequence[float],
    level: float = 0.95,
) -> list[Estimate]:
    """The family's estimates with shared spread and with the luck of tuning: SE^2 = s2 / n + that of the baseline's
    tuning + that of the arm's (`Response.tuning_variance`; 0 where the units are blocks, which hold it already).

    From four arms with an interval on s2 is `moderated`. An estimate without an interval stays without one. The
    intervals are for the technique at its best, no longer for the recipe that tuning happened to find.
    """
    known = [i for i, estimate in enumerate(estimates) if estimate.reason is None]
    s2 = np.array([estimates[i].se ** 2 * estimates[i].n for i in known])
    df = np.array([estimates[i].df for i in known])
    if len(known) >= SHARED_FROM:
        s2, df = moderated(s2, df)
    result = list(estimates)
    for i, variance, d in zip(known, s2, df, strict=True):
        estimate = estimates[i]
        se = math.sqrt(variance / estimate.n + baseline_tuning + arm_tunings[i])
        p = float(2.0 * special.stdtr(d, -abs(estimate.theta) / se))
        changed = replace(estimate, se=se, df=float(d), p=p)
        low, high = simultaneous_interval(changed, 1, level)
        result[i] = replace(changed, low=low, high=high)
    return result


def p_beyond(estimate: Estimate, margin: float = MARGIN) -> float:
    """Two-sided p of a ratio within the margin of 1: 2 P(t > (|theta| - ln(1 + margin)) / SE), at most 1; NaN
    without an interval."""
    if estimate.reason is not None:
        return NAN
    t = (abs(estimate.theta) - math.log1p(margin)) / estimate.se
    return min(float(2.0 * special.stdtr(estimate.df, -t)), 1.0)


def if_anything(low: float, high: float) -> float:
    """x of "if it changes anything, by less than x" from the limits of a ratio, a share: the further of the two from
    1, either way round; NaN without limits. 0.1 for [0.95, 1.1], 0.25 for [0.8, 1.1]."""
    return max(high, 1.0 / low) - 1.0 if low > 0.0 else (math.inf if low == 0.0 else NAN)


def reliable(hits: npt.ArrayLike) -> bool:
    """Whether at least nine in ten of the seeds (S,) reach the target; the misses then count as tau."""
    hit = np.asarray(hits, dtype=bool)
    return bool(hit.size) and int(hit.sum()) >= RELIABLE * hit.size - 1e-9


def decide(
    p: float,
    theta: float,
    arm_hit: npt.ArrayLike,
    baseline_hit: npt.ArrayLike,
    *,
    tuned: bool = True,
    level: float = 0.95,
) -> Verdict:
    """The verdict on one arm from the p that decides (of the family and of all looks), the sign of theta at the look
    that gave it, and the hits (S,) of both.

    NEVER and UNRELIABLE (under nine hits in ten) are the arm's, NOT_TUNED where it isn't reliable and no tuning run
    reached the target; UNRELIABLE_BASELINE is the study's and comes after them. FASTER and SLOWER: p below 1 - level.
    """
    arm = np.asarray(arm_hit, dtype=bool)
    if not reliable(arm):
        if not tuned:
            return Verdict.NOT_TUNED
        return Verdict.UNRELIABLE if arm.any() else Verdict.NEVER
    if not reliable(baseline_hit):
        return Verdict.UNRELIABLE_BASELINE
    if p < 1.0 - level:
        return Verdict.FASTER if theta > 0.0 else Verdict.SLOWER
    return Verdict.UNDECIDED


# Looks: every time that a verdict is read and seeds may be added is another chance of a false one.


def look_share(look: int) -> float:
    """Share of the level that a look spends, the first is 1: nine tenths for the first, then nine tenths of what is
    left each time, so that any number of looks spend no more than all (Bonferroni over looks)."""
    if look < 1:
        raise ValueError(f"looks are counted from 1, got {look}")
    return FIRST_LOOK * (1.0 - FIRST_LOOK) ** (look - 1)


def over_looks(p: Sequence[npt.ArrayLike]) -> Array:
    """The p (m,) that decides, from each look's adjusted p (m,) in order: the least p over the share of its look, at
    most 1. A verdict once given stays. NaN where no look gave one."""
    return np.asarray(np.minimum(np.fmin.reduce(_by_share(p), axis=0), 1.0))


def deciding_look(p: Sequence[npt.ArrayLike]) -> npt.NDArray[np.int64]:
    """The look (m,), counted from 0, whose p is that of `over_looks`, and whose sign goes with it; the first where none
    gave one."""
    scaled = _by_share(p)
    return np.asarray(np.where(np.isnan(scaled), np.inf, scaled).argmin(axis=0))


def _by_share(p: Sequence[npt.ArrayLike]) -> Array:
    shares = [look_share(look) for look in range(1, len(p) + 1)]
    return np.array([np.asarray(values, dtype=np.float64) / s for values, s in zip(p, shares, strict=True)])


def interval_over_looks(
    estimates: Sequence[Estimate], family: int, level: float = 0.95
) -> tuple[float, float]:
    """Simultaneous limits of one arm's ratio from its estimate at each look, in order: what every look allows, each
    at its share of 1 - level. Where nothing is left, the last look's."""
    limits = [
        simultaneous_interval(estimate, family, 1.0 - (1.0 - level) * look_share(look))
        for look, estimate in enumerate(estimates, start=1)
    ]
    low, high = float(np.fmax.reduce([a for a, _ in limits])), float(np.fmin.reduce([b for _, b in limits]))
    return (low, high) if not low > high else limits[-1]


def smallest_effect(
    n: int,
    family: int,
    *,
    spread: float = TYPICAL_SPREAD,
    tuning_variance: float = TYPICAL_TUNING_VARIANCE,
    margin: float = MARGIN,
    level: float = 0.95,
    power: float = 0.8,
) -> float:
    """The smallest true speed-up that an arm is called faster for with this power, with n units; infinite for one.

    `spread` is the sd of a unit's log ratio, `tuning_variance` that of one arm. Noncentral t at the first, strictest
    step of Holm and at the first look; spread shared between arms only makes it smaller.
    """
    if n < 2:
        return math.inf
    df = n - 1.0
    se = math.sqrt(spread**2 / n + 2.0 * tuning_variance)
    critical = t_quantile(1.0 - (1.0 - level) * look_share(1), df, family)
    return math.exp(math.log1p(margin) + se * float(special.nctdtrinc(df, 1.0 - power, critical)))


def effect_in_reach(
    seeds: int, blocks: int, family: int, *, spread: float = TYPICAL_SPREAD, margin: float = MARGIN
) -> float:
    """`smallest_effect` of a plan: with several blocks their means are the units, each with the luck of a tuning of its
    own. `spread` is the coefficient of variation of E over seeds: at a correlation of 0.5 between two arms on one
    seed it is the sd of the log ratio, too."""
    if blocks == 1:
        return smallest_effect(seeds, family, spread=spread, margin=margin)
    of_block = math.sqrt(spread**2 * blocks / seeds + 2.0 * TYPICAL_TUNING_VARIANCE)
    return smallest_effect(blocks, family, spread=of_block, tuning_variance=0.0, margin=margin)
