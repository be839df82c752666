"""Verdicts: the margin, the family, and how often they are wrong when nothing is there."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from study.statistics.speed_up import speed_up
from study.statistics.verdicts import (
    Hits,
    Verdict,
    clopper_pearson,
    holm,
    rate,
    smallest_n,
    unreliable_hits,
    verdict,
)

NAN = float("nan")
TEN = np.ones(10, dtype=bool)


# Holm


def test_holm_by_hand():
    """0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 raised to the one before; never above 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).size == 0


def test_a_member_without_p_still_counts():
    """None and NaN stay without a p and keep the family at its size."""
    assert holm([0.01, None, 0.02, NAN]) == pytest.approx([0.04, NAN, 0.06, NAN], nan_ok=True)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_of_bonferroni(p):
    """The adjusted p of a member is the largest Bonferroni p over all subfamilies that hold it."""
    for i, ours in enumerate(holm(p)):
        subsets = [
            s for r in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), r) if i in s
        ]
        assert ours == pytest.approx(max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.integers(1, 5))
def test_a_larger_family_is_stricter(p, more):
    """Adjusted p-values are never below the raw ones and never fall as members without a p are added."""
    alone, among = holm(p), holm([*p, *[None] * more])
    assert (alone >= p).all()
    assert (among[: len(p)] >= alone).all()


# verdicts


def decided(theta: float, se: float):
    return replace(speed_up([90, 110, 100, 95, 105], [45, 50, 55, 46, 52]), theta=theta, se=se, df=9.0)


@pytest.mark.parametrize(
    ("edge", "expected"),
    [(1.0501, "faster"), (1.0499, "not distinguishable"), (1.0, "not distinguishable")],
)
def test_faster_starts_at_the_margin(edge, expected):
    """The lower simultaneous limit just above 1.05 is faster, just below it isn't, though p is tiny."""
    se = 0.01
    theta = math.log(edge) + stats.t.ppf(1 - 0.05 / 20, 9) * se
    assert verdict(decided(theta, se), TEN, TEN, family=10) == expected


@pytest.mark.parametrize(
    ("edge", "expected"),
    [(1 / 1.0501, "slower"), (1 / 1.0499, "not distinguishable"), (1.0, "not distinguishable")],
)
def test_slower_starts_at_the_inverse_margin(edge, expected):
    """The upper simultaneous limit just below 1 / 1.05 is slower, just above it isn't."""
    se = 0.01
    theta = math.log(edge) - stats.t.ppf(1 - 0.05 / 20, 9) * se
    assert verdict(decided(theta, se), TEN, TEN, family=10) == expected


def test_the_family_and_the_margin_decide():
    """The same estimate is faster in a small family or with a small margin, undecided in a large one."""
    estimate = decided(math.log(1.2), 0.035)
    assert verdict(estimate, TEN, TEN, family=1) == "faster"
    assert verdict(estimate, TEN, TEN, family=50) == "not distinguishable"
    assert verdict(estimate, TEN, TEN, family=50, margin=0.0) == "faster"
    assert verdict(estimate, TEN, TEN, family=1, level=0.9999) == "not distinguishable"


def test_hits_come_before_ratios():
    """No hit: never. Fewer than S hits: unreliable, however large the ratio, with k of S beside it; the
    baseline's misses count when the arm has none."""
    estimate = decided(math.log(5.0), 0.01)
    some = np.arange(10) < 7
    assert verdict(estimate, ~TEN, TEN, family=3) == "never reaches the target"
    for arm, baseline, hits in (
        (some, TEN, Hits(7, 10)),
        (TEN, ~TEN, Hits(0, 10)),
        (some, np.arange(10) < 3, Hits(7, 10)),
    ):
        assert verdict(estimate, arm, baseline, family=3) is Verdict.UNRELIABLE
        assert unreliable_hits(arm, baseline) == hits
    assert verdict(estimate, TEN, TEN, family=3) is Verdict.FASTER
    assert unreliable_hits(TEN, TEN) is None
    assert str(Hits(7, 10)) == "7 of 10"


def test_every_verdict_says_what_it_means():
    """A verdict carries its sentence, and only faster and slower claim a difference."""
    assert all(word.sentence for word in Verdict)
    assert {word for word in Verdict if word.decided} == {Verdict.FASTER, Verdict.SLOWER}


