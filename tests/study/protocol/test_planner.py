"""The protocol, on trainings whose losses are a formula: what is run, on which seeds, and who wins."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import fake_training
import numpy as np
import pandas as pd
import pytest
from fake_training import Finished, arms_table, estimated, of, recipes, rerun, share_to

from study.analysis.columns import combined_frame
from study.design.space import Dimension, sobol_points
from study.protocol.plan import ARTICLE_RECIPE, describe_plan
from study.protocol.planner import Planner
from study.store import records
from study.store.store import Store
from vae.recipe import Recipe

ARMS = ["twice", "half-more", "same", "never", "flaky"]
TAU = 64_000


@pytest.fixture
def trials(compared: Finished) -> pd.DataFrame:
    """All trials of the comparison with five arms."""
    with compared.open() as (store, _):
        return records.trials(store, "fake")


def test_every_arm_gets_the_same_chances(trials: pd.DataFrame) -> None:
    """K tuning points, the best two again on a second seed, and S confirmation seeds for each arm and the
    baseline, five calibration seeds, the reference arm untuned, and the combine block: nothing more, nothing
    unfinished."""
    counts = Counter(zip(trials["phase"], trials["arm"], strict=True))
    expected = {("tune", arm): 4 for arm in (*ARMS, "baseline", "combined")}
    expected |= {("final", arm): 2 for arm in (*ARMS, "baseline", "combined")}
    expected |= {("confirm", arm): 6 for arm in (*ARMS, "baseline", "article")}
    expected |= {("calibration", "baseline"): 5}
    combine = (
        "baseline",
        "twice",
        "half-more",
        "combined",
        "combined-without-twice",
        "combined-without-half-more",
    )
    expected |= {("combine", arm): 6 for arm in combine}
    assert counts == expected
    assert trials["outcome"].isin(["completed", "hit", "capped"]).all()


def test_the_plan_says_how_many(compared: Finished, trials: pd.DataFrame) -> None:
    """The plan printed beforehand counts exactly the trials that were run, but for the combined arm's."""
    with compared.open() as (_, state):
        plan = describe_plan(state.experiment)
        assert state.reruns == (plan["final"], plan["final"])
    ran = trials[(trials["arm"] != "combined") & (trials["phase"] != "combine")]
    assert {phase: n for phase, n in plan.items() if n} == dict(Counter(ran["phase"]))


def test_seeds_are_fresh_in_every_phase(trials: pd.DataFrame) -> None:
    """Tuning, calibration, confirmation and combine share no seed; within a phase all arms share theirs."""
    seeds = {phase: set(part["seed"]) for phase, part in trials.groupby("phase")}
    assert len(set.union(*seeds.values())) == sum(map(len, seeds.values()))
    assert {phase: len(found) for phase, found in seeds.items()} == {
        "tune": 1,
        "final": 1,
        "calibration": 5,
        "confirm": 6,
        "combine": 6,
    }
    for phase in ("confirm", "combine"):
        for _, part in of(trials, phase).groupby("arm"):
            assert list(part["seed"]) == sorted(seeds[phase])
    assert all(recipe.seed == seed for recipe, seed in zip(recipes(trials), trials["seed"], strict=True))


def test_arms_share_their_tuning_points(trials: pd.DataFrame) -> None:
    """The shared dimensions of the K points are the same in every arm, and are the Sobol points of the block."""
    points = {arm: tuple(part["params_lr"]) for arm, part in of(trials, "tune").groupby("arm")}
    space = {"lr": Dimension(low=3e-4, high=3e-2, log=True)}
    (seed,) = set(of(trials, "tune")["seed"])
    assert set(points.values()) == {tuple(p["lr"] for p in sobol_points(space, {}, 4, seed))}


