"""From recorded trials to the table: every figure checked against the formula that made the losses."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_training
import numpy as np
import pandas as pd
import pytest
from fake_training import FakeTraining, Finished, Scores, arms_table, estimated, loss_at, share_to

from study.analysis.arm import find
from study.analysis.columns import article_frame
from study.analysis.comparison import Comparison, _edges
from study.analysis.evidence import read
from study.analysis.findings import beside
from study.analysis.frames import ends, savings
from study.analysis.notes import notes
from study.analysis.words import DASH, examples_of, speed_up_of
from study.design.space import Dimension
from study.protocol.selection import State
from study.statistics.judgement import Pair
from study.statistics.verdicts import Verdict
from study.store import records
from study.store.store import Store
from study.terms import Outcome
from vae.recipe import Recipe

TAU = 64_000


@pytest.fixture
def comparison(compared: Finished) -> Comparison:
    """The estimates of the five arms."""
    with compared.open() as (store, _):
        return estimated(store)


def row(comparison: Comparison, arm: str) -> dict[str, Any]:
    """The arm's row of the exported table."""
    return {str(key): value for key, value in arms_table(comparison).loc[arm].to_dict().items()}


def said(store: Store, comparison: Comparison) -> list[str]:
    return notes(comparison, read(store, "fake").state)


def truth(compared: Finished, comparison: Comparison, arm: str) -> np.ndarray:
    """Examples to target of each confirmation run, by the formula."""
    assert comparison.target is not None
    with compared.open() as (_, state):
        runs = [run.recipe for run in state.of(arm, "confirm")]
    return np.array([TAU * share_to(recipe, comparison.target) for recipe in runs if recipe is not None])


def test_examples_to_target_are_exact(compared: Finished, comparison: Comparison) -> None:
    """Mean examples and epochs to target are those of the formula: the loss is linear in log examples, so
    interpolation adds nothing."""
    for arm in ("baseline", "twice", "half-more", "same"):
        E = truth(compared, comparison, arm)
        found = row(comparison, arm)
        assert found["examples"] == pytest.approx(E.mean(), rel=1e-9)
        assert found["epochs"] == pytest.approx(E.mean() / 64, rel=1e-9)
        assert found["par2"] == found["ert"] == pytest.approx(E.mean(), rel=1e-9)


def test_speed_ups_are_ratios_of_means(compared: Finished, comparison: Comparison) -> None:
    """The speed-up is the baseline's mean examples over the arm's, its interval the paired one; the simultaneous
    interval, over five arms, is wider."""
    B = truth(compared, comparison, "baseline")
    for arm in ("twice", "half-more"):
        A, found = truth(compared, comparison, arm), row(comparison, arm)
        assert found["speed_up"] == pytest.approx(B.mean() / A.mean(), rel=1e-9)
        se = np.std(B / B.mean() - A / A.mean(), ddof=1) / math.sqrt(6)
        assert found["se"] == pytest.approx(se, rel=1e-6)
        assert math.log(found["high"] / found["speed_up"]) == pytest.approx(2.5706 * se, rel=1e-3)  # t, 5 df
        assert found["simultaneous_low"] < found["low"] < found["high"] < found["simultaneous_high"]


def test_misses_count_as_tau(compared: Finished, comparison: Comparison) -> None:
    """An arm that misses on some seeds has its hits with an exact interval, the ratio on joint hits, a truncated
    ratio, and each miss at tau or twice tau in the averages; never a plain ratio."""
    found, E = row(comparison, "flaky"), truth(compared, comparison, "flaky")
    with compared.open() as (_, state):
        hit = np.array([run.seed % 3 != 0 for run in map(recipe_of, state.of("flaky", "confirm"))])
        B = truth(compared, comparison, "baseline")
    k = int(hit.sum())
    assert 0 < k < 6
    assert found["hits"] == k
    assert found["hit_low"] < k / 6 < found["hit_high"]
    assert found["par2"] == pytest.approx((E[hit].sum() + 2 * TAU * (6 - k)) / 6, rel=1e-9)
    assert found["ert"] == pytest.approx((E[hit].sum() + TAU * (6 - k)) / k, rel=1e-9)
    assert found["conditional"] == pytest.approx(B[hit].mean() / E[hit].mean(), rel=1e-9)
    assert found["rmst"] == pytest.approx(B.mean() / np.where(hit, E, TAU).mean(), rel=1e-9)
    assert math.isnan(found["speed_up"])
    assert math.isinf(row(comparison, "never")["ert"])


