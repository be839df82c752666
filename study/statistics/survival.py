"""Time to target with misses: the share still short of the target, and scores that count a miss."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from study.statistics.curves import Array


def censored(E: npt.ArrayLike, hit: npt.ArrayLike, tau: float) -> Array:
    """E (...,) with every miss set to tau, examples; what the misses held before doesn't matter."""
    return np.where(np.asarray(hit, dtype=bool), np.asarray(E, dtype=np.float64), float(tau))


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


def kaplan_meier(E: npt.ArrayLike, hit: npt.ArrayLike, level: float = 0.95) -> KaplanMeier:
    """Product-limit estimate of the share still short of the target (Kaplan & Meier 1958).

    E (S,) examples, misses where they were censored (tau); hit (S,). Limits on the log(-log) scale (Kalbfleisch
    & Prentice 2002, eq. 1.14), which stay inside [0, 1]. Misses at a time are counted at risk for hits at that time.

    Raises ValueError for an E that isn't finite.
    """
    from scipy import stats  # 0.4 s of processor time: only where a curve is wanted

    times, event = np.asarray(E, dtype=np.float64), np.asarray(hit, dtype=bool)
    if not np.isfinite(times).all():
        raise ValueError("E must be finite: set misses to tau first (censored)")
    estimate = stats.ecdf(stats.CensoredData.right_censored(times, ~event)).sf
    survival = estimate.probabilities
    with warnings.catch_warnings():  # no limits at 0 and 1: dealt with below
        warnings.filterwarnings("ignore", "The confidence interval is undefined", RuntimeWarning)
        band: Any = estimate.confidence_interval(level, method="log-log")
    # scipy gives none where survival is 1, before the first hit: there both limits are 1, for nothing has happened.
    low, high = (np.where(survival == 1.0, 1.0, limit.probabilities) for limit in (band.low, band.high))
    start = [1.0]
    return KaplanMeier(
        examples=np.concatenate([[0.0], estimate.quantiles]),
        survival=np.concatenate([start, survival]),
        low=np.concatenate([start, low]),
        high=np.concatenate([start, high]),
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
