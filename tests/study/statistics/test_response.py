"""Guided tuning: the curve through an arm's runs, its vertex, the next points, and how sure it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from study.statistics.curves import Curve
from study.statistics.response import Axis, Response, behind, losses_at, reference, respond

NAN = float("nan")
INF = float("inf")
LR = Axis.lr(3e-4, 3e-2)


def response(points, y, seeds=None, axes=(LR,)) -> Response:
    points = np.asarray(points, dtype=float).reshape(len(y), len(axes))
    return Response(
        axes, points, np.asarray(y, dtype=float), np.zeros(len(y), dtype=int) if seeds is None else seeds
    )


def parabola(at, best=-2.1, depth=1.5):
    return behind(depth * (np.asarray(at)[:, 0] - best) ** 2, slope=1.0)


# where runs are compared


def test_the_reference_by_hand():
    """E0 is the earliest hit of the coarse runs; the slope is that of the lowest run on ln(examples): a loss of
    20 - 2 ln(x) falls 2 nats per e-fold, averaged or not. Nobody hits: tau."""
    x = np.geomspace(10, 1000, 200)
    curves = [Curve(x, 20.0 - 2.0 * np.log(x)), Curve(x, 25.0 - 2.0 * np.log(x)), Curve(x, 30.0 + 0 * x)]
    found = reference(curves, 20.0 - 2.0 * np.log(300.0), 1000.0)
    assert found.examples == pytest.approx(300.0)
    assert found.slope == pytest.approx(2.0)
    assert reference(curves, 0.0, 1000.0).examples == 1000.0


def test_the_slope_falls_back():
    """Too few evaluations or a loss that rises: the calibration's slope; unknown too: the mean one; else 1."""
    short = [Curve([10, 20], [3.0, 2.0])]
    assert reference(short, 1.0, 20.0, slope=0.7).slope == 0.7
    assert reference(short, 1.0, 20.0).slope == pytest.approx(1.0 / np.log(2.0))
    rising = [Curve(np.arange(1.0, 20.0), np.arange(1.0, 20.0))]
    assert reference(rising, 0.0, 19.0).slope == 1.0
    assert reference([Curve([10], [NAN])], 1.0, 20.0, slope=0.3) == reference(
        [Curve([], [])], 1.0, 20.0, slope=0.3
    )


def test_losses_at_by_hand():
    """The mean of the last five evaluations up to there; what comes later doesn't count; diverged is infinite, unless
    it broke down later; a curve that starts later is taken at its start."""
    x = np.arange(1.0, 11.0)
    loss = np.arange(10.0, 0.0, -1.0)
    broken = np.where(x < 8, loss, NAN)
    curves = [
        Curve(x, loss),
        Curve(x[:8], broken[:8]),
        Curve(x, loss, diverged=True),
        Curve(x[:4], loss[:4], diverged=True),
        Curve([100.0], [3.0]),
        Curve([], []),
    ]
    assert losses_at(curves, 6.5).tolist() == [7.0, 7.0, 7.0, INF, 3.0, INF]
    assert losses_at(curves, 8.0)[:3].tolist() == [5.0, INF, 5.0]


def test_distances_by_hand():
    """e-folds behind the lowest, soft beyond 0.2, capped at 50; a diverged run has the cap; all diverged: all equal."""
    y = behind([24.0, 24.1, 1e9, INF], slope=0.5)
    assert y == pytest.approx([0.0, 0.2 * np.log(2.0), 0.2 * np.log(251.0), 0.2 * np.log(251.0)])
    assert len(set(behind([INF, INF], 1.0))) == 1


@settings(deadline=None)
@given(
    st.lists(st.floats(20, 30), min_size=2, max_size=8),
    st.floats(-5, 5),
    st.floats(0.1, 10),
    st.floats(0.5, 2),
)
def test_distances_know_no_unit(losses, shift, scale, slope):
    """Another zero of the loss, or nats for bits, moves no distance; and they keep the order of the losses."""
    y = behind(losses, slope)
    np.testing.assert_allclose(behind(scale * np.array(losses) + shift, scale * slope), y, atol=1e-6)
    assert (np.diff(y[np.argsort(losses)]) >= 0).all()
    assert min(y) == 0.0