def test_an_arm_that_misses_is_at_most_so_fast(comparison: Comparison) -> None:
    """Where too many seeds miss for a ratio, the truncated one's upper limit bounds it, and is what is shown; not
    where the baseline's own examples are cut off at tau, nor of an arm that has a ratio."""
    for name in ("flaky", "never"):
        arm = find(comparison.arms, name)
        assert arm is not None
        assert arm.rmst is not None
        assert arm.at_most == arm.rmst.high > arm.rmst.ratio
        assert examples_of(arm) == f"at most {arm.rmst.high:.2f}x"
    twice = find(comparison.arms, "twice")
    assert twice is not None
    assert examples_of(twice) == speed_up_of(twice.examples) != DASH
    E, hit = np.full(3, 8.0), np.array([True, True, False])
    pair = Pair(np.arange(3), E, hit, E, hit, None)
    assert beside(twice, pair, 8.0).at_most is None


def recipe_of(run: Any) -> Recipe:
    assert run.recipe is not None
    recipe: Recipe = run.recipe
    return recipe


def test_the_resolution_is_the_grids(comparison: Comparison) -> None:
    """The relative width of the grid cell round the hit: here a coarse grid's, a fifth."""
    assert row(comparison, "baseline")["resolution"] == pytest.approx(0.2, abs=0.03)
    assert math.isnan(row(comparison, "never")["resolution"])


def test_the_articles_loss_is_a_second_target(compared: Finished, comparison: Comparison) -> None:
    """How much sooner each arm has the loss that the article's recipe ends with: tau over its examples."""
    with compared.open() as (_, state):
        final = [loss_at(recipe_of(run), run.examples / TAU) for run in state.of("article", "confirm")]
        loss = float(np.median(final))
        mean = np.mean([TAU * share_to(recipe_of(run), loss) for run in state.of("twice", "confirm")])
    table = article_frame(comparison.article).set_index("arm")
    assert table.loc["twice", "loss"] == pytest.approx(loss)
    assert table.loc["twice", "examples"] == pytest.approx(mean, rel=1e-9)
    assert table.loc["twice", "sooner"] == pytest.approx(TAU / mean, rel=1e-9)
    assert table.loc["twice", "sooner_low"] < table.loc["twice", "sooner"] < table.loc["twice", "sooner_high"]
    assert "article" not in table.index
    assert set(table.index) == {"baseline", "twice", "half-more", "same", "never", "flaky"}


def test_what_capping_saved_is_counted(compared: Finished, comparison: Comparison) -> None:
    """The share of tuning examples saved: of what the arms' K points would have used to tau."""
    with compared.open() as (store, _):
        trials = records.trials(store, "fake")
    tuned = trials[(trials["phase"] == "tune") & (trials["arm"] != "baseline")]
    assert comparison.savings == {"capping": pytest.approx(1 - tuned["examples"].sum() / (TAU * len(tuned)))}


def test_what_broke_down_by_itself_is_no_saving(compared: Finished) -> None:
    """A trial that failed or diverged used few examples, but no rule spared the rest."""
    with compared.open() as (_, state):
        whole = savings(state).set_index("part")
        first = next(run for run in state.runs if run.assignment.capped and run.arm == "twice")
        for bad, examples in ((Outcome.FAILED, math.nan), (Outcome.DIVERGED, 1.0)):
            lost = replace(first, outcome=bad, examples=examples)
            state.runs.append(lost)
        pd.testing.assert_frame_equal(savings(state).set_index("part"), whole)
        assert whole.loc["twice", "trials"] == 4


