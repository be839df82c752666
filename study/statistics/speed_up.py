"""Estimates: arrays of examples to target in, speed-ups with their uncertainty out.

A unit is a seed, or the mean over a block's seeds where an experiment has several blocks (`units`). All
arrays of one comparison are paired: position s is the same unit in every arm. E has misses set to tau
(`censored`). A speed-up above 1 means that the arm needs fewer examples (or seconds).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special

from study.statistics.curves import Array, Curve, targets_reached
from study.statistics.survival import censored

NAN = float("nan")
#: A relative standard error below this is rounding, not spread.
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A ratio and its interval, from a normal theory on theta = ln(ratio). Where there is no interval,
    `reason` says why and low, high and p are NaN."""

    ratio: float  # speed-up: baseline over arm
    low: float
    high: float
    theta: float  # ln(ratio)
    se: float  # of theta; NaN when unknown (n = 1), 0 when the units show no spread
    df: float  # degrees of freedom of se
    n: int  # units
    p: float  # two-sided, of theta = 0
    reason: str | None = None


@dataclass(frozen=True)
class Difference:
    """A mean paired difference and its t interval; units are those of the data."""

    mean: float
    low: float
    high: float
    se: float
    df: float
    n: int  # pairs with both values
    p: float
    reason: str | None = None


@dataclass(frozen=True)
class AtTarget:
    """The speed-up at one target level: no ratio (NaN, with the reason) unless every seed of both arms
    reaches it."""

    target: float  # nats per example
    baseline_hits: int
    arm_hits: int
    seeds: int
    estimate: Estimate


def t_quantile(level: float, df: float, family: int = 1) -> float:
    """Half-width of an interval in standard errors: Student's t, Bonferroni over `family` intervals."""
    if family < 1:
        raise ValueError(f"the family needs at least one member, got {family}")
    return float(special.stdtrit(df, 1.0 - (1.0 - level) / (2.0 * family)))


def _t_test(effect: float, se: float, df: float, n: int) -> tuple[float, str | None]:
    """Two-sided p of effect = 0, and why there is no interval."""
    if math.isnan(effect):
        return NAN, "no value"
    if math.isnan(se):
        return NAN, "one unit: no interval"
    if se == 0.0:
        return NAN, f"no spread between {n} units: no interval"
    return float(2.0 * special.stdtr(df, -abs(effect) / se)), None


def _estimate(theta: float, se: float, df: float, n: int, level: float) -> Estimate:
    p, reason = _t_test(theta, se, df, n)
    estimate = Estimate(_exp(theta), NAN, NAN, theta, se, df, n, p, reason)
    low, high = simultaneous_interval(estimate, 1, level)
    return replace(estimate, low=low, high=high)


def _no_estimate(reason: str, n: int = 0) -> Estimate:
    return Estimate(NAN, NAN, NAN, NAN, NAN, NAN, n, NAN, reason)


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):  # two units and a large family: the upper limit really is infinite
        return float(np.exp(value))


def units(values: npt.ArrayLike, blocks: npt.ArrayLike | None = None) -> Array:
    """The units of analysis: `values` (S,) themselves without `blocks`, the experiment with one block; else
    the mean of each block (R,), from its label for each value (S,), in the order of the labels.

    Seeds of one block share one tuning, whose luck they have in common, so the block mean is the unit:
    also while only one of several blocks is finished, which is then a single unit without an interval.
    """
    values = np.asarray(values, dtype=np.float64)
    if blocks is None:
        return values
    _, index = np.unique(np.asarray(blocks), return_inverse=True)
    if index.shape != values.shape:
        raise ValueError(f"one block label for each value, got {index.shape} labels, {values.shape} values")
    return np.bincount(index, weights=values) / np.bincount(index)