# the curve


def test_the_gaussian_process_by_the_joint_normal():
    """Mean and covariance equal those of the joint normal distribution of curve and runs, conditioned by its full
    inverse: (K11 - K12 K22^-1 K21), with what the runs of one seed share."""
    points = np.array([[-3.0], [-2.5], [-2.4], [-1.8]])
    y, seeds = np.array([0.6, 0.1, 0.2, 0.5]), np.array([0, 0, 1, 1])
    at = np.array([[-2.9], [-2.2]])
    fitted = response(points, y, seeds)
    everything = np.concatenate([at, points])[:, 0]
    joint = 25.0 + 0.16 * np.exp(-((everything[:, None] - everything) ** 2) / (2 * 0.35**2))
    joint[2:, 2:] += 0.01 * (seeds[:, None] == seeds) + 0.01 * np.eye(4)
    weight = joint[:2, 2:] @ np.linalg.inv(joint[2:, 2:])
    np.testing.assert_allclose(fitted.mean(at), y.mean() + weight @ (y - y.mean()), atol=1e-8)
    np.testing.assert_allclose(fitted.covariance(at), joint[:2, :2] - weight @ joint[2:, :2], atol=1e-7)


def test_scikit_learn_draws_the_same_curve():
    """Where no seed is shared (every run's own luck is then independent noise) scikit-learn's regressor with the same
    fixed kernel has the same mean and standard deviation. It has no noise that some runs share, so it isn't used."""
    rng = np.random.default_rng(2)
    points, y = rng.uniform(LR.low, LR.high, (12, 1)), rng.uniform(0, 1, 12)
    at = np.linspace(LR.low, LR.high, 30)[:, None]
    ours = response(points, y, seeds=np.arange(12))
    kernel = ConstantKernel(25.0, "fixed") + ConstantKernel(0.16, "fixed") * RBF(0.35, "fixed")
    peer = GaussianProcessRegressor(kernel, alpha=0.02, optimizer=None).fit(points, y - y.mean())
    mean, sd = peer.predict(at, return_std=True)
    np.testing.assert_allclose(ours.mean(at), mean + y.mean(), atol=1e-8)
    np.testing.assert_allclose(np.sqrt(np.diag(ours.covariance(at))), sd, rtol=1e-5)


def test_the_vertex_is_the_lowest_point_of_81():
    """On one axis it is the argmin of the posterior mean on the range's 81 points, and near a parabola's own."""
    points = np.linspace(-3.4, -1.6, 12)[:, None]
    fitted = response(points, parabola(points))
    grid = np.linspace(LR.low, LR.high, 81)[:, None]
    assert fitted.vertex[0] == pytest.approx(grid[fitted.mean(grid).argmin(), 0])
    assert fitted.vertex[0] == pytest.approx(-2.1, abs=0.05)


@settings(deadline=None, max_examples=30)
@given(st.floats(-0.5, 0.5), st.permutations(range(8)))
def test_units_and_order_move_nothing(shift, order):
    """The vertex moves with the range of lr (decades have no origin), and the order of the runs says nothing."""
    points = np.linspace(-3.4, -1.6, 8)[:, None]
    y = parabola(points) + np.resize([0.05, -0.03, 0.02], 8)
    plain = response(points, y)
    moved = Axis(LR.low + shift, LR.high + shift, LR.length, LR.reach)
    again = response(points[list(order)] + shift, y[list(order)], axes=(moved,))
    assert again.vertex[0] - shift == pytest.approx(plain.vertex[0], abs=1e-9)


def test_two_axes_meet_at_the_lowest_point():
    """lr and a knob whose optima hang on each other: the vertex is the lowest point of the whole plane."""
    rng = np.random.default_rng(0)
    axes = (LR, Axis.knob())
    points = np.column_stack([rng.uniform(LR.low, LR.high, 40), rng.uniform(0, 1, 40)])
    y = (points[:, 0] + 2.4 - 0.5 * points[:, 1]) ** 2 + (points[:, 1] - 0.6) ** 2
    fitted = response(points, y, axes=axes)
    plane = np.stack(np.meshgrid(np.linspace(LR.low, LR.high, 81), np.linspace(0, 1, 81), indexing="ij"), -1)
    assert fitted.mean(fitted.vertex[None])[0] <= fitted.mean(plane.reshape(-1, 2)).min() + 1e-6
    assert fitted.vertex == pytest.approx([-2.1, 0.6], abs=0.1)