def test_a_trial_that_diverged_stays_so_whatever_its_last_loss(compared: Finished) -> None:
    """Its training loss alone may have become infinite: its curve still counts as infinitely bad from there on."""
    with compared.open() as (store, _):
        evidence = read(store, "fake")
        runs = evidence.state.runs
        at = next(i for i, run in enumerate(runs) if run.phase == "confirm" and run.arm == "twice")
        runs[at] = replace(runs[at], outcome=Outcome.DIVERGED)
        assert np.isfinite(evidence.curves[runs[at].trial_id].valid_loss).all()
        assert [i for i, curve in evidence.curves.items() if curve.diverged] == [runs[at].trial_id]


def test_a_trial_that_failed_is_called_so_whoever_says_it() -> None:
    """Optuna's word for it is ours: a table has no two columns for one end."""
    frame = pd.DataFrame(
        {"outcome": ["failed", None, None, "hit"], "state": ["FAIL", "FAIL", "RUNNING", "COMPLETE"]}
    )
    assert ends(frame).tolist() == ["failed", "failed", "running", "hit"]


def test_seconds_are_examples_times_throughput(compared: Finished, tmp_path: Path) -> None:
    """The speed-up in seconds is that in examples times the throughput factor; the cold start is added once; an
    arm that isn't timed has no seconds."""
    folder = compared.copy(tmp_path)
    rng = np.random.default_rng(1)
    with Store.open(f"sqlite:///{folder / 'optuna.db'}") as store:
        for pair in range(10):
            for arm, factor, cold in (("twice", 0.5, 0.0), ("half-more", 3.0, 1e6)):
                records.add_throughput(
                    store,
                    "fake",
                    arm,
                    pair,
                    examples_per_second=factor * 1e3 * (1 + 0.001 * rng.standard_normal()),
                    baseline_examples_per_second=1e3,
                    cold_start_seconds=cold,
                )
        comparison = estimated(store)
    twice, half = row(comparison, "twice"), row(comparison, "half-more")
    for found, r in ((twice, 0.5), (half, 3.0)):
        assert found["throughput"] == pytest.approx(r, rel=2e-3)
        assert found["speed_up_seconds"] == pytest.approx(found["speed_up"] * found["throughput"])
        assert found["low_seconds"] < found["speed_up_seconds"] < found["high_seconds"]
    assert twice["verdict"] == "faster"
    assert twice["verdict_seconds"] == "not distinguishable"  # twice as fast in examples, half in throughput
    assert half["verdict_seconds"] == "faster"
    assert twice["cold"] == pytest.approx(twice["speed_up_seconds"], rel=1e-6)
    seconds = half["examples"] / half["examples_per_second"]
    assert half["cold"] == pytest.approx(half["speed_up_seconds"] * seconds / (seconds + 1e6), rel=1e-3)
    assert row(comparison, "same")["verdict_seconds"] == Verdict.NOT_MEASURED
    assert row(comparison, "flaky")["verdict_seconds"] == Verdict.NOT_MEASURED