def test_no_interval_no_verdict():
    """One unit or no spread decide nothing, even at 2x."""
    for pair in (([100], [50]), ([100, 100], [50, 50])):
        hit = np.ones(len(pair[0]), dtype=bool)
        assert verdict(speed_up(*pair), hit, hit, family=1) == "not distinguishable"


# how many more


def test_smallest_n_by_hand():
    """sd 0.1, one arm, margin 5 %: the least n with t_{n-1} 0.1 / sqrt(n) below ln 1.05 = 0.0488 is 19
    (2.101 x 0.02294 = 0.0482 at 19, 2.110 x 0.02357 = 0.0497 at 18)."""
    assert smallest_n(0.1, family=1) == 19
    assert smallest_n(0.1, family=1, effect=-2 * math.log(1.05)) == 19


@pytest.mark.parametrize("effect", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("family", [1, 12])
def test_smallest_n_decides_and_one_fewer_does_not(effect, family):
    """At the n it gives, an estimate with that effect and sd is faster; with one unit fewer it isn't."""
    sd = 0.08
    n = smallest_n(sd, family=family, effect=effect)
    assert n is not None
    for units, word in ((n, "faster"), (n - 1, "not distinguishable")):
        if units > 1:
            estimate = replace(decided(effect, sd / math.sqrt(units)), df=units - 1.0)
            assert verdict(estimate, TEN, TEN, family=family) == word


def test_some_effects_are_never_decided():
    """An effect within the margin, an unknown sd or a need above the limit: None; no spread: 2 units."""
    assert smallest_n(0.1, family=5, effect=math.log(1.05)) is None
    assert smallest_n(NAN, family=5) is None
    assert smallest_n(10.0, family=5, limit=100) is None
    assert smallest_n(0.0, family=5) == 2


def test_tuning_luck_cannot_be_averaged_away():
    """With a variance v of tuning the half-width never falls below 1.96 sqrt(v): more units are needed, or none
    suffice. By hand: one arm, effect 0.2, sd 0.1, v = 0.04^2: 0.1512 is room for t_{n-1} sqrt(0.01 / n + 0.0016)."""
    room = 0.2 - math.log(1.05)
    n = smallest_n(0.1, family=1, effect=0.2, tuning_variance=0.0016)
    assert n is not None
    for units, fits in ((n, True), (n - 1, False)):
        half = stats.t.ppf(0.975, units - 1) * math.sqrt(0.01 / units + 0.0016)
        assert bool(half < room) is fits
    assert n > smallest_n(0.1, family=1, effect=0.2)
    assert smallest_n(0.1, family=1, effect=0.2, tuning_variance=(room / 1.95) ** 2) is None


@settings(deadline=None)
@given(st.floats(0.01, 1.0), st.floats(1.0, 2.0), st.integers(1, 30))
def test_more_noise_or_arms_need_more_units(sd, times, family):
    """n never falls with sd or with the family."""
    n = smallest_n(sd, family=family) or math.inf
    assert (smallest_n(times * sd, family=family) or math.inf) >= n
    assert (smallest_n(sd, family=family + 1) or math.inf) >= n


# shares


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 40), st.sampled_from([0.9, 0.95, 0.99]))
def test_clopper_pearson_by_beta_quantiles(k, n, level):
    """The limits are quantiles of Beta(k, n - k + 1) and Beta(k + 1, n - k) (Clopper & Pearson 1934)."""
    k = min(k, n)
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, k, n - k + 1) if k else 0.0
    high = stats.beta.ppf(1 - tail, k + 1, n - k) if k < n else 1.0
    assert clopper_pearson(k, n, level) == pytest.approx((low, high), abs=1e-9)


def test_clopper_pearson_by_hand():
    """0 of n: the upper limit is 1 - 0.025^(1/n); n of n mirrors it; nothing known at n = 0."""
    assert clopper_pearson(0, 10) == (0.0, pytest.approx(1 - 0.025 ** (1 / 10)))
    assert clopper_pearson(10, 10) == (pytest.approx(0.025 ** (1 / 10)), 1.0)
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="11 of 10"):
        clopper_pearson(11, 10)


def test_a_rate_by_hand():
    """2 of 4 and its exact interval; of none there is no share, and anything is possible."""
    two = rate(2, 4)
    assert (two.k, two.n, two.share) == (2, 4, 0.5)
    assert (two.low, two.high) == clopper_pearson(2, 4)
    nothing = rate(0, 0)
    assert (nothing.n, nothing.low, nothing.high) == (0, 0.0, 1.0)
    assert math.isnan(nothing.share)