def test_the_target_is_calibrated_on_the_best_point(compared: Finished, trials: pd.DataFrame) -> None:
    """The baseline's best point by final loss runs on five seeds; the target is the median over them of the
    least loss by half of tau; none of it is capped or stopped early."""
    tuned = of(trials, "tune", "baseline")
    best = tuned.loc[tuned["valid_loss"].idxmin(), "params_lr"]
    runs = of(trials, "calibration")
    assert set(runs["params_lr"]) == {best}
    for part in (tuned, runs):
        assert (part["outcome"] == "completed").all()
        assert (part["examples"] >= TAU).all()
        assert part["target"].isna().all()
    with compared.open() as (store, state):
        curves = records.curves(store, "fake", runs["trial_id"].tolist())
        at = curves[curves["examples"] <= 0.5 * TAU].groupby("trial_id")["valid_loss"].min()
        assert state.target == pytest.approx(at.median(), abs=1e-12)
        assert state.calibration is not None
        assert state.calibration.hits == 5


def test_arms_are_tuned_under_the_cap_to_the_target(compared: Finished, trials: pd.DataFrame) -> None:
    """Every tuning trial of an arm aims a little below the target, stops there, and is cut once two others have won."""
    with compared.open() as (_, state):
        target = state.tuning_target
    assert target is not None
    assert state.target is not None
    assert target < state.target
    arms = of(trials, "tune")[lambda table: table["arm"] != "baseline"]
    assert set(arms["target"]) == {target}
    hits, capped = arms[arms["outcome"] == "hit"], arms[arms["outcome"] == "capped"]
    assert (hits["state"] == "COMPLETE").all()
    assert (capped["state"] == "PRUNED").all()
    assert capped["score"].isna().all()
    assert len(capped) >= 4
    for row in hits.to_dict("records"):
        recipe = Recipe.from_json(row["recipe"])
        assert row["examples_to_target"] == pytest.approx(TAU * share_to(recipe, target), rel=1e-9)
        assert row["score"] == pytest.approx(row["examples_to_target"] / TAU)
        assert row["examples"] < 1.3 * row["examples_to_target"]
    for row in capped.to_dict("records"):
        best = hits[hits["arm"] == row["arm"]]["examples_to_target"].min()
        assert best < row["examples"] <= 1.6 * best


def test_each_winner_is_the_fastest_point(compared: Finished, trials: pd.DataFrame) -> None:
    """Each arm is confirmed with the point that reaches the target in the fewest examples, by the formula."""
    with compared.open() as (_, state):
        for arm in ("baseline", "twice", "half-more", "same", "combined"):
            tuned = recipes(of(trials, "tune", arm))
            fastest = int(np.argmin([share_to(recipe, state.target) for recipe in tuned]))
            best = state.winner(arm, 1)
            assert best is not None
            assert best.index == fastest
            phase = "combine" if arm == "combined" else "confirm"
            for recipe in recipes(of(trials, phase, arm)):
                assert recipe.replace(seed=0) == tuned[fastest].replace(seed=0)


def test_confirmation_runs_last_to_tau(trials: pd.DataFrame) -> None:
    """Confirmation curves are complete, with a test loss wherever the target is reached."""
    runs = of(trials, "confirm")
    assert (runs["examples"] >= TAU).all()
    assert (runs["outcome"] == "completed").all()
    assert (runs["test_loss"].notna() == runs["hit"].astype(bool)).all()


def test_verdicts_are_the_truth(compared: Finished) -> None:
    """A true 2x is found faster with 2 in its interval; an identical arm is not; an arm that never gets there
    and one that sometimes doesn't are called that, without a plain ratio."""
    with compared.open() as (store, state):
        table = arms_table(estimated(store))
        unlucky = sum(seed % 3 == 0 for seed in state.experiment.seed_set("confirm", 6))
    for arm, ratio in (("twice", 2.0), ("half-more", 1.5)):
        row = table.loc[arm]
        assert row["verdict"] == "faster"
        assert row["low"] < ratio < row["high"]
        assert row["high"] / row["low"] < 1.2
        assert row["p_adjusted"] < 0.001
    assert table.loc["same", "verdict"] == "not distinguishable"
    assert table.loc["same", "speed_up"] == 1.0
    assert table.loc["never", "verdict"] == "never reaches the target"
    assert table.loc["flaky", "verdict"] == f"unreliable ({6 - unlucky} of 6)"
    assert table.loc[["never", "flaky"], ["speed_up", "low", "high", "p"]].isna().all(axis=None)
    assert table.loc["flaky", "hits"] == 6 - unlucky


