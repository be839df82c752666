"""A family of arms: shared spread, the luck of tuning, one p that decides, looks, and what can be seen at all."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from study.statistics.family import (
    MARGIN,
    TYPICAL_TUNING_VARIANCE,
    decide,
    deciding_look,
    effect_in_reach,
    if_anything,
    interval_over_looks,
    look_share,
    moderated,
    over_looks,
    p_beyond,
    reliable,
    smallest_effect,
    trigamma_inverse,
    with_tuning,
)
from study.statistics.speed_up import simultaneous_interval, speed_up
from study.statistics.verdicts import Verdict, holm

NAN = float("nan")
INF = float("inf")


def estimate(theta=0.0, se=0.05, df=19.0, n=20):
    plain = speed_up([90, 110, 100, 95, 105], [45, 50, 55, 46, 52])
    return replace(plain, theta=theta, ratio=math.exp(theta), se=se, df=df, n=n)


# shared spread


@pytest.mark.parametrize("value", [1e-6, 0.01, 0.3, math.pi**2 / 6, 50.0, 1e5])
def test_trigamma_inverse(value):
    """trigamma(y) is the value; trigamma(1) is pi^2 / 6."""
    assert special.polygamma(1, trigamma_inverse(value)) == pytest.approx(value, rel=1e-8)


def test_equal_variances_are_pooled():
    """No more spread than chance: all get one variance, with all degrees of freedom together."""
    s2, df = moderated([1.0, 1.1, 0.9, 1.05], [10.0] * 4)
    assert len(set(s2)) == 1
    assert s2[0] == pytest.approx(
        np.exp(np.mean(np.log([1.0, 1.1, 0.9, 1.05]))) * 5 / np.exp(special.digamma(5))
    )
    assert df.tolist() == [40.0] * 4


def test_moderation_by_hand():
    """Four variances, 4 df: e = ln s2 - digamma(2) + ln 2; d0 from trigamma(d0 / 2) = var(e) - trigamma(2); each
    variance is the mean of prior and own, weighed by degrees of freedom."""
    raw = np.array([0.1, 1.0, 3.0, 30.0])
    s2, df = moderated(raw, [4.0] * 4)
    e = np.log(raw) - special.digamma(2.0) + math.log(2.0)
    d0 = 2 * trigamma_inverse(e.var(ddof=1) - special.polygamma(1, 2.0))
    prior = math.exp(e.mean() + special.digamma(d0 / 2) - math.log(d0 / 2))
    assert s2 == pytest.approx((d0 * prior + 4 * raw) / (d0 + 4))
    assert df == pytest.approx([4 + d0] * 4)
    assert 0.1 < s2[0] < prior < s2[3] < 30.0


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=9), st.floats(0.001, 1000), st.integers(1, 30))
def test_moderation_knows_no_unit_and_keeps_order(raw, scale, df):
    """Variances in other units are those variances; the largest stays the largest; nothing leaves the range of the
    raw ones and the prior; df never below the own and never above all together."""
    s2, d = moderated(raw, [float(df)] * len(raw))
    np.testing.assert_allclose(
        moderated(scale * np.array(raw), [float(df)] * len(raw))[0], scale * s2, rtol=1e-6
    )
    assert (np.diff(s2[np.argsort(raw)]) >= -1e-9 * s2.max()).all()
    assert ((d >= df) & (d <= df * len(raw) * (1 + 1e-12))).all()


def test_few_or_bad_variances():
    """One is left alone, none is none, and 0 is refused."""
    assert moderated([2.0], [3.0]) == ([2.0], [3.0])
    assert moderated([], [])[0].size == 0
    with pytest.raises(ValueError, match="above 0"):
        moderated([1.0, 0.0], [3.0, 3.0])


# the luck of tuning


def test_tuning_variance_by_hand():
    """Three arms: each has its own spread, SE^2 = 0.05^2 + 0.03^2 + 0.04^2; limits are those of t with 19 df."""
    (first, _, without) = with_tuning(
        [estimate(0.2), estimate(0.1), speed_up([100], [50])], 0.03**2, [0.04**2, 0.0, 0.0]
    )
    assert first.se == pytest.approx(math.sqrt(0.0025 + 0.0009 + 0.0016))
    assert (first.theta, first.df, first.n) == (0.2, 19.0, 20)
    half = stats.t.ppf(0.975, 19) * first.se
    assert (first.low, first.high) == (
        pytest.approx(math.exp(0.2 - half)),
        pytest.approx(math.exp(0.2 + half)),
    )
    assert first.p == pytest.approx(2 * stats.t.sf(0.2 / first.se, 19))
    assert without.reason == "one unit: no interval"


def test_four_arms_share_their_spread():
    """From four arms with an interval on the spread is shared: equal ones get the pooled df; three keep their own."""
    four = with_tuning([estimate(se=0.05)] * 4, 0.0, [0.0] * 4)
    assert {e.df for e in four} == {76.0}
    three = with_tuning([estimate(se=0.05)] * 3 + [speed_up([100], [50])], 0.0, [0.0] * 4)
    assert {e.df for e in three[:3]} == {19.0}
    assert three[0].se == pytest.approx(0.05)


@settings(deadline=None)
@given(st.floats(0.0, 0.1), st.floats(0.0, 0.1))
def test_more_luck_is_never_surer(baseline, arm):
    """An interval with the luck of tuning holds the one without."""
    plain = with_tuning([estimate(0.1)], 0.0, [0.0])[0]
    lucky = with_tuning([estimate(0.1)], baseline, [arm])[0]
    assert lucky.low <= plain.low
    assert lucky.high >= plain.high


def test_families_of_nulls_err_as_promised():
    """Ten nulls that share a baseline, tuning luck of known variance on each: at margin 0 a false verdict in about
    5 % of 2,000 families, and the simultaneous intervals hold in about 95 %."""
    rng = np.random.default_rng(11)
    families, M, S, luck = 2000, 10, 20, 0.03
    wrong = held = 0
    for _ in range(families):
        shared = rng.normal(0, 0.14, S)
        seeds = np.exp(0.7 * shared + rng.normal(0, 0.12, (M + 1, S)) + rng.normal(0, luck, (M + 1, 1)))
        estimates = with_tuning([speed_up(seeds[0], arm) for arm in seeds[1:]], luck**2, [luck**2] * M)
        wrong += bool((holm([p_beyond(e, 0.0) for e in estimates]) < 0.05).any())
        limits = np.array([simultaneous_interval(e, M) for e in estimates])
        held += bool(((limits[:, 0] <= 1) & (limits[:, 1] >= 1)).all())
    assert stats.binomtest(wrong, families).proportion_ci(0.999).low <= 0.05
    assert wrong / families < 0.065
    assert held / families > 0.935


# one p


def test_the_p_that_decides_by_hand():
    """How far theta lies beyond the margin, in standard errors, on both sides alike; within it p is 1."""
    theta, se = math.log(1.2), 0.05
    t = (theta - math.log(1.02)) / se
    assert p_beyond(estimate(theta, se)) == pytest.approx(2 * stats.t.sf(t, 19))
    assert p_beyond(estimate(-theta, se)) == pytest.approx(p_beyond(estimate(theta, se)))
    assert p_beyond(estimate(0.01, se)) == 1.0
    assert p_beyond(estimate(theta, se), 0.0) == pytest.approx(2 * stats.t.sf(theta / se, 19))
    assert math.isnan(p_beyond(speed_up([100], [50])))


@settings(deadline=None)
@given(st.floats(-1, 1), st.floats(0.005, 0.5), st.integers(1, 40))
def test_p_and_interval_agree(theta, se, family):
    """Bonferroni's p is below 0.05 exactly where the simultaneous interval clears the margin; so Holm's is there
    too, and no row says one thing by its p and another by its interval."""
    arm = estimate(theta, se)
    low, high = simultaneous_interval(arm, family)
    clears = low > (1 + MARGIN) * (1 + 1e-9) or high * (1 + 1e-9) < 1 / (1 + MARGIN)
    bonferroni = family * p_beyond(arm)
    if clears:
        assert bonferroni < 0.05 * (1 + 1e-6)
    elif low < (1 + MARGIN) * (1 - 1e-9) and high > (1 + 1e-9) / (1 + MARGIN):
        assert bonferroni > 0.05 * (1 - 1e-6)


def test_if_anything():
    """The further limit, either way round."""
    assert if_anything(0.95, 1.1) == pytest.approx(0.1)
    assert if_anything(0.8, 1.1) == pytest.approx(0.25)
    assert if_anything(0.0, 1.1) == INF
    assert math.isnan(if_anything(NAN, NAN))


# hits


def test_a_tenth_may_miss():
    """18 of 20 is reliable, 17 isn't; 9 of 10 is, 8 isn't; nothing run isn't."""
    for k, n, expected in ((18, 20, True), (17, 20, False), (9, 10, True), (8, 10, False), (0, 0, False)):
        assert reliable(np.arange(n) < k) is expected


