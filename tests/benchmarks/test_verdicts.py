"""The simulation of whole studies on recorded curves."""

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.verdict_world import BASELINE, CHOSEN_ON, World, world
from benchmarks.verdicts import (
    PROTOCOLS,
    SCENARIOS,
    Scenario,
    Table,
    calibrate,
    capped_cost,
    expected_log_examples,
    figures,
    simulate,
    tune_guided,
)
from study.statistics.verdicts import Verdict


def test_a_faster_world_is_faster_by_that_much():
    """An arm of speed-up 1.5 needs two thirds of the examples on every curve that gets there."""
    base, fast = world(BASELINE, True, False, 1.0), world(BASELINE, True, False, 1.5)
    for i in (12, 16, 18):
        E = base.examples(base.curves[i], 25.5)
        there = base.tau / 1.5 > E
        assert fast.examples(fast.curves[i], 25.5)[there] == pytest.approx(E[there] / 1.5)


def test_the_world_has_its_best_learning_rate_inside():
    """The expected examples to target are lowest near 8e-3, smoothed or not, and smoothing moves them by little."""
    for smooth in (True, False):
        at = world(BASELINE, smooth, False, 1.0)
        means = [at.examples(curves, 25.0).mean() for curves in at.curves]
        assert 5e-3 < at.lrs[int(np.argmin(means))] < 1e-2


def test_held_out_seeds_are_those_no_constant_was_chosen_on():
    """Where a learning rate has more seeds than the first ones, only the others are left."""
    everything, held_out = World(smooth=False), World(smooth=False, held_out=True)
    assert held_out.rows == everything.rows - CHOSEN_ON == 8
    for lr, rest in zip(everything.curves, held_out.curves, strict=True):
        expected = lr[CHOSEN_ON:] or lr
        assert [curve.valid_loss.tolist() for curve in rest] == [
            curve.valid_loss.tolist() for curve in expected
        ]


def test_seeds_of_two_arms_are_correlated():
    """Three rows in four are the other arm's."""
    rng = np.random.default_rng(0)
    at = world(BASELINE, True, False, 1.0)
    rows = at.draw_rows(4000, rng)
    assert np.mean(at.paired_rows(rows, rng) == rows) == pytest.approx(0.75 + 0.25 / at.rows, abs=0.03)


def test_the_cost_of_capped_runs_by_hand():
    """Each run ends at its own E or where the best so far was: 5, 3, 3, 3; with two kept: 5, 3, 5, 5."""
    assert capped_cost(np.array([5.0, 3.0, 9.0, 8.0]), keep=1) == 14.0
    assert capped_cost(np.array([5.0, 3.0, 9.0, 8.0]), keep=2) == 18.0


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_equal_seeds_give_equal_studies(protocol):
    """A study is its seed's; another seed's is another."""
    first, again, other = (
        simulate(protocol, Scenario("", [1.0, 1.5]), Table(), np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert first.verdicts == again.verdicts
    assert np.array_equal(first.limits, again.limits, equal_nan=True)
    assert not np.array_equal(first.lost, other.lost)


def test_guided_tuning_is_surer_than_two_finalists():
    """Over 40 studies the guided protocol's tunings differ by less than 0.7 of the others', and a fourfold effect is
    found in nine of ten at least."""
    scenario, spread = Scenario("", [1.0, 4.0]), {}
    for name, protocol in PROTOCOLS.items():
        rng = np.random.default_rng(3)
        studies = [simulate(protocol, scenario, Table(), rng) for _ in range(40)]
        spread[name] = np.std([study.lost[1] - study.lost[0] for study in studies])
    assert spread["guided"] < 0.7 * spread["before"]
    assert sum(study.verdicts[1] is Verdict.FASTER for study in studies) >= 36
    assert float(figures(scenario, studies)["cost, tau an arm"]) > 1.0


def test_the_command_prints_every_figure():
    """False verdicts, coverage, power and cost of both protocols."""
    done = CliRunner().invoke(app, ["verdicts", "--studies", "1"])
    assert done.exit_code == 0, done.output
    for line in (
        "families with a false verdict",
        "intervals all hold",
        "true ratio 1.20",
        "without a verdict",
        "tau an arm",
    ):
        assert line in done.output
    assert done.output.count("guided") == len(SCENARIOS)


def test_a_range_that_ends_too_early_is_widened():
    """A range that ends at 4e-3, half a step short of the optimum: with widening half of what is lost is won back."""
    at = world(BASELINE, True, False, 1.0)
    lost = {}
    for widen in (True, False):
        rng = np.random.default_rng(1)
        calibrations = [calibrate(at, PROTOCOLS["guided"], rng) for _ in range(40)]
        lost[widen] = np.mean(
            [
                np.interp(np.log(tune_guided(at, c, rng, 4e-3, widen).lr), np.log(at.lrs), E) - E.min()
                for c in calibrations
                for E in [expected_log_examples(at, c.target)]
            ]
        )
    assert lost[True] < 0.5 * lost[False]
