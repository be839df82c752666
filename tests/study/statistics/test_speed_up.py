"""Estimates: worked by hand, against scipy, and their coverage as measured."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from study.statistics.curves import Curve
from study.statistics.speed_up import (
    Estimate,
    combine_check,
    conditional_ratio,
    paired_difference,
    rmst_ratio,
    simultaneous_interval,
    speed_up,
    speed_up_by_target,
    throughput_factor,
    units,
    welch_satterthwaite,
    with_cold_start,
    with_throughput,
)
from study.statistics.survival import kaplan_meier

NAN = float("nan")


def assert_no_interval(estimate: Estimate, reason: str) -> None:
    assert reason in (estimate.reason or "")
    assert np.isnan([estimate.low, estimate.high, estimate.p]).all()


# speed-up


def test_speed_up_by_hand():
    """B = (90, 110, 100), A = (45, 50, 55): means 100 and 50, influences 0, 0.1, -0.1, SE 0.1 / sqrt 3."""
    result = speed_up([90, 110, 100], [45, 50, 55])
    assert result.ratio == pytest.approx(2.0)
    assert result.theta == pytest.approx(math.log(2))
    assert result.se == pytest.approx(0.1 / math.sqrt(3))
    assert (result.n, result.df, result.reason) == (3, 2.0, None)
    half = 4.302653 * 0.1 / math.sqrt(3)  # t of 2 df at 97.5 %, from a table
    assert (result.low, result.high) == (
        pytest.approx(2 * math.exp(-half)),
        pytest.approx(2 * math.exp(half)),
    )


def test_p_and_interval_agree_with_scipy():
    """The p-value is scipy's one-sample t on theta + the influences, and p < 0.05 exactly where the 95 %
    interval leaves out 1."""
    rng = np.random.default_rng(5)
    for _ in range(50):
        B, A = rng.lognormal(0.0, 0.2, (2, 7)) * [[1.0], [0.85]]
        ours = speed_up(B, A)
        peer = stats.ttest_1samp(ours.theta + B / B.mean() - A / A.mean(), 0.0)
        assert ours.p == pytest.approx(peer.pvalue)
        assert (ours.low, ours.high) == pytest.approx(tuple(np.exp(peer.confidence_interval(0.95))))
        assert (ours.p < 0.05) == (not ours.low <= 1.0 <= ours.high)


def test_where_there_is_no_interval():
    """One unit, identical units, or units that differ by rounding alone: the ratio stands, and why it stands
    alone is said."""
    one = speed_up([100], [50])
    assert one.ratio == pytest.approx(2.0)
    assert math.isnan(one.se)
    assert_no_interval(one, "one unit")
    for B, A in (([90, 110], [90, 110]), ([90, 110], [30, 110 / 3]), ([5, 5, 5], [2, 2, 2])):
        flat = speed_up(B, A)
        assert flat.se == 0.0
        assert_no_interval(flat, "no spread")
    assert speed_up([90, 110], [90, 110]).ratio == 1.0


@pytest.mark.parametrize("bad", [[NAN, 1.0], [0.0, 1.0], [-1.0, 3.0], [math.inf, 1.0]])
def test_unset_misses_are_refused(bad):
    """E of a miss has to be set to tau first: NaN, infinite or non-positive E raise instead of spreading."""
    with pytest.raises(ValueError, match="misses"):
        speed_up([1.0, 2.0], bad)


times = st.lists(st.tuples(st.floats(1, 1000), st.floats(1, 1000)), min_size=2, max_size=12)


@settings(deadline=None)
@given(times, st.floats(0.01, 100.0), st.floats(0.01, 100.0))
def test_speed_up_symmetries(pairs, b, a):
    """Swapping the arms inverts ratio and limits; rescaling E rescales the ratio and leaves SE; the order of
    the units is irrelevant."""
    B, A = np.array(pairs).T
    forth, back, scaled = speed_up(B, A), speed_up(A, B), speed_up(b * B, a * A)
    assert forth.ratio * back.ratio == pytest.approx(1.0)
    assert scaled.ratio == pytest.approx(forth.ratio * b / a)
    assert scaled.se == pytest.approx(forth.se, abs=1e-11)
    assert speed_up(B[::-1], A[::-1]).se == pytest.approx(forth.se, abs=1e-11)
    if forth.reason is None and back.reason is None and forth.high < 1e100:
        assert forth.low * back.high == pytest.approx(1.0)
        assert forth.low < forth.ratio < forth.high


@settings(deadline=None)
@given(times)
def test_simultaneous_intervals_are_nested(pairs):
    """A larger family or level never narrows the interval, and a family of one has the plain one."""
    B, A = np.array(pairs).T
    result = speed_up(B, A)
    if result.reason is None:
        assert simultaneous_interval(result, 1) == (result.low, result.high)
        limits = [simultaneous_interval(result, m) for m in (1, 2, 20)]
        limits.append(simultaneous_interval(result, 20, 0.99))
        assert sorted(low for low, _ in limits)[::-1] == [low for low, _ in limits]
        assert sorted(high for _, high in limits) == [high for _, high in limits]


def test_bonferroni_t_by_hand():
    """A family of 10 at 95 %: each limit at t_{n-1}(1 - 0.05 / 20)."""
    result = speed_up([90, 110, 100, 95, 102], [45, 50, 55, 46, 52])
    low, high = simultaneous_interval(result, 10)
    half = stats.t.ppf(1 - 0.05 / 20, 4) * result.se
    assert (low, high) == pytest.approx((result.ratio * math.exp(-half), result.ratio * math.exp(half)))
    with pytest.raises(ValueError, match="family"):
        simultaneous_interval(result, 0)


# blocks


def test_units_by_hand():
    """Without blocks the seeds themselves; with blocks the mean of each, in the order of the labels, one
    finished block being one unit."""
    assert units([1.0, 2.0, 3.0]).tolist() == [1, 2, 3]
    assert units([1.0, 2.0, 3.0], [7, 7, 7]).tolist() == [2.0]
    assert units([1.0, 2.0, 5.0, 9.0], [2, 1, 2, 1]).tolist() == [5.5, 3.0]
    with pytest.raises(ValueError, match="block label"):
        units([1.0, 2.0], [1])


# ratios where some miss


def test_conditional_ratio_looks_at_joint_hits_only():
    """Seeds on which either arm misses are out, whatever their E; none left: no ratio, and the reason."""
    B, A = [100.0, 120.0, NAN, 90.0], [50.0, 500.0, 70.0, 45.0]
    result = conditional_ratio(B, [1, 1, 0, 1], A, [1, 0, 1, 1])
    plain = speed_up([100, 90], [50, 45])
    assert (result.ratio, result.n) == (plain.ratio, 2)
    assert_no_interval(result, "no spread")
    none = conditional_ratio(B, [1, 0, 0, 0], A, [0, 1, 1, 1])
    assert math.isnan(none.ratio)
    assert none.n == 0
    assert_no_interval(none, "no seed on which both")


def test_conditional_ratio_in_blocks():
    """The unit is the block mean over its joint hits."""
    B, A, blocks = [100, 120, 90, 95], [50, 55, 45, 52], [1, 1, 2, 2]
    result = conditional_ratio(B, [1, 1, 1, 0], A, [1, 1, 1, 1], blocks)
    assert result == speed_up([110, 90], [52.5, 45])


def test_rmst_by_hand_and_as_the_area_under_kaplan_meier():
    """(100 + 200 + tau) over (50 + 60 + 70) at tau 300; the mean is the area under the survival curve."""
    B, hit = [100.0, 200.0, NAN], [True, True, False]
    result = rmst_ratio(B, hit, [50, 60, 70], [True] * 3, 300)
    assert result.ratio == pytest.approx(600 / 180)
    km = kaplan_meier([100, 200, 300], hit)
    area = float((np.diff(km.examples) * km.survival[:-1]).sum())
    assert result.ratio == pytest.approx(area / 60)
    # an E past tau (the last step reaches over it) counts tau, and with every hit it is the plain ratio
    assert rmst_ratio([100, 310], [True, True], [50, 60], [True, True], 300).ratio == pytest.approx(400 / 110)
    blocks = rmst_ratio([1, 2, 3, 4], [1] * 4, [1, 1, 2, 2.5], [1] * 4, 9, blocks=[1, 1, 2, 2])
    assert blocks == speed_up([1.5, 3.5], [1, 2.25])


def test_speed_up_against_the_target():
    """Curves that differ by 2x in examples give 2x at each target they all reach, and no ratio where one
    misses."""
    x = 10.0 * 2.0 ** np.arange(8)
    baseline = [Curve(x, 20 - np.log2(x * s)) for s in (1.0, 1.1, 0.95)]
    arm = [Curve(x, 20 - np.log2(2 * x * s)) for s in (1.0, 1.05, 0.9)]
    rows = speed_up_by_target(baseline, arm, [15.0, 13.0, 9.6, 8.7])
    assert [(row.baseline_hits, row.arm_hits) for row in rows] == [(3, 3), (3, 3), (1, 3), (0, 2)]
    for row in rows[:2]:
        harmonic = np.mean([1 / s for s in (1.0, 1.1, 0.95)]) / np.mean([1 / s for s in (1.0, 1.05, 0.9)])
        assert row.estimate.ratio == pytest.approx(2 * harmonic)
        assert row.estimate.reason is None
    assert math.isnan(rows[2].estimate.ratio)
    assert_no_interval(rows[2].estimate, "1 of 3 baseline and 3 of 3 arm")


# combined


def test_combined_by_hand():
    """Singles of 2x and 1.5x and a combined 2.4x: 0.8 of what they promise. Perfectly shared luck cancels."""
    luck = np.array([0.9, 1.0, 1.1])
    result = combine_check(120 * luck, [60 * luck, 80 * luck], 50 * luck)
    assert result.ratio == pytest.approx(0.8)
    assert_no_interval(result, "no spread")
    # one single: its influence alone, A / mean A - C / mean C
    assert combine_check([9, 11], [[4, 6]], [3, 3.5]) == speed_up([4, 6], [3, 3.5])


# seconds


def test_throughput_factor_agrees_with_scipy():
    """A t interval on the paired log ratios; drift common to a pair cancels."""
    arm, baseline = np.array([210, 190, 260, 150.0]), np.array([100, 98, 125, 76.0])
    result = throughput_factor(arm, baseline)
    peer = stats.ttest_rel(np.log(arm), np.log(baseline))
    assert result.ratio == pytest.approx(np.exp(np.mean(np.log(arm / baseline))))
    assert result.p == pytest.approx(peer.pvalue)
    assert (result.low, result.high) == pytest.approx(tuple(np.exp(peer.confidence_interval(0.95))))
    drifting = throughput_factor(arm * [1, 2, 3, 4], baseline * [1, 2, 3, 4])
    assert drifting.se == pytest.approx(result.se)
    assert_no_interval(throughput_factor([200], [100]), "one unit")
    assert_no_interval(throughput_factor([200, 100], [100, 50]), "no spread")


def test_welch_satterthwaite_is_scipys():
    """SE and df of Welch's test, from its two variances of means; a term without variance takes no part."""
    rng = np.random.default_rng(16)
    a, b = rng.normal(0, 1, 6), rng.normal(0, 3, 11)
    se, df = welch_satterthwaite([a.std(ddof=1) / math.sqrt(6), b.std(ddof=1) / math.sqrt(11)], [5, 10])
    peer = stats.ttest_ind(a, b, equal_var=False)
    assert df == pytest.approx(peer.df)
    assert (a.mean() - b.mean()) / se == pytest.approx(peer.statistic)
    assert welch_satterthwaite([0.3, 0.0], [4, 0]) == (pytest.approx(0.3), pytest.approx(4))