def log_mean_contrast(E: npt.ArrayLike, weights: npt.ArrayLike) -> tuple[Array, Array]:
    """theta = sum_k w_k ln(mean_s E_ks) and its standard error by the delta method.

    E (..., k, n) positive, weights (k,); both results (...,). The influence of unit s is
    sum_k w_k E_ks / mean_k (van der Vaart 1998, ch. 3), so pairing is kept; SE = sd_s / sqrt(n), ddof 1.
    SE is NaN for n = 1 and exactly 0 where the units differ by rounding only.

    Raises ValueError where a mean isn't positive and finite.
    """
    E, w = np.asarray(E, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    n = E.shape[-1]
    if not n or not ((E > 0.0) & np.isfinite(E)).all():
        raise ValueError(
            "E must be positive and finite, one or more units: set misses to tau first (censored)"
        )
    mean = E.mean(axis=-1, keepdims=True)
    theta = (w * np.log(mean[..., 0])).sum(axis=-1)
    if n == 1:
        return theta, np.full(theta.shape, np.nan)
    influence = (w[:, None] * (E / mean)).sum(axis=-2)
    se = influence.std(axis=-1, ddof=1) / math.sqrt(n)
    return theta, np.where(se < _NO_SPREAD, 0.0, se)


def _paired_ratio(E: Sequence[npt.ArrayLike], weights: Sequence[float], level: float) -> Estimate:
    rows = np.array([np.asarray(row, dtype=np.float64) for row in E])
    theta, se = log_mean_contrast(rows, weights)
    n = rows.shape[-1]
    return _estimate(float(theta), float(se), float(n - 1), n, level)


def speed_up(baseline_E: npt.ArrayLike, arm_E: npt.ArrayLike, level: float = 0.95) -> Estimate:
    """Speed-up of an arm over the baseline: ratio of mean E, paired over units, both (n,) examples.

    theta = ln(mean B / mean A); SE = sd_s(B_s / mean B - A_s / mean A) / sqrt(n); interval
    exp(theta +- t_{n-1} SE); p by t on theta. No interval at n = 1 or without spread.
    """
    return _paired_ratio([baseline_E, arm_E], [1.0, -1.0], level)


def unpaired_speed_up(baseline_E: npt.ArrayLike, arm_E: npt.ArrayLike, level: float = 0.95) -> Estimate:
    """Speed-up where no seed is common: ratio of geometric means of E, (n,) and (m,), Welch's t on the logs.

    theta = mean ln B - mean ln A, SE^2 = s_B^2 / n + s_A^2 / m, degrees of freedom by Welch-Satterthwaite (Welch
    1947); `n` is the smaller of the two numbers of runs, and with one of either there is no interval.
    """
    logs = [np.log(np.asarray(E, dtype=np.float64)) for E in (baseline_E, arm_E)]
    theta = float(logs[0].mean() - logs[1].mean())
    n = min(log.size for log in logs)
    if n < 2:
        return _estimate(theta, NAN, NAN, n, level)
    se = [float(log.std(ddof=1)) / math.sqrt(log.size) for log in logs]
    total, df = welch_satterthwaite(se, [log.size - 1.0 for log in logs])
    return _estimate(theta, 0.0 if total < _NO_SPREAD else total, df, n, level)


def conditional_ratio(
    baseline_E: npt.ArrayLike,
    baseline_hit: npt.ArrayLike,
    arm_E: npt.ArrayLike,
    arm_hit: npt.ArrayLike,
    blocks: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> Estimate:
    """`speed_up` on the seeds (S,) where both reach the target: conditional on that, so easy seeds only.

    Label it so. E of misses isn't looked at. `n` is the number of joint hits, or of blocks with one.
    """
    joint = np.asarray(baseline_hit, dtype=bool) & np.asarray(arm_hit, dtype=bool)
    if not joint.any():
        return _no_estimate("no seed on which both reach the target")
    kept = None if blocks is None else np.asarray(blocks)[joint]
    pair = [units(np.asarray(E, dtype=np.float64)[joint], kept) for E in (baseline_E, arm_E)]
    return speed_up(pair[0], pair[1], level)


def rmst_ratio(
    baseline_E: npt.ArrayLike,
    baseline_hit: npt.ArrayLike,
    arm_E: npt.ArrayLike,
    arm_hit: npt.ArrayLike,
    tau: float,
    blocks: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> Estimate:
    """Ratio of restricted mean times to target, baseline over arm, truncated at tau (Royston & Parmar 2013).

    All (S,). Every run lasts to tau, so the area under its Kaplan-Meier curve is the mean of min(E, tau).
    The truncation pulls the ratio towards 1: label it truncated.
    """
    pair = [
        units(np.minimum(censored(E, hit, tau), tau), blocks)
        for E, hit in ((baseline_E, baseline_hit), (arm_E, arm_hit))
    ]
    return speed_up(pair[0], pair[1], level)


def speed_up_by_target(
    baseline_curves: Sequence[Curve],
    arm_curves: Sequence[Curve],
    targets: npt.ArrayLike,
    blocks: npt.ArrayLike | None = None,
    level: float = 0.95,
    *,
    paired: bool = True,
    until: float = math.inf,
) -> list[AtTarget]:
    """The speed-up at each target (T,) nats, from the same S paired curves (any number of each, not `paired`): how far
    the answer hangs on the choice of target. What comes after `until` examples is no hit. The recipes stay those tuned
    at the main target: label it so."""
    rows = []
    for target in np.asarray(targets, dtype=np.float64):
        B, baseline_hit = targets_reached(baseline_curves, float(target))
        A, arm_hit = targets_reached(arm_curves, float(target))
        baseline_hit, arm_hit = baseline_hit & (until >= B), arm_hit & (until >= A)
        hits = int(baseline_hit.sum()), int(arm_hit.sum())
        if baseline_hit.all() and arm_hit.all():
            estimate = (
                speed_up(units(B, blocks), units(A, blocks), level)
                if paired
                else unpaired_speed_up(B, A, level)
            )
        else:
            reason = f"reached by {hits[0]} of {B.size} baseline and {hits[1]} of {A.size} arm seeds"
            estimate = _no_estimate(reason, B.size)
        rows.append(AtTarget(float(target), *hits, B.size, estimate))
    return rows


def combine_check(
    baseline_E: npt.ArrayLike,
    singles_E: Sequence[npt.ArrayLike],
    combined_E: npt.ArrayLike,
    level: float = 0.95,
) -> Estimate:
    """Does the combined arm add up? Its speed-up over the product of the singles' speed-ups.

    Baseline and combined (n,), singles k times (n,), all on the same units of the combine block. theta is
    ln(combined) - sum of ln(singles) = (1 - k) ln B - ln C + sum_i ln A_i of the means, with the delta
    method on the joint influences. Below 1: less than the parts promise.
    """
    k = len(singles_E)
    return _paired_ratio([baseline_E, combined_E, *singles_E], [1.0 - k, -1.0, *[1.0] * k], level)


def throughput_factor(arm_eps: npt.ArrayLike, baseline_eps: npt.ArrayLike, level: float = 0.95) -> Estimate:
    """Throughput of the arm over the baseline from interleaved pairs, examples per second, both (J,).

    Mean of ln(arm / baseline) over pairs, with a t interval: drift of the machine is common to a pair.
    """
    arm, baseline = np.asarray(arm_eps, dtype=np.float64), np.asarray(baseline_eps, dtype=np.float64)
    theta, se = _log_ratio(np.log(arm), np.log(baseline))
    return _estimate(theta, se, float(arm.size - 1), arm.size, level)


def _log_ratio(log_arm: Array, log_baseline: Array) -> tuple[float, float]:
    d = log_arm - log_baseline
    se = float(d.std(ddof=1)) / math.sqrt(d.size) if d.size > 1 else NAN
    return float(d.mean()), 0.0 if se < _NO_SPREAD else se


def welch_satterthwaite(se: Sequence[float], df: Sequence[float]) -> tuple[float, float]:
    """SE and degrees of freedom of a sum of independent terms (Welch 1947; Satterthwaite 1946):
    df = (sum v)^2 / sum(v^2 / df), v = se^2. A term without variance takes no part."""
    parts = [(s * s, d) for s, d in zip(se, df, strict=True) if s != 0.0]
    v = sum(part for part, _ in parts)
    return math.sqrt(v), v * v / sum(part * part / d for part, d in parts) if parts else NAN


def with_throughput(
    estimate: Estimate, log_r: float, se_log_r: float, df_r: float, level: float = 0.95
) -> Estimate:
    """Speed-up in seconds: the ratio in examples times the throughput factor r, given as ln r, its SE and df
    (theta, se, df of `throughput_factor`).

    Variances of the logs add (the timing is apart from the trials), df by Welch-Satterthwaite. Without an
    interval of the examples, or with an r timed once (SE NaN), the product has none either.
    """
    theta = estimate.theta + log_r
    reason = estimate.reason
    if reason is None and math.isnan(se_log_r):
        reason = "throughput timed once: no interval"
    if reason is not None:
        return Estimate(_exp(theta), NAN, NAN, theta, NAN, NAN, estimate.n, NAN, reason)
    se, df = welch_satterthwaite([estimate.se, se_log_r], [estimate.df, df_r])
    return _estimate(theta, se, df, estimate.n, level)


def with_cold_start(
    baseline_E: npt.ArrayLike,
    arm_E: npt.ArrayLike,
    baseline_eps: npt.ArrayLike,
    arm_eps: npt.ArrayLike,
    baseline_cold: float,
    arm_cold: float,
    level: float = 0.95,
) -> Estimate:
    """Speed-up in total seconds, one-off cost C included: (C_B + B / r_B) / (C_A + A / r_A).

    E (n,) examples on the same units; examples per second (J,) from interleaved pairs, r their geometric
    mean; C seconds, taken as known. Delta method: each arm's logs weigh by w, the share of its seconds
    that isn't cold start. With both C = 0 it is `with_throughput` exactly.
    """
    E = np.array([np.asarray(baseline_E, dtype=np.float64), np.asarray(arm_E, dtype=np.float64)])
    log_eps = np.log(np.array([np.asarray(baseline_eps, dtype=float), np.asarray(arm_eps, dtype=float)]))
    running = E.mean(axis=1) / np.exp(log_eps.mean(axis=1))
    total = running + np.array([baseline_cold, arm_cold], dtype=np.float64)
    w = running / total
    _, se_E = log_mean_contrast(E, w * [1.0, -1.0])
    _, se_r = _log_ratio(w[1] * log_eps[1], w[0] * log_eps[0])
    n = E.shape[1]
    of_examples = _estimate(float(np.log(total[0] / total[1])), float(se_E), float(n - 1), n, level)
    return with_throughput(of_examples, 0.0, se_r, float(log_eps.shape[1] - 1), level)


def simultaneous_interval(estimate: Estimate, family: int, level: float = 0.95) -> tuple[float, float]:
    """Limits of the ratio that hold for all `family` members together (Bonferroni-t: each at
    1 - (1 - level) / family); the plain interval at family = 1; NaN where the estimate has none."""
    t = t_quantile(level, estimate.df, family)
    if estimate.reason is not None:
        return NAN, NAN
    return _exp(estimate.theta - t * estimate.se), _exp(estimate.theta + t * estimate.se)


def paired_difference(baseline: npt.ArrayLike, arm: npt.ArrayLike, level: float = 0.95) -> Difference:
    """Mean of arm - baseline over pairs, both (n,), with a t interval: test losses at the hit, in nats
    (above 0: the arm is worse). A pair with a value that isn't finite (no hit, no test) is left out of n."""
    d = np.asarray(arm, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    d = d[np.isfinite(d)]
    n = d.size
    if not n:
        return Difference(NAN, NAN, NAN, NAN, NAN, 0, NAN, "no pair with both values")
    mean, df = float(d.mean()), float(n - 1)
    se = float(d.std(ddof=1)) / math.sqrt(n) if n > 1 else NAN
    p, reason = _t_test(mean, se, df, n)
    half = t_quantile(level, df) * se if reason is None else NAN
    return Difference(mean, mean - half, mean + half, se, df, n, p, reason)
