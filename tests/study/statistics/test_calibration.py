"""The calibration of the target."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.statistics.calibration import calibrate_target
from study.statistics.curves import Curve
from vae.grid import evaluation_grid

NAN = float("nan")


losses = st.lists(st.floats(-50.0, 50.0) | st.just(NAN), min_size=1, max_size=12)


def exponential(E: float, target: float, tau: int = 10_000, floor: float = 10.0) -> Curve:
    """loss = floor + 90 exp(-x / c), at the target after exactly E examples."""
    x = evaluation_grid(tau).astype(float)
    return Curve(x, floor + 90.0 * np.exp(-x / E * math.log(90.0 / (target - floor))))


def test_calibration_by_hand():
    """The median over seeds of the running minimum at 75 % of tau; here (2.0, 2.2, 3.0) at 75 of 100."""
    x = [25, 50, 75, 100]
    curves = [Curve(x, y) for y in ([4, 2.0, 2.5, 1.5], [5, 3, 2.2, 2.1], [6, 5, 3.0, 2.15])]
    result = calibrate_target(curves, tau=100, at=0.75)
    assert result.target == 2.2
    assert not result.raised
    assert result.hits == 3
    assert result.diverged == 0
    first, second, third = result.examples
    assert first == pytest.approx(25 * 2 ** (1.8 / 2))
    assert second == 75.0
    assert third == pytest.approx(75 * (4 / 3) ** (0.8 / 0.85))
    assert result.spread == pytest.approx(np.std(result.examples, ddof=1) / np.mean(result.examples))
    assert result.plateau


def test_tuning_aims_below_the_target():
    """Two standard deviations over seeds of the loss at 75 % of tau, but no lower than every seed gets; a target
    that every seed only just reaches is aimed at itself."""
    x = [25, 50, 75, 100]
    at_75 = (2.0, 2.1, 2.2)
    curves = [Curve(x, [5, 4, y, y - 1.0]) for y in at_75]
    assert calibrate_target(curves, tau=100, at=0.75).tuning_target == pytest.approx(
        2.1 - 2 * np.std(at_75, ddof=1)
    )
    curves = [Curve(x, [5, 4, y, y - d]) for y, d in zip(at_75, (1.0, 1.0, 0.15), strict=True)]
    assert calibrate_target(curves, tau=100, at=0.75).tuning_target == pytest.approx(
        2.05
    )  # the third seed's best
    raised = calibrate_target([Curve(x, [5, 4, y, y - 0.05]) for y in at_75], tau=100, at=0.75)
    assert raised.raised
    assert raised.tuning_target == raised.target == 2.2
    assert calibrate_target(curves[:1], tau=100, at=0.75).tuning_target == 2.0  # no spread of one seed


def test_a_seed_that_misses_raises_the_target():
    """A seed never at the median: the target is the worst seed's value at 75 % of tau, and all reach it."""
    x = [25, 50, 75, 100]
    curves = [Curve(x, y) for y in ([4, 2.0, 2.0, 1.5], [5, 3, 2.2, 2.1], [6, 5, 3.0, 2.5])]
    result = calibrate_target(curves, tau=100, at=0.75)
    assert result.target == 3.0
    assert result.raised
    assert result.hits == 3