def test_test_losses_are_compared_at_the_hit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An arm that is as far on validation and worse on the test split is flagged, with the paired difference; one
    that is worse on average only, within its interval, is not."""

    def evaluate(self: FakeTraining, split: Any, limit: int) -> Scores:  # noqa: ARG001
        recipe, odd = self.recipe, self.recipe.seed % 2
        worse = 0.5 + 0.01 * odd if recipe.init == "orthogonal" else 0.0
        worse += (0.1 if odd else -0.08) if recipe.output_bias_from_mean else 0.0
        return Scores(30.0 + 0.01 * (recipe.seed % 5) + worse)

    monkeypatch.setattr(FakeTraining, "evaluate", evaluate)
    finished = fake_training.finish(
        tmp_path, arms=["twice", "half-more"], seeds=4, tune_trials=1, target=20.0
    )
    with finished.open() as (store, state):
        comparison = estimated(store)
        said = notes(comparison, state)
    twice, half = row(comparison, "twice"), row(comparison, "half-more")
    assert twice["test_difference"] == pytest.approx(0.505)
    assert twice["test_low"] < 0.505 < twice["test_high"]
    assert twice["test_worse"] is True
    assert half["test_difference"] == pytest.approx(0.01)
    assert half["test_worse"] is False
    assert any("twice is worse on the test split at its hit: +0.51 nats" in note for note in said)


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    """With one seed there is a ratio, no interval, no verdict, and the reason why."""
    finished = fake_training.finish(tmp_path, arms=["twice"], seeds=1, tune_trials=1, target=20.0)
    with finished.open() as (store, state):
        comparison = estimated(store)
        said = notes(comparison, state)
    found = row(comparison, "twice")
    assert found["speed_up"] == pytest.approx(2.0, rel=0.1)
    assert math.isnan(found["low"])
    assert found["verdict"] == "not distinguishable"
    assert found["no_interval"] == "one unit: no interval"
    assert any("No interval: one unit" in note for note in said)


def test_unfinished_comparisons_say_so(tmp_path: Path) -> None:
    """After every phase the estimates can be asked for: what isn't there is called not measured."""
    session = fake_training.prepare(tmp_path, arms=["twice", "half-more"], seeds=2, tune_trials=1)
    phases = 0
    with session.store as store:
        while not session.planner.advance():
            phases += 1
            comparison = estimated(store)
            verdicts = arms_table(comparison)["verdict"]
            assert verdicts["baseline"] == "baseline"
            assert set(verdicts[["twice", "half-more"]]) == {Verdict.NOT_MEASURED}
            assert any("twice, half-more lack confirmation runs" in note for note in said(store, comparison))
            assert (comparison.target is None) == (phases <= 2)
            session.work(threading.Event(), sampler_seed=0)
        comparison = estimated(store)
        assert not any("lack confirmation runs" in note for note in said(store, comparison))
    assert phases == 4
    assert all(arm.measured or arm.is_baseline for arm in comparison.arms)


def test_winners_on_an_edge_are_named() -> None:
    """A winner in the outer twentieth of its range is named with the field and the end, once over the blocks."""
    space = {"lr": Dimension(low=1e-4, high=1e-2, log=True), "horizon": Dimension(low=0.1, high=1.0)}
    winners = {
        ("cosine", 1): {"lr": 1.01e-4, "horizon": 0.5},
        ("cosine", 2): {"lr": 1.02e-4, "horizon": 0.99},
        ("baseline", 1): {"lr": 1e-3},
        ("baseline", 2): None,
    }
    experiment = SimpleNamespace(
        technique={"cosine": object()}.get,
        guided=False,
        blocks=2,
        spaces=lambda arm, small: ({"lr": space["lr"]}, {"horizon": space["horizon"]}),  # noqa: ARG005
    )

    def of(arm: str, block: int) -> Any:
        params = winners[arm, block]
        return None if params is None else SimpleNamespace(params=params)

    state: Any = SimpleNamespace(experiment=experiment, workload=None, winner=of)
    assert _edges(state, "cosine") == ("lr low", "horizon high")
    assert _edges(state, "baseline") == ()
    assert _edges(state, "article") == ()


def test_the_table_has_the_same_columns_whatever_happened(comparison: Comparison) -> None:
    """One row an arm, the baseline first, references last; a figure that isn't there is NaN."""
    table = arms_table(comparison)
    assert list(table["arm"]) == [
        "baseline",
        "twice",
        "half-more",
        "same",
        "never",
        "flaky",
        "article",
    ]
    assert list(table["kind"]) == ["baseline", *["technique"] * 5, "reference"]
    assert isinstance(table["speed_up"].dtype, np.dtype)
    assert table["p_adjusted"].notna().sum() == 2
    assert pd.isna(row(comparison, "baseline")["speed_up"])


def test_estimates_are_the_same_however_often_asked(compared: Finished, comparison: Comparison) -> None:
    """Reading changes nothing and draws nothing at random."""
    with compared.open() as (store, state):
        assert isinstance(state, State)
        again = estimated(store)
        assert notes(again, state) == notes(comparison, state)
    pd.testing.assert_frame_equal(arms_table(again), arms_table(comparison))
