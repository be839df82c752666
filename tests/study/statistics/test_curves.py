"""Time to target: crossings, scores, calibration, survival."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from study.statistics.curves import (
    Curve,
    censored,
    ert,
    examples_to_target,
    kaplan_meier,
    median_and_band,
    par2,
    resolution,
    targets_reached,
    tuning_score,
)
from vae.grid import evaluation_grid

NAN = float("nan")
INF = float("inf")


# examples_to_target


def test_the_crossing_by_hand():
    """Two thirds of the way from loss 2 down to 0.5, in log examples: 100 * 2^(2/3)."""
    E, hit = examples_to_target([50, 100, 200, 400], [3.0, 2.0, 0.5, 0.4], 1.0)
    assert hit
    assert pytest.approx(100 * 2 ** (2 / 3)) == E


def test_linear_in_log_examples_is_exact():
    """A loss linear in ln examples gives the true crossing, however wide the cells."""
    x = np.array([10.0, 50.0, 1000.0, 9000.0])
    assert examples_to_target(x, 20.0 - 2.0 * np.log(x), 20.0 - 2.0 * np.log(300.0))[0] == pytest.approx(
        300.0
    )


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ([0.9, 0.8, 0.7], 10.0),  # the first evaluation is already there
        ([2.0, 1.0, 0.5], 20.0),  # exactly at the target
        ([2.0, 0.0, 2.0], 10.0 * 2**0.5),  # the first crossing, whatever comes later
        ([2.0, NAN, 0.5], 40.0),  # nothing is interpolated across a gap
        ([NAN, 0.5, 0.5], 20.0),
        ([INF, 0.5, 0.5], 20.0),
        ([2.0, 0.0, NAN], 10.0 * 2**0.5),  # diverged after its hit: the hit stays
        ([-INF, 2.0, 0.0], 20.0 * 2**0.5),  # minus infinity is a breakdown, no record
    ],
)
def test_first_crossing(loss, expected):
    """The first finite loss at or below the target is the hit, and only finite neighbours interpolate."""
    assert examples_to_target([10, 20, 40], loss, 1.0) == (pytest.approx(expected), True)


@pytest.mark.parametrize("loss", [[2.0, 1.5, 1.01], [NAN] * 3, [2.0, NAN, NAN], [-INF, NAN, -INF]])
def test_a_nan_trial_is_never_a_hit(loss):
    """Neither a curve above the target nor a broken one reaches it."""
    E, hit = examples_to_target([10, 20, 40], loss, 1.0)
    assert math.isnan(E)
    assert not hit


def test_bad_curves_are_refused():
    """Lengths that differ, example counts that don't rise and a target that is no number raise."""
    with pytest.raises(ValueError, match="as many losses"):
        Curve([1, 2], [1.0])
    for x in ([2, 2], [2, 1], [0, 1]):
        with pytest.raises(ValueError, match="rising"):
            Curve(x, [1.0, 1.0])
    with pytest.raises(ValueError, match="finite"):
        examples_to_target([1], [1.0], NAN)
    assert examples_to_target([], [], 1.0)[1] is False


losses = st.lists(st.floats(-50.0, 50.0) | st.just(NAN), min_size=1, max_size=12)


@settings(deadline=None)
@given(losses, st.floats(-40.0, 40.0), st.floats(0.0, 20.0), st.floats(0.1, 1000.0))
def test_an_easier_target_is_never_later(loss, target, easier, scale):
    """Raising the target never delays E; E lies on the curve's range; doubling all examples doubles E."""
    x = 10.0 * 1.5 ** np.arange(len(loss))
    E, hit = examples_to_target(x, loss, target)
    easy_E, easy_hit = examples_to_target(x, loss, target + easier)
    scaled_E, _ = examples_to_target(scale * x, loss, target)
    if hit:
        assert easy_hit
        assert easy_E <= E * (1 + 1e-12)
        assert x[0] <= E <= x[-1] * (1 + 1e-12)
        assert scaled_E == pytest.approx(scale * E)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(0, 20)), min_size=1, max_size=12), st.floats(-40, 40))
def test_a_lower_curve_is_never_later(points, target):
    """A curve nowhere above another reaches the target no later and never scores worse."""
    x = 10.0 * 1.5 ** np.arange(len(points))
    upper = np.array([loss for loss, _ in points])
    lower = upper - np.array([gain for _, gain in points])
    E, hit = examples_to_target(x, upper, target)
    if hit:
        assert examples_to_target(x, lower, target)[0] <= E * (1 + 1e-12)
    tau = x[-1]
    assert tuning_score(Curve(x, lower), target, tau) <= tuning_score(Curve(x, upper), target, tau) + 1e-12


def test_misses_are_set_to_tau_and_kept():
    """A miss counts tau whatever its E held, and no run is dropped."""
    assert censored([3.0, NAN, 8.0], [True, False, False], 10).tolist() == [3.0, 10.0, 10.0]
    E, hit = targets_reached([Curve([1, 2], [3.0, 1.0]), Curve([1, 2], [3.0, 2.5])], 2.0)
    assert E[0] == pytest.approx(2**0.5)
    assert hit.tolist() == [True, False]


def test_resolution():
    """How far apart the two evaluations around E are, relative to the earlier."""
    assert resolution([100, 150, 300], 120.0) == pytest.approx(0.5)
    assert resolution([100, 150, 300], 150.0) == pytest.approx(0.5)
    assert resolution([100, 150, 300], 200.0) == pytest.approx(1.0)
    assert resolution([100, 150, 300], 100.0) == INF
    assert math.isnan(resolution([100], NAN))
    assert math.isnan(resolution([100], 101.0))
    assert resolution(evaluation_grid(480_000), 123_456) < 0.031