def test_the_product_by_hand():
    """1.5x in examples and 2x in throughput are 3x in seconds; SE 0.03 and 0.04 make 0.05 on
    0.05^4 / (0.03^4 / 9 + 0.04^4 / 4) = 8.56 df."""
    examples = Estimate(1.5, 1.4, 1.6, math.log(1.5), 0.03, 9.0, 10, 0.001)
    seconds = with_throughput(examples, math.log(2), 0.04, 4.0)
    assert seconds.ratio == pytest.approx(3.0)
    assert seconds.se == pytest.approx(0.05)
    assert seconds.df == pytest.approx(8.5616, abs=1e-4)
    assert seconds.n == 10
    half = stats.t.ppf(0.975, seconds.df) * 0.05
    assert (seconds.low, seconds.high) == pytest.approx((3 * math.exp(-half), 3 * math.exp(half)))


def test_a_product_is_no_surer_than_its_parts():
    """Without an interval in examples, or with a throughput timed once, seconds have none, and say which."""
    r = throughput_factor([200.0, 210.0], [100.0, 101.0])
    one = with_throughput(speed_up([100], [50]), r.theta, r.se, r.df)
    assert one.ratio == pytest.approx(2 * r.ratio)
    assert_no_interval(one, "one unit")
    good = speed_up([90, 110, 100], [45, 50, 55])
    assert_no_interval(with_throughput(good, math.log(2), NAN, 0.0), "timed once")
    exact = with_throughput(good, 0.0, 0.0, 0.0)  # the same code: a factor of exactly 1
    assert (exact.low, exact.high, exact.df) == pytest.approx((good.low, good.high, good.df))


