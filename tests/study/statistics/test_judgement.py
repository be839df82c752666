"""The family's verdicts: tuning's luck in every interval, misses counted, one p that decides, looks that share."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from study.statistics.judgement import Pair, judge_family
from study.statistics.speed_up import speed_up, throughput_factor
from study.statistics.verdicts import Verdict

TAU = 1000.0
BASELINE = np.exp(np.random.default_rng(1).normal(5.0, 0.15, 20))


def pair(ratio: float, seed: int = 2, sd: float = 0.15, misses: int = 0) -> Pair:
    """An arm that is `ratio` times as fast, with luck of its own; its last seeds miss."""
    E = BASELINE / ratio * np.exp(np.random.default_rng(seed).normal(0.0, sd, 20))
    hit = np.arange(20) < 20 - misses
    return Pair(
        np.arange(20), BASELINE, np.ones(20, bool), np.where(hit, E, TAU), hit, tuning_variance=0.03**2
    )


def noise(n: int) -> np.ndarray:
    """The luck of n seeds, a factor each."""
    return np.exp(np.random.default_rng(3).normal(0.0, 0.1, n))


def judged(*pairs: Pair | None, variance: float = 0.03**2, looks: tuple[int, ...] = (20,)):
    return judge_family(pairs, baseline_variance=variance, looks=looks, margin=0.02)


def test_one_arm_by_hand() -> None:
    """SE^2 is the paired ratio's plus both tunings' variances; p is beyond the margin, at the first look's share."""
    (found,) = judged(one := pair(1.3))
    assert found is not None
    examples, seconds = found
    assert seconds is None
    plain = speed_up(one.baseline_examples, one.arm_examples)
    se = math.sqrt(plain.se**2 + 2 * 0.03**2)
    assert examples.estimate.se == pytest.approx(se)
    p = 2 * stats.t.sf((abs(plain.theta) - math.log(1.02)) / se, 19)
    assert examples.estimate.p == pytest.approx(p)
    assert examples.p == pytest.approx(min(p / 0.9, 1.0))
    half = stats.t.ppf(1 - 0.05 * 0.9 / 2, 19) * se
    assert np.log(examples.simultaneous) == pytest.approx([plain.theta - half, plain.theta + half])


def test_verdicts_of_a_family() -> None:
    """Fast, slow, nothing, too many misses, none at all and not there: each gets its word, and who misses too often
    says nothing of the others' spread."""
    never = replace(pair(1.0), arm_hit=np.zeros(20, bool), arm_examples=np.full(20, TAU))
    family = judged(pair(2.0), pair(0.5, 3), pair(1.0, 4), pair(2.0, 5, misses=3), never, None)
    words = [None if found is None else found[0].verdict for found in family]
    assert words == [
        Verdict.FASTER,
        Verdict.SLOWER,
        Verdict.UNDECIDED,
        Verdict.UNRELIABLE,
        Verdict.NEVER,
        None,
    ]
    unreliable = family[3]
    assert unreliable is not None
    assert math.isnan(unreliable[0].estimate.ratio)
    # The family still counts six, but its spread is that of the three that were judged.
    alone = judged(pair(2.0), pair(0.5, 3), pair(1.0, 4), None, None, None)
    assert [found and found[0].p for found in family[:3]] == [found and found[0].p for found in alone[:3]]


def test_a_verdict_keeps_its_sign() -> None:
    """An arm that a first look calls faster is not called slower by that look's p, though four further seeds miss and
    the ratio of all falls below 1; without the first look nothing could be said."""
    E = np.concatenate([BASELINE, BASELINE])
    hit = ~np.isin(np.arange(40), range(20, 24))
    arm = Pair(np.arange(40), E, np.ones(40, bool), np.where(hit, E / 1.4 * noise(40), TAU), hit)
    (found,) = judged(arm, looks=(20, 40))
    (at_once,) = judged(arm, looks=(40,))
    assert found is not None
    assert at_once is not None
    assert found[0].estimate.ratio < 1.0 < found[0].simultaneous[0]
    assert (found[0].verdict, at_once[0].verdict) == (Verdict.FASTER, Verdict.UNDECIDED)