def test_the_article_is_a_reference(trials: pd.DataFrame, compared: Finished) -> None:
    """The article's recipe is run untuned on the confirmation seeds and takes no part in the family's p."""
    for recipe in recipes(of(trials, "confirm", "article")):
        assert {field: getattr(recipe, field) for field in ARTICLE_RECIPE} == ARTICLE_RECIPE
    with compared.open() as (store, _):
        row = arms_table(estimated(store)).loc["article"]
    assert row["kind"] == "reference"
    assert np.isnan(row["p_adjusted"])


def test_the_combined_arm_adds_up(compared: Finished) -> None:
    """Two techniques of two slots are combined, tuned again and run on fresh seeds beside their parts and
    without each; 2x times 1.5x is 3x, and the check of the sum finds nothing missing."""
    with compared.open() as (store, _):
        comparison = estimated(store)
    table = combined_frame(comparison.combined).set_index("arm")
    truth = {"twice": 2, "half-more": 1.5, "combined": 3}
    truth |= {"combined-without-twice": 1.5, "combined-without-half-more": 2}
    assert set(table.index) == set(truth)
    for arm, ratio in truth.items():
        assert table.loc[arm, "speed_up"] == pytest.approx(ratio, rel=0.06)
        assert table.loc[arm, "verdict"] == "faster"
        assert table.loc[arm, "seeds"] == 6
    assert comparison.addition is not None
    assert comparison.addition.low < 1 < comparison.addition.high


def test_a_finished_comparison_has_nothing_to_do(compared: Finished, tmp_path: Path) -> None:
    """Another planner on a finished comparison enqueues nothing and is done at once."""
    compared.copy(tmp_path)
    session = fake_training.prepare(tmp_path, **compared.values)
    with session.store as store:
        before = len(records.trials(store, "fake"))
        assert Planner(store, session.experiment, session.workload).advance()
        assert len(records.trials(store, "fake")) == before


def test_a_trial_that_ends_while_the_planner_looks_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last trials of a phase end after the planner has read what was run, before it asks whether any is left:
    it doesn't take that for the end, and plans the next phase at its next look."""
    session = fake_training.prepare(tmp_path, arms=["twice"], seeds=2)
    planner = session.planner
    with session.store as store:
        assert not planner.advance()
        real = planner.observe

        def slow() -> Any:
            state = real()
            assert session.work(threading.Event(), sampler_seed=0) == 3
            return state

        planner._progress = -1
        monkeypatch.setattr(planner, "observe", slow)
        assert not planner.advance()
        assert records.remaining(store, "fake") == 0
        monkeypatch.setattr(planner, "observe", real)
        assert not planner.advance()
        assert records.remaining(store, "fake") == 5  # calibration


def test_what_another_planner_enqueues_meanwhile_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two launchers on one name: the other plans the next phase after this one has counted what is left and before
    it has the lock. This one then finds nothing to plan, and isn't done."""
    session = fake_training.prepare(tmp_path, arms=["twice"], seeds=2)
    other = fake_training.prepare(tmp_path, arms=["twice"], seeds=2)
    with session.store as store, other.store:
        assert not session.planner.advance()
        assert session.work(threading.Event(), sampler_seed=0) == 3
        real = records.remaining

        def remaining(store: Store, name: str) -> int:
            n = real(store, name)
            if store is session.store:
                assert not other.planner.advance()
            return n

        monkeypatch.setattr(records, "remaining", remaining)
        assert not session.planner.advance()
        assert real(store, "fake") == 5  # calibration