# survival


def test_kaplan_meier_by_hand():
    """Four runs, hits at 10 and 20, misses at 20 and 40: 3/4, then 3/4 * 2/3, then flat."""
    km = kaplan_meier([10, 20, 20, 40], [True, True, False, False])
    assert km.examples.tolist() == [0, 10, 20, 40]
    assert km.survival == pytest.approx([1, 0.75, 0.5, 0.5])
    assert km.at_risk.tolist() == [4, 4, 3, 1]


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_kaplan_meier_agrees_with_scipy(level):
    """Curve and log-log band equal scipy.stats.ecdf on censored data with ties."""
    rng = np.random.default_rng(3)
    E = np.minimum(np.round(rng.lognormal(4.0, 0.5, 40)), 80.0)
    hit = E < 80.0
    km = kaplan_meier(E, hit, level)
    peer = stats.ecdf(stats.CensoredData.right_censored(E, ~hit)).sf
    band = peer.confidence_interval(level, method="log-log")
    assert km.examples[1:].tolist() == peer.quantiles.tolist()
    np.testing.assert_allclose(km.survival[1:], peer.probabilities, atol=1e-12)
    np.testing.assert_allclose(km.low[1:], band.low.probabilities, atol=1e-12)
    np.testing.assert_allclose(km.high[1:], band.high.probabilities, atol=1e-12)


def test_survival_at_its_ends():
    """All hits: survival ends at 0, whose limits are undefined. No hits: it stays 1, limits too."""
    all_hit = kaplan_meier([5, 6, 7], [True] * 3)
    assert all_hit.survival == pytest.approx([1, 2 / 3, 1 / 3, 0], abs=1e-12)
    assert np.isnan([all_hit.low[-1], all_hit.high[-1]]).all()
    assert (all_hit.low[1:-1] < all_hit.survival[1:-1]).all()
    assert (all_hit.high[1:-1] > all_hit.survival[1:-1]).all()
    none = kaplan_meier([9, 9, 9], [False] * 3)
    assert none.survival.tolist() == none.low.tolist() == none.high.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="censored"):
        kaplan_meier([9, NAN], [True, False])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=30))
def test_survival_never_rises(runs):
    """The curve falls from 1 within [0, 1], the band holds it, and without censoring before the end it is
    the plain share of runs that aren't there yet."""
    E = [20.0 if not hit else float(x) for x, hit in runs]
    hit = [hit for _, hit in runs]
    km = kaplan_meier(E, hit)
    assert km.survival[0] == 1.0
    assert (np.diff(km.survival) <= 0).all()
    inside = ~np.isnan(km.low)
    assert (km.low[inside] <= km.survival[inside] + 1e-12).all()
    assert (km.high[inside] >= km.survival[inside] - 1e-12).all()
    plain = [np.mean([not (h and e <= t) for e, h in zip(E, hit, strict=True)]) for t in km.examples]
    np.testing.assert_allclose(km.survival, plain, atol=1e-12)


def test_par2_and_ert_by_hand():
    """Hits at 10 and 30, a miss, tau 100: PAR2 = (10 + 30 + 200) / 3; ERT = (10 + 30 + 100) / 2."""
    E, hit = [10, 30, NAN], [True, True, False]
    assert par2(E, hit, 100) == pytest.approx(80.0)
    assert ert(E, hit, 100) == pytest.approx(70.0)
    assert ert([NAN], [False], 100) == INF
    assert par2(E[:2], hit[:2], 100) == ert(E[:2], hit[:2], 100) == 20.0


# bands


def test_the_band_by_hand():
    """Median of three seeds and their outer values; the band ends where the first seed stops."""
    curves = [Curve([1, 2, 4], [3, 2, 1]), Curve([1, 2, 4], [6, 5, 4]), Curve([1, 2], [5, 4])]
    band = median_and_band(curves)
    assert band.examples.tolist() == [1, 2]
    assert band.median.tolist() == [5, 4]
    assert band.low.tolist() == [3, 2]
    assert band.high.tolist() == [6, 5]
    assert median_and_band(curves[:2]).median.tolist() == [4.5, 3.5, 2.5]


def test_a_diverged_seed_moves_the_quantiles():
    """It counts as infinitely bad from where it broke, instead of leaving a better-looking rest."""
    good = [Curve([1, 2, 4], [3, 2, 1]), Curve([1, 2, 4], [4, 3, 2])]
    for broken in (Curve([1, 2], [5, NAN]), Curve([1, 2, 4], [5, NAN, NAN]), Curve([1], [5], diverged=True)):
        band = median_and_band([*good, broken])
        assert band.examples.tolist() == [1, 2, 4]
        assert band.median.tolist() == [4, 3, 2]
        assert band.high.tolist() == [5, INF, INF]
    assert median_and_band([broken]).median.tolist() == [5.0]


def test_curves_of_other_steps_meet_in_log_examples():
    """Curves evaluated at other counts are interpolated linearly in log examples, over the common range."""
    band = median_and_band([Curve([1, 4], [4, 2]), Curve([2, 8], [3, 1])])
    assert band.examples.tolist() == [2, 4]
    assert band.low == pytest.approx([3, 2])
    assert band.high == pytest.approx([3, 2])
    with pytest.raises(ValueError, match="at least one"):
        median_and_band([])
