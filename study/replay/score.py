"""What each policy saved and what it cost, over many orders of arrival; and which to use, by a stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, spearmanr

from study.replay.policies import Kind, Policy, to_target
from study.replay.simulate import Orders, total, used
from study.replay.tapes import Tapes
from study.statistics.curves import Array
from study.statistics.verdicts import clopper_pearson

#: A regret up to this share of the gap between the best run and the median one is small.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Score:
    """One policy with some number of workers."""

    policy: Policy
    workers: int
    orders: int
    share: float
    """Of all training examples (steps, epochs), what was used: mean over orders; 1 - share was saved."""
    seconds_share: float
    """The same of seconds."""
    makespan: float
    """Seconds until the last worker is done: median over orders."""
    regret: float
    """How much worse than the best run what was found is: median over orders, in the value's unit; on the clock for a
    policy that selects by time to target. 0 too where it is better, a run that was ended before it would have broken
    down; infinite where nothing was found."""
    regret_p90: float
    """90th percentile over orders."""
    regret_p90_interval: tuple[float, float]
    """95 % interval of that percentile, from order statistics: for the luck of these orders alone."""
    best_cut: float
    """Share of orders in which the best run of all was ended early and what was found is worse. One that had shown all
    it had by then, or beside which another as good was found, has cost nothing."""
    best_cut_interval: tuple[float, float]
    """Exact 95 % interval."""
    cut: Array
    """(n,) share of orders in which each run was ended early."""


def score(tapes: Tapes, orders: Orders) -> Score:
    """Sum up the orders of one policy."""
    policy = orders.policy
    played = orders.played
    n = len(played)
    all_of_it = total(tapes)
    spent = [used(tapes, one) for one in played]
    lengths = np.array([len(tape) for tape in tapes.runs])
    cut = np.array([one.seen < lengths for one in played])
    if policy.kind is Kind.TARGET and policy.target is not None:
        # Its runs end at the target, which cuts nothing short.
        reached = [to_target(tape, policy.target) for tape in tapes.runs]
        times = np.array([np.inf if at is None else at for at in reached])
        reference = float(times.min())
    else:
        reference = float(tapes.finals.min())
    regret = np.sort([0.0 if one.found <= reference else one.found - reference for one in played])
    n_cut = int((regret > 0.0).sum())
    return Score(
        policy=policy,
        workers=orders.workers,
        orders=n,
        share=float(np.mean([one["clock"] for one in spent])) / all_of_it["clock"],
        seconds_share=float(np.mean([one["seconds"] for one in spent])) / all_of_it["seconds"],
        makespan=float(np.median([one.makespan for one in played])),
        regret=_quantile(regret, 0.5),
        regret_p90=_quantile(regret, 0.9),
        regret_p90_interval=quantile_interval(regret, 0.9),
        best_cut=n_cut / n,
        best_cut_interval=clopper_pearson(n_cut, n),
        cut=cut.mean(axis=0),
    )


def _quantile(ranked: Array, share: float) -> float:
    """An observed value: the smallest that at least that share of the values doesn't exceed."""
    return float(ranked[max(0, int(np.ceil(share * len(ranked))) - 1)])


def quantile_interval(ranked: Array, share: float, level: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval of a quantile from ranked values (n,): order statistics whose ranks the binomial
    distribution gives (Conover 1999, section 3.2). The outermost value stands in where n is too small for a limit."""
    n, tail = len(ranked), (1.0 - level) / 2.0
    low = int(binom.ppf(tail, n, share)) - 1
    high = int(binom.ppf(1.0 - tail, n, share))
    return float(ranked[max(0, low)]), float(ranked[min(n - 1, high)])


@dataclass(frozen=True)
class Early:
    """How well an early look at the runs foretells their ends."""

    share: float
    """Of the whole clock."""
    clock: float
    rank_correlation: float
    """Spearman's, of the lowest values so far and the lowest in the end; NaN where it isn't defined."""
    best_rank: int
    """The rank, from 1, of the best run of all at that look."""


def early_looks(tapes: Tapes, shares: Sequence[float] = (0.1, 0.25, 0.5, 0.75)) -> list[Early]:
    """The looks at these shares of the clock; a run that has no evaluation yet, or none that is finite, ranks last."""
    worst = float(np.max(tapes.finals[np.isfinite(tapes.finals)])) + 1.0
    finals = np.where(np.isfinite(tapes.finals), tapes.finals, worst)
    found = []
    for share in shares:
        number = tapes.number_at(share)
        so_far = np.array(
            [tape.best_after(int(np.searchsorted(tape.numbers, number, side="right"))) for tape in tapes.runs]
        )
        finite = so_far[np.isfinite(so_far)]
        values = np.where(np.isfinite(so_far), so_far, (finite.max() if finite.size else 0.0) + 1.0)
        varied = len(set(values)) > 1 and len(set(finals)) > 1
        rho = float(spearmanr(values, finals).statistic) if varied else float("nan")
        rank = int((values < values[tapes.best]).sum()) + 1
        found.append(Early(share, float(tapes.grid[number]), rho, rank))
    return found


@dataclass(frozen=True)
class Unfair:
    """How often a policy cuts good runs short, those whose schedule has a horizon apart from the others."""

    policy: str
    with_horizon: float
    """Of the runs better than the median, those with a horizon: mean share of orders in which they are cut."""
    without: float
    """The same of those without."""


def unfair(tapes: Tapes, scores: Sequence[Score]) -> list[Unfair]:
    """For every policy that looks across runs or stages; empty unless both kinds are among the better half."""
    good = tapes.finals <= tapes.median
    horizon = np.array([tape.has_horizon for tape in tapes.runs])
    if not (good & horizon).any() or not (good & ~horizon).any():
        return []
    return [
        Unfair(s.policy.name, float(s.cut[good & horizon].mean()), float(s.cut[good & ~horizon].mean()))
        for s in scores
        if s.policy.kind in (Kind.ACROSS, Kind.STAGE)
    ]


def front(scores: Sequence[Score]) -> list[Score]:
    """Those that no other beats in both, share used and 90th percentile of the regret; by share. Policies that select
    by time to target ask another question and are left out."""
    rivals = sorted(
        (s for s in scores if s.policy.kind.selects_by_value), key=lambda s: (s.share, s.regret_p90)
    )
    kept: list[Score] = []
    for one in rivals:
        if not kept or one.regret_p90 < kept[-1].regret_p90:
            kept.append(one)
    return kept


def recommended(tapes: Tapes, scores: Sequence[Score], tolerance: float = TOLERANCE) -> Score:
    """The policy that uses the smallest share among those whose regret is small: the upper limit of its 90th
    percentile is at most `tolerance` of the gap between the best run and the median one. Running all to their ends is
    one of them, so there always is one."""
    limit = tolerance * tapes.gap
    good = [s for s in scores if s.policy.kind.selects_by_value and s.regret_p90_interval[1] <= limit]
    return min(good, key=lambda s: (s.share, s.regret_p90))