def test_verdicts_by_hand():
    """The arm's hits come first, then the baseline's, then p and the sign; without p nothing is decided."""
    all_hit, some, few, none = np.arange(20) < 20, np.arange(20) < 18, np.arange(20) < 17, np.arange(20) < 0
    assert decide(0.01, 0.5, all_hit, some) is Verdict.FASTER
    assert decide(0.01, -0.5, some, all_hit) is Verdict.SLOWER
    assert decide(0.051, 0.5, all_hit, all_hit) is Verdict.UNDECIDED
    assert decide(NAN, 0.5, all_hit, all_hit) is Verdict.UNDECIDED
    assert decide(0.001, 0.5, few, few) is Verdict.UNRELIABLE
    assert decide(0.001, 0.5, none, all_hit) is Verdict.NEVER
    assert decide(0.001, 0.5, few, all_hit, tuned=False) is Verdict.NOT_TUNED
    assert decide(0.001, 0.5, all_hit, all_hit, tuned=False) is Verdict.FASTER
    assert decide(0.001, 0.5, all_hit, few) is Verdict.UNRELIABLE_BASELINE
    assert decide(0.07, 0.5, all_hit, all_hit, level=0.9) is Verdict.FASTER
    assert all(word.sentence for word in Verdict)


# looks


def test_looks_share_the_level():
    """0.9, 0.09, 0.009: any number of looks spend no more than all."""
    assert [look_share(k) for k in (1, 2, 3)] == pytest.approx([0.9, 0.09, 0.009])
    assert sum(look_share(k) for k in range(1, 30)) <= 1.0
    with pytest.raises(ValueError, match="from 1"):
        look_share(0)