def test_topping_up_keeps_what_was_run(compared: Finished, trials: pd.DataFrame, tmp_path: Path) -> None:
    """More seeds and one more arm: every old trial stays bit by bit, only the new seeds and the new arm are run,
    and the combined arm keeps its recipe on the new seeds, though the new arm is the best of its slot by now."""
    folder = compared.copy(tmp_path)
    arms = [*ARMS, "thrice"]
    both = {"init": "orthogonal", "output_bias_from_mean": True}
    techniques = fake_training.TECHNIQUES | {"thrice": {"slot": "init", "overrides": both}}
    values = compared.values | {"arms": arms, "techniques": techniques, "seeds": 7}
    after, comparison = rerun(folder, **values)
    old = after[after["trial_id"].isin(trials["trial_id"])]
    pd.testing.assert_frame_equal(old[list(trials)].reset_index(drop=True), trials)
    new = after[~after["trial_id"].isin(trials["trial_id"])]
    assert Counter(new["phase"]) == {"tune": 4, "final": 2, "confirm": 7 + 7, "combine": 6}
    assert set(new[new["phase"] == "tune"]["arm"]) == {"thrice"}
    for _, part in after[after["phase"] == "combine"].groupby("arm"):
        assert len({recipe.replace(seed=0) for recipe in recipes(part)}) == 1
    assert all(arm.seeds == 7 for arm in comparison.arms)
    table = arms_table(comparison)
    assert table.loc["thrice", "low"] > table.loc["twice", "high"]


def test_blocks_repeat_the_tuning(blocked: Finished) -> None:
    """Each block has its own studies, its own scramble and tuning seed, and every R-th confirmation seed;
    the block is the unit of the estimate."""
    with blocked.open() as (store, _):
        trials = records.trials(store, "fake")
        row = arms_table(estimated(store)).loc["twice"]
    for arm in ("baseline", "twice"):
        tuned = trials[(trials["arm"] == arm) & (trials["phase"] == "tune")]
        assert tuned.groupby("block")["seed"].nunique().tolist() == [1, 1]
        assert tuned["seed"].nunique() == 2
        assert tuned["params_lr"].nunique() == 4
        assert set(tuned[tuned["block"] == 2]["study_name"]) == {f"fake/{arm}/2"}
        seeds = trials[(trials["arm"] == arm) & (trials["phase"] == "confirm")].groupby("block")["seed"]
        assert [sorted(s - 30_000 for s in part) for _, part in seeds] == [[0, 2], [1, 3]]
    # Only the first block of the baseline is what the target comes from; the second is tuned like an arm.
    baseline = trials[(trials["arm"] == "baseline") & (trials["phase"] == "tune")]
    assert set(baseline[baseline["block"] == 1]["outcome"]) == {"completed"}
    assert "hit" in set(baseline[baseline["block"] == 2]["outcome"])
    assert row["units"] == 2
    assert row["low"] < 2 < row["high"]


def test_a_reference_is_paired_with_every_block(blocked: Finished) -> None:
    """A reference arm has one recipe for all seeds and is still compared block by block."""
    with blocked.open() as (store, state):
        row = arms_table(estimated(store)).loc["twice"]
        assert row["units"] == 2
        runs = state.of("article", "confirm")
    # An A/A test would have no reference; with another arm beside it there is one, on all seeds.
    assert [run.index for run in runs] == [0, 1, 2, 3]


def test_a_second_baseline_is_independent(blocked: Finished) -> None:
    """The second baseline of an A/A test shares neither tuning points nor seeds with the first."""
    with blocked.open() as (store, _):
        trials = records.trials(store, "fake")
    for column, phase in (("params_lr", "tune"), ("seed", "tune"), ("seed", "confirm")):
        found = {arm: set(part[column]) for arm, part in trials[trials["phase"] == phase].groupby("arm")}
        assert not found["baseline"] & found["again"]