# the next points


def test_the_next_round_by_hand():
    """Four points 0.16 decade apart round the vertex; within the range where they would leave it."""
    points = np.linspace(-3.4, -1.6, 12)[:, None]
    fitted = response(points, parabola(points))
    assert fitted.next_points()[:, 0] - fitted.vertex[0] == pytest.approx([-0.24, -0.08, 0.08, 0.24])
    points = np.linspace(LR.low, LR.high, 12)[:, None]
    edge = response(points, parabola(points, best=-3.6))
    assert edge.vertex[0] == LR.low
    assert edge.next_points()[:, 0] == pytest.approx(LR.low + np.array([0.0, 0.16, 0.32, 0.48]))
    narrow = Axis.lr(1e-3, 1.2e-3).near(-3.0, 4)
    assert narrow[[0, -1]] == pytest.approx(np.log10([1e-3, 1.2e-3]))


def test_a_pair_along_each_axis():
    """With a knob: lr -+ 0.24 decade at the knob's vertex, the knob -+ 0.2 at the lr's vertex."""
    axes = (LR, Axis.knob())
    points = np.array([[a, b] for a in np.linspace(-3.4, -1.6, 6) for b in (0.1, 0.4, 0.7)])
    fitted = response(points, parabola(points) + (points[:, 1] - 0.5) ** 2, axes=axes)
    lr, knob = fitted.vertex
    np.testing.assert_allclose(
        fitted.next_points(), [[lr - 0.24, knob], [lr + 0.24, knob], [lr, knob - 0.2], [lr, knob + 0.2]]
    )


def test_a_vertex_on_the_edge_widens_the_range_once():
    """Where the vertex lies in the outer 5 % of the lr's range, the range goes on for a decade on that side, and the
    next points may leave the old one; a second time it stands, and a knob's range always does."""
    points = np.linspace(LR.low, LR.high, 12)[:, None]
    edge = response(points, parabola(points, best=-3.7))
    wide = edge.widened()
    assert wide.axes[0].low == pytest.approx(LR.low - 1.0)
    assert wide.axes[0].high == LR.high
    assert wide.next_points().min() < LR.low
    lower = np.concatenate([points, np.linspace(LR.low - 1.0, LR.low, 6)[:, None]])
    again = response(lower, parabola(lower, best=-4.6), axes=wide.axes)
    assert again.axes[0].edge(again.vertex[0]) == "low"
    assert again.widened() is again
    assert response(points, parabola(points)).widened().axes == (LR,)
    high = response(points, parabola(points, best=-1.3)).widened().axes[0]
    assert (high.low, high.high) == (LR.low, pytest.approx(LR.high + 1.0))
    knob = response(np.linspace(0, 1, 6), np.linspace(0, 1, 6), axes=(Axis.knob(),))
    assert knob.vertex[0] == 0.0
    assert knob.widened() is knob


def guided(loss, n_rounds: int):
    """Coarse points and guided rounds as the planner has them: each from nothing but the runs so far."""
    points, rounds = np.linspace(LR.low + 0.1, LR.high - 0.1, 8)[:, None], np.zeros(8, dtype=int)
    for number in range(1, n_rounds + 1):
        more = respond((LR,), points, loss(points), 1.0, rounds).widened().next_points()
        points, rounds = np.concatenate([points, more]), np.concatenate([rounds, np.full(len(more), number)])
    return points, rounds


def test_an_optimum_beyond_the_range_is_found():
    """An optimum a third of a decade below the range is reached to within a tenth of an e-fold in two rounds."""
    best = LR.low - 0.33

    def loss(points):
        return 24.0 + 1.5 * (points[:, 0] - best) ** 2

    points, rounds = guided(loss, 2)
    found = respond((LR,), points, loss(points), 1.0, rounds)
    assert found.axes[0].low == pytest.approx(LR.low - 1.0)
    assert loss(found.vertex[None])[0] - 24.0 < 0.1


