"""Verdicts: what may be said of each arm, when a family of arms is tried at once."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from study.statistics.curves import Array
from study.statistics.speed_up import Estimate, simultaneous_interval, t_quantile


class Verdict(StrEnum):
    """What may be said of an arm beside the baseline."""

    FASTER = "faster"
    SLOWER = "slower"
    UNDECIDED = "not distinguishable"
    UNRELIABLE = "unreliable"
    UNRELIABLE_BASELINE = "baseline unreliable"
    NOT_TUNED = "not tuned"
    NEVER = "never reaches the target"
    NOT_MEASURED = "not measured yet"

    @property
    def sentence(self) -> str:
        """What it means, for a reader."""
        return _SENTENCES[self]

    @property
    def decided(self) -> bool:
        """Whether it claims a difference."""
        return self in (Verdict.FASTER, Verdict.SLOWER)

    @property
    def judged(self) -> bool:
        """Whether the arm could be compared: what is unreliable or not there claims no speed-up."""
        return self.decided or self is Verdict.UNDECIDED

    @property
    def missed(self) -> bool:
        """Whether the arm misses the target on too many seeds for more to be said."""
        return self in (Verdict.UNRELIABLE, Verdict.NEVER, Verdict.NOT_TUNED)


_SENTENCES = {
    Verdict.FASTER: "faster by more than the margin, the whole family of arms taken together",
    Verdict.SLOWER: "slower by more than the margin, the whole family of arms taken together",
    Verdict.UNDECIDED: "no difference beyond the margin is shown, the whole family of arms taken together",
    Verdict.UNRELIABLE: "too many seeds never reach the target",
    Verdict.UNRELIABLE_BASELINE: "the baseline reaches the target on too few seeds to compare anything with it",
    Verdict.NOT_TUNED: "too many seeds never reach the target, and no coarse point reached the tuning target",
    Verdict.NEVER: "no seed reaches the target",
    Verdict.NOT_MEASURED: "there is no finished confirmation run, or no timing, yet",
}


class Hits(NamedTuple):
    """How many of some seeds reach the target."""

    k: int
    n: int

    @property
    def misses(self) -> int:
        """How many don't."""
        return self.n - self.k

    def __str__(self) -> str:
        return f"{self.k} of {self.n}"


@dataclass(frozen=True)
class Rate:
    """A share k / n with its Clopper-Pearson interval; share is NaN at n = 0."""

    k: int
    n: int
    share: float
    low: float
    high: float


def holm(p: Sequence[float | None]) -> Array:
    """Step-down adjusted p-values (Holm 1979), (m,) in the order given.

    A member without a p (None or NaN) stays NaN and still counts: the family was fixed beforehand, and an
    arm that gave no p must not make the others' cheaper.
    """
    values = np.array([float("nan") if value is None else value for value in p], dtype=np.float64)
    m, order = values.size, np.argsort(values, kind="stable")  # NaN sorts last, as a p of 1 would
    adjusted = np.empty(m, dtype=np.float64)
    adjusted[order] = np.maximum.accumulate(np.minimum(values[order] * (m - np.arange(m)), 1.0))
    return adjusted


def verdict(
    estimate: Estimate,
    arm_hit: npt.ArrayLike,
    baseline_hit: npt.ArrayLike,
    *,
    family: int,
    margin: float = 0.05,
    level: float = 0.95,
) -> Verdict:
    """The verdict on one arm, from its estimate (examples or seconds) and the hits (S,) of both.

    NEVER: no hit; UNRELIABLE: `unreliable_hits` is not None; FASTER and SLOWER: the simultaneous interval for
    the family lies above 1 + margin, below 1 / (1 + margin); else UNDECIDED, as without an interval.
    `family` is the number of single-technique arms fixed beforehand, whatever became of them.
    """
    if not np.any(arm_hit):
        return Verdict.NEVER
    if unreliable_hits(arm_hit, baseline_hit) is not None:
        return Verdict.UNRELIABLE
    low, high = simultaneous_interval(estimate, family, level)
    if low > 1.0 + margin:
        return Verdict.FASTER
    if high < 1.0 / (1.0 + margin):
        return Verdict.SLOWER
    return Verdict.UNDECIDED


def unreliable_hits(arm_hit: npt.ArrayLike, baseline_hit: npt.ArrayLike) -> Hits | None:
    """The arm's hits where some of its seeds miss, else the baseline's where some of its seeds do; None where
    both always reach the target."""
    for hits in (np.asarray(arm_hit, dtype=bool), np.asarray(baseline_hit, dtype=bool)):
        if not hits.all():
            return Hits(int(hits.sum()), hits.size)
    return None


def smallest_n(
    sd: float,
    *,
    family: int,
    margin: float = 0.05,
    effect: float | None = None,
    tuning_variance: float = 0.0,
    level: float = 0.95,
    limit: int = 10_000,
) -> int | None:
    """How many units an arm needs for a verdict: the least n at which the half-width t sqrt(sd^2 / n + tuning
    variance) of the simultaneous interval fits between the effect and the margin; None if above `limit` or never,
    for more units don't lessen the luck of tuning (the sum of the baseline's and the arm's).

    `sd` is that of one unit's log ratio: se * sqrt(n) of an Estimate. `effect` is the log ratio to be
    decided, sign ignored; by default 2 ln(1 + margin), so that the half-width is the margin itself.
    The half-width is the expected one: at exactly this n and effect, about half of the studies decide.
    """
    room = (2.0 * math.log1p(margin) if effect is None else abs(effect)) - math.log1p(margin)

    def enough(n: int) -> bool:
        return t_quantile(level, n - 1.0, family) * math.sqrt(sd * sd / n + tuning_variance) < room

    n = 2 + bisect_left(range(2, limit + 1), True, key=enough)
    return n if n <= limit else None


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share k / n (Clopper & Pearson 1934); (0, 1) at n = 0."""
    if not 0 <= k <= n:
        raise ValueError(f"k must be between 0 and n, got {k} of {n}")
    if not n:
        return 0.0, 1.0
    # Beta quantiles, as scipy.stats.binomtest has them; importing that costs every command half a second.
    tail = (1 - level) / 2
    low = special.betaincinv(k, n - k + 1, tail) if k else 0.0
    high = special.betainccinv(k + 1, n - k, tail) if k < n else 1.0
    return float(low), float(high)


def rate(k: int, n: int, level: float = 0.95) -> Rate:
    """The share k / n with its interval."""
    return Rate(k, n, k / n if n else float("nan"), *clopper_pearson(k, n, level))