def test_cold_start_by_hand():
    """Baseline 1000 examples at 10/s; arm 500 at 20/s after 20 s of compilation: 100 s over 20 + 25 s."""
    result = with_cold_start([900, 1100], [460, 540], [10, 10], [20, 20], 0.0, 20.0)
    assert result.ratio == pytest.approx(100 / 45)
    w = 25 / 45
    assert result.se == pytest.approx(np.std([0.9 - w * 0.92, 1.1 - w * 1.08], ddof=1) / math.sqrt(2))


def test_without_cold_start_it_is_the_plain_product():
    """Both C = 0: the same figures as the ratio in examples times the throughput factor. A large C swamps
    both arms' speed."""
    rng = np.random.default_rng(18)
    B, A = rng.lognormal(0.0, 0.1, (2, 8))
    b, a = rng.lognormal(0.0, 0.1, (2, 5))
    r = throughput_factor(a, b)
    plain = with_throughput(speed_up(B, A), r.theta, r.se, r.df)
    cold = with_cold_start(B, A, b, a, 0.0, 0.0)
    for name in ("ratio", "low", "high", "theta", "se", "df", "n", "p"):
        assert getattr(cold, name) == pytest.approx(getattr(plain, name)), name
    assert with_cold_start(B, A, b, a, 1e9, 1e9).ratio == pytest.approx(1.0)
    assert_no_interval(with_cold_start(B[:1], A[:1], b, a, 0.0, 5.0), "one unit")
    assert_no_interval(with_cold_start(B, A, b[:1], a[:1], 0.0, 5.0), "timed once")


# test loss


def test_paired_difference_agrees_with_scipy():
    """arm - baseline with scipy's paired t interval; a pair with a NaN is out and not counted in n."""
    baseline, arm = np.array([24.1, 24.5, 23.9, NAN]), np.array([24.4, 24.6, 24.3, 25.0])
    result = paired_difference(baseline, arm)
    peer = stats.ttest_rel(arm[:3], baseline[:3])
    assert result.mean == pytest.approx(0.8 / 3)
    assert (result.n, result.df) == (3, 2.0)
    assert result.p == pytest.approx(peer.pvalue)
    assert (result.low, result.high) == pytest.approx(tuple(peer.confidence_interval(0.95)))
    assert paired_difference([1.0], [2.0]).reason == "one unit: no interval"
    assert paired_difference([1.0, 2.0], [2.0, 3.0]).reason == "no spread between 2 units: no interval"
    nothing = paired_difference([NAN], [2.0])
    assert math.isnan(nothing.mean)
    assert (nothing.n, nothing.reason) == (0, "no pair with both values")