def test_one_bad_seed_sets_no_target():
    """With one to spare: the median stands though a seed never gets there, and tuning aims at no lower; two that miss
    raise it to the second-worst seed's value, so that all but one reach it."""
    x = [25, 50, 75, 100]
    good = [[4, 2.0, 2.0, 1.5], [4, 2.1, 2.1, 1.6], [5, 3, 2.2, 2.0], [5, 3, 2.2, 2.0]]
    one = calibrate_target([Curve(x, y) for y in (*good, [6, 5, 4.0, 2.5])], tau=100, at=0.75, spare=1)
    assert (one.target, one.tuning_target, one.raised, one.hits) == (2.2, 2.2, False, 4)
    two = [*good[:3], [5, 4, 3.0, 2.3], [6, 5, 4.0, 2.5]]
    result = calibrate_target([Curve(x, y) for y in two], tau=100, at=0.75, spare=1)
    assert (result.target, result.raised, result.hits) == (3.0, True, 5)
    worse = calibrate_target([Curve(x, y) for y in (*two[:4], [6, 5, 9.0, 8.0])], tau=100, at=0.75, spare=1)
    assert (worse.target, worse.hits) == (3.0, 4)
    assert calibrate_target([Curve(x, y) for y in two], tau=100, at=0.75).target == 4.0


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-50, 50), min_size=6, max_size=6), min_size=3, max_size=7))
def test_all_but_one_reach_a_target_with_one_to_spare(seeds):
    """Whatever the curves: at most one seed misses, and the target is no easier than without one to spare."""
    curves = [Curve([10, 20, 40, 60, 70, 80], loss) for loss in seeds]
    spared, strict = (calibrate_target(curves, tau=80, at=0.75, spare=spare) for spare in (1, 0))
    assert spared.hits >= len(seeds) - 1
    assert spared.tuning_target <= spared.target <= strict.target


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-50, 50), min_size=6, max_size=6), min_size=1, max_size=7))
def test_every_calibration_seed_reaches_the_target(seeds):
    """Whatever the curves, each healthy seed hits, and at least half of them by 75 % of tau."""
    curves = [Curve([10, 20, 40, 60, 70, 80], loss) for loss in seeds]
    result = calibrate_target(curves, tau=80, at=0.75)
    assert result.hits == len(seeds)
    assert np.sum(np.array(result.examples) <= 60.0) * 2 >= len(seeds)


def test_a_diverged_seed_sets_no_target():
    """A seed that broke down neither moves the median nor raises the target; it is counted."""
    healthy = [exponential(E, 15.0) for E in (7000.0, 7500.0, 8000.0)]
    broken = Curve([50.0, 60.0], [80.0, NAN])
    plain, result = (
        calibrate_target(healthy, 10_000, at=0.75),
        calibrate_target([*healthy, broken], 10_000, at=0.75),
    )
    assert result.target == plain.target
    assert (result.diverged, result.hits) == (1, 3)
    with pytest.raises(ValueError, match="75 of tau"):
        calibrate_target([broken], 10_000, at=0.75)


def test_slope_spread_and_plateau():
    """On a loss of a - b log2(x) the slope is -b nats per doubling; a spread of 5 % is no plateau, one of
    20 % is."""
    x = evaluation_grid(10_000).astype(float)
    curves = [Curve(x, 50.0 - 3.0 * np.log2(x * scale)) for scale in (0.95, 1.0, 1.05)]
    result = calibrate_target(curves, 10_000, at=0.75)
    assert result.slope == pytest.approx(-3.0)
    assert result.spread == pytest.approx(0.05, rel=0.02)
    assert not result.plateau
    wide = [Curve(x, 50.0 - 3.0 * np.log2(x * scale)) for scale in (0.82, 1.0, 1.2)]
    assert calibrate_target(wide, 10_000, at=0.75).plateau


def test_the_slope_is_local():
    """On an exponential decay it is the slope at the target, not the steep one from the start: by hand
    -(15 - 10) ln(90 / 5) ln 2 = -10.0 nats per doubling."""
    slope = calibrate_target(
        [exponential(E, 15.0) for E in (6900.0, 7000.0, 7100.0)], 10_000, target=15.0, at=0.75
    ).slope
    assert slope == pytest.approx(-5 * math.log(18) * math.log(2), rel=0.1)


def test_a_given_target_is_kept():
    """`target` overrides the rule; one that nobody reaches has no hits, no slope and no spread."""
    curves = [exponential(E, 15.0) for E in (7000.0, 7500.0)]
    easy = calibrate_target(curves, 10_000, target=15.0, at=0.75)
    assert easy.target == 15.0
    assert not easy.raised
    assert easy.examples == pytest.approx((7000.0, 7500.0), rel=1e-3)
    never = calibrate_target(curves, 10_000, target=9.0, at=0.75)
    assert never.hits == 0
    assert math.isnan(never.slope)
    assert math.isnan(never.spread)
    assert not never.plateau