def test_two_misses_of_twenty_are_counted() -> None:
    """Up to one in ten the misses stand in the mean at tau, and there is a verdict; with three there is none."""
    (found,) = judged(two := pair(2.0, misses=2))
    assert found is not None
    assert found[0].estimate.ratio == pytest.approx(BASELINE.mean() / two.arm_examples.mean())
    (three,) = judged(pair(2.0, misses=3))
    assert three is not None
    assert three[0].verdict is Verdict.UNRELIABLE


def test_a_baseline_that_misses_is_said_of_the_study() -> None:
    """Not of the arm, which reaches the target."""
    (found,) = judged(replace(pair(2.0), baseline_hit=np.arange(20) < 10))
    assert found is not None
    assert found[0].verdict is Verdict.UNRELIABLE_BASELINE


def test_not_tuned_is_no_unreliability() -> None:
    """An arm that misses, and of which no tuning run reached the tuning target, wasn't tuned."""
    (found,) = judged(replace(pair(2.0, misses=9), tuned=False))
    assert found is not None
    assert found[0].verdict is Verdict.NOT_TUNED


def test_seconds_are_the_ratio_times_the_throughput() -> None:
    """An arm that needs half the examples at a third of the speed is slower in seconds, in a verdict of its own."""
    eps = np.random.default_rng(5).normal(3000.0, 30.0, 10)
    (found,) = judged(replace(pair(2.0), throughput=throughput_factor(eps / 3.0, eps)))
    assert found is not None
    examples, seconds = found
    assert seconds is not None
    assert seconds.estimate.ratio == pytest.approx(examples.estimate.ratio / 3.0)
    assert (examples.verdict, seconds.verdict) == (Verdict.FASTER, Verdict.SLOWER)


def test_a_look_more_costs() -> None:
    """The same seeds read at ten and again at twenty: a wider interval than at twenty alone, and a larger p, but a
    verdict that was given at ten stays."""
    (once,), (twice,) = judged(pair(1.2)), judged(pair(1.2), looks=(10, 20))
    assert once is not None
    assert twice is not None
    assert twice[0].p > once[0].p
    early, late = pair(2.0), pair(1.0, 7)
    both = replace(
        early,
        arm_examples=np.where(np.arange(20) < 10, early.arm_examples, 1.9 * late.arm_examples),
    )
    (kept,) = judged(both, looks=(10, 20))
    assert kept is not None
    assert kept[0].verdict in (Verdict.FASTER, Verdict.SLOWER)


def test_a_family_of_nulls_errs_in_one_of_twenty_at_most() -> None:
    """2,000 families of ten nulls whose tuning has luck of its own, seed 11, nothing censored: any false verdict in at
    most 5 %, by the lower limit of its interval; the luck left out of the interval errs in more."""
    rng = np.random.default_rng(11)
    wrong = {True: 0, False: 0}
    for _ in range(2000):
        base = np.exp(rng.normal(5.0, 0.15, 20))
        luck = rng.normal(0.0, 0.03, 11)
        arms = [base * np.exp(rng.normal(0.0, 0.15, 20) + one) for one in luck[1:]]
        for counted in wrong:
            v = 0.03**2 if counted else 0.0
            pairs = [
                Pair(
                    np.arange(20),
                    base * math.exp(luck[0]),
                    np.ones(20, bool),
                    arm,
                    np.ones(20, bool),
                    None,
                    v,
                )
                for arm in arms
            ]
            family = judged(*pairs, variance=v)
            wrong[counted] += any(found is not None and found[0].verdict.decided for found in family)
    low = stats.binomtest(wrong[True], 2000).proportion_ci(method="exact").low
    assert low < 0.05
    assert wrong[False] > wrong[True]