def test_the_order_of_runs_decides_nothing():
    """The ranges and the vertex follow from the runs and their rounds, in whatever order they ended."""

    def loss(points):
        return 24.0 + 1.5 * (points[:, 0] - LR.low + 0.2) ** 2 + 0.05 * np.sin(40 * points[:, 0])

    points, rounds = guided(loss, 2)
    plain = respond((LR,), points, loss(points), 1.0, rounds)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(points))
        again = respond((LR,), points[order], loss(points[order]), 1.0, rounds[order])
        assert again.axes == plain.axes
        assert again.vertex == pytest.approx(plain.vertex)


def test_a_round_that_failed_widens_nothing_twice():
    """A round without a run that could be used leaves ranges and vertex as the earlier rounds have them."""

    def loss(points):
        return 24.0 + 1.5 * (points[:, 0] - LR.low + 0.2) ** 2

    points, rounds = guided(loss, 1)
    plain = respond((LR,), points, loss(points), 1.0, rounds)
    skipped = respond((LR,), points, loss(points), 1.0, np.where(rounds == 1, 2, 0))
    assert skipped.axes == plain.axes
    assert skipped.vertex == pytest.approx(plain.vertex)


# how sure


def test_equal_generators_give_equal_variances():
    """The variance is of the generator handed in; another one gives another, near it."""
    points = np.linspace(-3.4, -1.6, 12)[:, None]
    fitted = response(points, parabola(points))
    first, again, other = (fitted.tuning_variance(np.random.default_rng(s)) for s in (1, 1, 2))
    assert first == again != other
    assert other == pytest.approx(first, rel=0.5)


def test_more_runs_make_the_vertex_surer():
    """Guided rounds lower the tuning variance."""
    rng = np.random.default_rng(0)
    points = np.linspace(-3.4, -1.6, 8)[:, None]
    seeds = np.zeros(8, dtype=int)
    before = response(points, parabola(points), seeds)
    variances = [before.tuning_variance(rng)]
    for seed in range(1, 5):
        points = np.concatenate([points, before.next_points()])
        seeds = np.concatenate([seeds, np.full(4, seed)])
        before = response(points, parabola(points), seeds)
        variances.append(before.tuning_variance(rng))
    assert variances[-1] < 0.5 * variances[0]


def test_the_variance_is_that_of_curves_like_these():
    """Over curves drawn from the prior itself, with noise of its size, the tuning variance is on average that of what
    the vertex loses: the posterior is calibrated where its assumptions hold."""
    rng = np.random.default_rng(3)
    grid = np.linspace(LR.low, LR.high, 81)
    prior = 0.16 * np.exp(-((grid[:, None] - grid) ** 2) / (2 * 0.35**2)) + 1e-9 * np.eye(81)
    factor = np.linalg.cholesky(prior)
    lost, variances = [], []
    for _ in range(400):
        curve = factor @ rng.standard_normal(81)
        points = rng.choice(81, 8, replace=False)
        seeds = np.zeros(8, dtype=int)
        y = curve[points] + 0.1 * rng.standard_normal() + 0.1 * rng.standard_normal(8)
        fitted = response(grid[points], y, seeds)
        for seed in (1, 2):
            more = np.abs(grid[:, None] - fitted.next_points()[:, 0]).argmin(axis=0)
            y = np.concatenate(
                [y, curve[more] + 0.1 * rng.standard_normal() + 0.1 * rng.standard_normal(more.size)]
            )
            points, seeds = np.concatenate([points, more]), np.concatenate([seeds, np.full(more.size, seed)])
            fitted = response(grid[points], y, seeds)
        lost.append(np.interp(fitted.vertex[0], grid, curve) - curve.min())
        variances.append(fitted.tuning_variance(rng))
    assert 0.5 < np.mean(variances) / np.var(lost) < 1.5


def test_draws_of_one_point_have_no_luck():
    """A steep valley seen by many seeds leaves no doubt."""
    points = np.repeat(np.linspace(-3.4, -1.6, 8), 12)[:, None]
    fitted = response(points, parabola(points, depth=20.0), np.arange(96))
    assert 0.0 <= fitted.tuning_variance(np.random.default_rng(0)) < 2e-3