def test_p_over_looks_by_hand():
    """The least of p / share, at most 1; an arm without a p at one look has the other's."""
    p = over_looks([[0.018, 0.5, NAN, NAN], [0.9, 0.0009, 0.0018, NAN]])
    assert p == pytest.approx([0.02, 0.01, 0.02, NAN], nan_ok=True)
    assert over_looks([[0.95]]).tolist() == [1.0]
    assert deciding_look([[0.018, 0.5, NAN, NAN], [0.9, 0.0009, 0.0018, NAN]]).tolist() == [0, 1, 1, 0]


def test_a_verdict_stays():
    """A further look never takes a verdict back, whatever it shows."""
    first = over_looks([[0.03]])[0]
    assert all(over_looks([[0.03], [later]])[0] <= first for later in (0.0, 0.5, 1.0))


def test_looking_again_and_again_errs_no_more():
    """One null arm, topped up from 10 seeds to 12, 20 and 40 until a verdict comes: a false one in at most 5 % of
    4,000 studies; judged by the last look's own p each time it would be more."""
    rng = np.random.default_rng(5)
    studies, sizes = 4000, (10, 12, 20, 40)
    shared = naive = 0
    for _ in range(studies):
        d = rng.normal(0.0, 1.0, 40)
        t = [d[:n].mean() / (d[:n].std(ddof=1) / math.sqrt(n)) for n in sizes]
        p = [2 * stats.t.sf(abs(value), n - 1) for value, n in zip(t, sizes, strict=True)]
        shared += over_looks([[value] for value in p])[0] < 0.05
        naive += min(p) < 0.05
    assert shared / studies < 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
    assert naive / studies > 0.08


