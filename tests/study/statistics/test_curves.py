"""Time to target: crossings, scores of tuning trials, bands."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.statistics.curves import (
    Curve,
    best_points,
    examples_to_target,
    median_and_band,
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


def test_each_seed_has_its_hit():
    """E and hit of every curve in order; a miss has no E."""
    E, hit = targets_reached([Curve([1, 2], [3.0, 1.0]), Curve([1, 2], [3.0, 2.5])], 2.0)
    assert pytest.approx([2**0.5, NAN], nan_ok=True) == E
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


# scores


@pytest.mark.parametrize(
    ("loss", "target", "expected"),
    [
        ([2.0, 1.0], 1.0, 0.5),  # E / tau
        ([4.0, 3.0, 3.5], 2.0, 2.5),  # 2 + (3 - 2) / 2: the running minimum, not the last loss
        ([90.0, 80.0], 2.0, 9.0),  # capped
        ([-1.0, -1.5], -2.0, 2.25),  # a negative target has a gap like any other
        ([0.5, 0.25], 0.0, 2.25),  # a target of 0: the gap in nats
        ([4.0, NAN], 2.0, 10.0),  # diverged
        ([NAN, NAN], 2.0, 10.0),
        ([], 2.0, 10.0),
        ([3.0, 2.0, NAN], 2.0, 0.5),  # stopped at its hit before it broke down
    ],
)
def test_scores_by_hand(loss, target, expected):
    """E / tau on a hit, 2 + the relative gap up to 9 on a miss, 10 for a diverged run."""
    x = 10.0 * 2.0 ** np.arange(len(loss))
    assert tuning_score(Curve(x, loss), target, 40.0) == pytest.approx(expected)


def test_a_diverged_run_that_left_no_nan_scores_ten():
    """The training's word counts too: a NaN training loss with a finite last evaluation is diverged."""
    assert tuning_score(Curve([1, 2], [4.0, 3.0], diverged=True), 2.0, 2) == 10.0


@settings(deadline=None)
@given(losses, st.floats(-40.0, 40.0))
def test_hits_before_misses_before_breakdowns(loss, target):
    """Any hit scores at most 1 (E within tau), any miss in [2, 9], any diverged run 10."""
    curve = Curve(10.0 * 1.5 ** np.arange(len(loss)), loss)
    score = tuning_score(curve, target, curve.examples[-1])
    if examples_to_target(curve.examples, loss, target)[1]:
        assert 0.0 < score <= 1.0 + 1e-12
    elif curve.diverged:
        assert score == 10.0
    else:
        assert 2.0 <= score <= 9.0


def test_ties_go_to_the_lower_number():
    """Equal scores: the earlier trial; a failed trial (NaN) never wins; nobody wins an empty round."""
    assert best_points([2.0, 0.5, 0.5, 0.7], 1) == [1]
    assert best_points([2.0, 0.5, 0.5, 0.7], 3) == [1, 2, 3]
    assert best_points([NAN, 10.0, 10.0], 2) == [1, 2]
    assert best_points([NAN, 10.0], 2) == [1]
    assert best_points([NAN, NAN], 2) == best_points([], 2) == []


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