def test_the_interval_over_looks_is_what_every_look_allows():
    """Each look's interval at its share of the level; the narrowest of both ends; the last where they are apart."""
    looks = [estimate(0.2, 0.05), estimate(0.25, 0.04)]
    (a, b), (c, d) = (
        simultaneous_interval(e, 5, 1 - 0.05 * look_share(k)) for k, e in enumerate(looks, start=1)
    )
    assert interval_over_looks(looks, 5) == (max(a, c), min(b, d))
    assert interval_over_looks(looks[:1], 5) == (a, b)
    apart = [estimate(0.2, 0.01), estimate(0.9, 0.01)]
    assert interval_over_looks(apart, 5)[0] == pytest.approx(math.exp(0.9), rel=0.1)
    assert all(math.isnan(v) for v in interval_over_looks([speed_up([100], [50])], 5))


# what can be seen


@pytest.mark.parametrize(("n", "family"), [(20, 10), (10, 1)])
def test_the_smallest_effect_is_found_in_four_of_five(n, family):
    """Simulated at the effect it names, an arm is called faster in 80 % of studies, at the first, strictest step."""
    rng = np.random.default_rng(7)
    sd, luck = 0.2, 0.03
    theta = math.log(smallest_effect(n, family, spread=sd, tuning_variance=luck**2))
    found = 0
    for _ in range(4000):
        d = rng.normal(theta, sd, n) + rng.normal(0, luck * math.sqrt(2))
        se = math.sqrt(d.var(ddof=1) / n + 2 * luck**2)
        p = family * p_beyond(estimate(float(d.mean()), se, n - 1.0, n))
        found += p / look_share(1) < 0.05
    assert found / 4000 == pytest.approx(0.8, abs=0.03)


def test_what_can_be_seen():
    """More seeds or fewer arms see less; more spread, luck or margin hide more; one unit sees nothing."""
    default = smallest_effect(20, 10)
    assert 1.25 < default < 1.35
    assert smallest_effect(40, 10) < default < smallest_effect(10, 10)
    assert smallest_effect(20, 1) < default < smallest_effect(20, 33)
    assert smallest_effect(20, 10, spread=0.3) > default > smallest_effect(20, 10, tuning_variance=0.0)
    assert smallest_effect(20, 10, margin=0.05) > default
    assert smallest_effect(1, 10) == INF


def test_with_blocks_their_means_are_the_units() -> None:
    """A plan of several blocks sees what its few units allow, each with a tuning of its own: with one seed a block that
    is the spread and the luck together; a single seed or block shows nothing, and a calibrated spread counts."""
    assert effect_in_reach(20, 1, 10, spread=0.1) == smallest_effect(20, 10, spread=0.1)
    together = math.sqrt(0.1**2 + 2 * TYPICAL_TUNING_VARIANCE)
    assert effect_in_reach(20, 20, 10, spread=0.1) == pytest.approx(
        smallest_effect(20, 10, spread=together, tuning_variance=0.0)
    )
    assert effect_in_reach(21, 3, 1) > effect_in_reach(21, 1, 1)
    assert effect_in_reach(1, 1, 1) == INF
