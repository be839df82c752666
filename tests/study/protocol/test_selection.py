"""Who is confirmed: the point that reaches the target first, and never one that ended badly."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import fake_training
import numpy as np
import pandas as pd
import pytest
from fake_training import FakeTraining, Finished, arms_table, of, recipes, rerun, share_to

from study.analysis.notes import notes
from study.protocol.selection import State, judge
from study.statistics.calibration import calibrate_target
from study.statistics.curves import MISS
from study.terms import Phase
from vae.errors import UserError
from vae.recipe import Recipe

TAU = 64_000


def state_of(folder: Path, **values: Any) -> State:
    rerun(folder, **values)
    with Finished(folder, values).open() as (_, state):
        return state


def test_the_baseline_is_rescored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The point with the best final loss sets the target, but the baseline everywhere is the point that reaches
    it first, by the same score as the arms': here another one, fast at first and worse in the end."""
    plain = fake_training.loss_at

    def crossing(recipe: Recipe, share: float) -> float:
        return max(plain(recipe, 40 * share), 16.0) if recipe.lr < 1e-3 else plain(recipe, share)

    monkeypatch.setattr(fake_training, "loss_at", crossing)
    state = state_of(tmp_path, arms=["same"], seeds=2)
    lrs = [run.params["lr"] for run in state.of("baseline", "tune")]
    assert sum(lr < 1e-3 for lr in lrs) == 1
    assert state.calibration_winner is not None
    assert state.calibration_winner.params["lr"] > 1e-3
    for arm in ("baseline", "same"):
        assert {run.params["lr"] < 1e-3 for run in state.of(arm, "confirm")} == {True}


def test_a_point_that_was_lucky_on_one_seed_does_not_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every arm's best two points run again on two more tuning seeds, the same in all arms, and the better one
    wins: not a point that is fastest on the first seed and misses on others. The target, too, is that of a point
    that is good on every seed."""
    plain = fake_training.loss_at

    def lucky(recipe: Recipe, share: float) -> float:
        if not 2e-3 < recipe.lr < 5e-3:
            return plain(recipe, share)
        first = recipe.seed // 5_000 % 10 == 2  # tuning's own
        return plain(recipe, share) - 5.0 if first else plain(recipe, share) + 9.0

    monkeypatch.setattr(fake_training, "loss_at", lucky)
    values: dict[str, Any] = {"arms": ["same"], "seeds": 2, "stop_at_target": True}
    (tmp_path / "one").mkdir()
    (tmp_path / "three").mkdir()
    deceived = state_of(tmp_path / "one", **values, tune_seeds=1)
    state = state_of(tmp_path / "three", **values, tune_seeds=3)
    for arm in ("baseline", "same"):
        assert all(2e-3 < run.params["lr"] < 5e-3 for run in deceived.of(arm, "confirm"))
        assert not any(2e-3 < run.params["lr"] < 5e-3 for run in state.of(arm, "confirm"))
        finalists = state.finalists(arm, 1)
        assert finalists is not None
        assert len(finalists) == 2
        assert 2e-3 < finalists[0].params["lr"] < 5e-3
    assert state.calibration_winner is not None
    assert not 2e-3 < state.calibration_winner.params["lr"] < 5e-3
    same, baseline = (state.of(arm, "final") for arm in ("same", "baseline"))
    assert [run.recipe.seed for run in same if run.recipe] == state.experiment.final_seeds("same", 1) * 2
    assert {run.recipe.seed for run in baseline if run.recipe} == set(state.experiment.final_seeds("same", 1))
    # The baseline's are what a target is made from: they run to tau; an arm's end at the target.
    assert {run.outcome for run in baseline} == {"completed"}
    assert "hit" in {run.outcome for run in same}


def test_the_mean_over_seeds_leaves_a_failed_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalist is judged by the seeds that it has; that one of them failed is no verdict on it."""

    def crash(training: FakeTraining) -> None:
        if training.recipe.init == "orthogonal" and training.recipe.seed // 10_000 == 5:
            raise ArithmeticError("no")

    monkeypatch.setattr(FakeTraining, "hook", staticmethod(crash))
    state = state_of(tmp_path, arms=["twice"], seeds=2, target=20.0, tune_seeds=2)
    finalists = state.finalists("twice", 1)
    assert finalists is not None
    assert [run.outcome for run in state.of("twice", "final")] == ["failed", "failed"]
    assert state.winner("twice", 1) is finalists[0]


@pytest.mark.parametrize(
    ("first", "second", "best"),
    [
        ((0.2, 0.2, 2.01), (0.8, 0.9, 0.8), 1),  # fewer misses before a better mean
        ((2.0, 2.0, 2.9), (2.1, 2.1, 2.1), 1),  # as many misses: the mean
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0),  # equals: the better on the first seed
        ((0.2, np.nan, np.nan), (0.3, 0.3, 0.3), 1),  # all its reruns failed: one lucky seed is no judgement
        ((0.2, np.nan, 0.2), (0.3, 0.3, 0.3), 0),  # one failed: judged by the others
        ((10.0, 10.0, 10.0), (9.0, 2.0, 2.0), 1),  # a breakdown is the worst miss
    ],
)
def test_finalists_are_judged_by_misses_then_by_the_mean(
    first: tuple[float, ...], second: tuple[float, ...], best: int
) -> None:
    """What misses the target on a tuning seed would miss it on fresh ones."""
    assert judge([np.array(first), np.array(second)], MISS) == best


def test_what_was_compared_before_there_were_finalists_keeps_its_winners(tmp_path: Path) -> None:
    """An experiment stored without `tune_seeds` and `target_at` goes on with those of its time: nothing of it is run
    again. Where only a search was stored a comparison begins with today's."""
    values: dict[str, Any] = {"arms": ["twice"], "seeds": 2, "tune_seeds": 1, "target_at": 0.75}
    trials, comparison = rerun(tmp_path, **values)
    with Finished(tmp_path, {}).open() as (store, _):
        spec = store.load_experiment("fake")
    assert spec is not None

    def store_as_before(arms: list[str]) -> None:
        assert spec is not None
        experiment = {
            k: v for k, v in spec["experiment"].items() if k not in ("method", "tune_seeds", "target_at")
        }
        before = json.dumps(spec | {"experiment": experiment | {"arms": arms}})
        database = sqlite3.connect(tmp_path / "optuna.db")
        with database:
            database.execute("UPDATE experiment SET spec = ? WHERE name = 'fake'", (before,))
        database.close()

    store_as_before(["twice"])
    again, now = rerun(tmp_path, **values)
    pd.testing.assert_frame_equal(again, trials)
    assert now.target == comparison.target
    store_as_before([])
    with Finished(tmp_path, {}).open() as (_, state):
        assert (state.experiment.method, state.experiment.target_at, state.experiment.seeds) == (2, 0.5, 20)


@pytest.mark.parametrize("ending", ["diverged", "failed"])
def test_a_trial_that_ended_badly_never_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Of an arm's points the fastest diverges or fails: another one is confirmed."""

    def bad(recipe: Recipe) -> bool:
        return recipe.init == "orthogonal" and 1e-3 < recipe.lr < 8e-3

    if ending == "diverged":
        monkeypatch.setattr(FakeTraining, "diverges", staticmethod(bad))
    else:
        monkeypatch.setattr(FakeTraining, "hook", staticmethod(raise_for(bad)))
    state = state_of(tmp_path, arms=["twice"], seeds=2, target=8.0)
    tuned = state.of("twice", "tune")
    endings = {run.outcome for run in tuned}
    assert ending in endings
    assert endings - {ending}
    best = state.winner("twice", 1)
    assert best is not None
    assert best.outcome not in ("diverged", "failed", "capped")
    assert {run.params["lr"] for run in state.of("twice", "confirm")} == {best.params["lr"]}


def raise_for(bad: Callable[[Recipe], bool]) -> Callable[[FakeTraining], None]:
    def hook(training: FakeTraining) -> None:
        if bad(training.recipe):
            raise ArithmeticError("no")

    return hook


def test_a_baseline_trial_that_failed_after_its_hit_never_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline's points run to tau and are scored from their curves: one that reached the target first and
    failed later has a curve, and still isn't the baseline."""

    def late(training: FakeTraining) -> None:
        if 2e-3 < training.recipe.lr < 5e-3 and training.examples > 0.7 * TAU:
            raise ArithmeticError("no")

    monkeypatch.setattr(FakeTraining, "hook", staticmethod(late))
    state = state_of(tmp_path, arms=["never"], seeds=1, target=40.0)
    tuned = state.of("baseline", "tune")
    assert [run.outcome for run in tuned].count("failed") == 1
    (failed,) = (run for run in tuned if run.outcome == "failed")
    fastest = min(tuned, key=lambda run: share_to(run.recipe, 40.0) if run.recipe else 1.0)
    assert fastest is failed
    assert state.curves([failed])[0].best() < 40
    best = state.winner("baseline", 1)
    assert best is not None
    assert best.outcome == "completed"


def test_an_arm_that_only_diverges_is_confirmed_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every point of an arm diverged its confirmation runs show it: they never reach the target."""
    monkeypatch.setattr(FakeTraining, "diverges", staticmethod(lambda recipe: recipe.init == "orthogonal"))
    trials, comparison = rerun(tmp_path, arms=["twice"], seeds=2, target=6.0)
    assert set(of(trials, "tune", "twice")["outcome"]) == {"diverged"}
    assert set(of(trials, "tune", "twice")["reason"]) == {"as it was told to"}
    found = arms_table(comparison).loc["twice"]
    assert (found["verdict"], found["hits"], found["diverged"]) == ("never reaches the target", 0, 2)


def test_an_arm_that_only_fails_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every tuning trial of an arm failed there is no winner, the others are compared all the same, and the
    notes say what failed."""
    monkeypatch.setattr(
        FakeTraining, "hook", staticmethod(raise_for(lambda recipe: recipe.init == "orthogonal"))
    )
    trials, comparison = rerun(tmp_path, arms=["twice", "half-more"], seeds=2, target=20.0)
    with Finished(tmp_path, {}).open() as (_, state):
        said = " ".join(notes(comparison, state))
    assert trials[trials["arm"] == "twice"]["reason"].eq("ArithmeticError: no").all()
    table = arms_table(comparison)
    assert table.loc["twice", "verdict"] == "not measured yet"
    assert table.loc["half-more", "verdict"] in ("faster", "not distinguishable")
    assert "nothing is confirmed of: twice (ArithmeticError: no)." in said
    assert "twice 3" in said


def test_no_target_from_a_broken_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline that always diverges gives no target: said in one line, with the way out."""
    monkeypatch.setattr(FakeTraining, "diverges", staticmethod(lambda _: True))
    monkeypatch.setattr(fake_training, "loss_at", lambda recipe, share: float("nan"))  # noqa: ARG005
    with pytest.raises(UserError, match=r"No target can be calibrated for 'fake'.*--target"):
        rerun(tmp_path)


def test_stop_at_target_saves_the_rest(tmp_path: Path) -> None:
    """With stop_at_target confirmation runs end on their hit, with the same examples to target."""
    trials, comparison = rerun(tmp_path, seeds=2, stop_at_target=True, target=20.0)
    runs = of(trials, "confirm", "twice")
    assert set(runs["outcome"]) == {"hit"}
    assert (runs["examples"] < 0.6 * TAU).all()
    for row in runs.to_dict("records"):
        share = share_to(Recipe.from_json(row["recipe"]), row["target"])
        assert row["examples_to_target"] == pytest.approx(TAU * share, rel=1e-9)
    article = of(trials, "confirm", "article")
    assert set(article["outcome"]) == {"completed"}  # it misses, so its loss at tau is known
    assert {arm.arm: arm.hits for arm in comparison.article} == {"baseline": 2, "twice": 2}
    assert of(trials, "calibration").empty  # the target is given
    assert set(of(trials, "tune", "baseline")["outcome"]) == {
        "completed"
    }  # uncapped, to tau, as the target needs


def test_a_fixed_lr_leaves_one_point(tmp_path: Path) -> None:
    """With --set lr nothing is left to tune in an arm without knobs: one trial instead of K equal ones."""
    trials, comparison = rerun(tmp_path, seeds=2, fixed=["lr"], recipe={"batch_size": 8, "lr": 2e-3})
    assert Counter(of(trials, "tune")["arm"]) == {"baseline": 1, "twice": 1}
    assert {recipe.lr for recipe in recipes(trials[trials["arm"] != "article"])} == {2e-3}
    assert arms_table(comparison).loc["twice", "speed_up"] == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("outcome", ["failed", None])
def test_a_failed_calibration_run_sets_no_target(
    compared: Finished, tmp_path: Path, outcome: str | None
) -> None:
    """Its curve ends somewhere: the other seeds alone say where the target is. So it is with a run that was ended from
    outside, without a word of how."""
    folder = compared.copy(tmp_path)
    with closing(sqlite3.connect(folder / "optuna.db")) as database, database:
        first = "(SELECT min(trial_id) FROM trial_run WHERE phase = 'calibration')"
        database.execute(f"UPDATE trial_run SET outcome = ? WHERE trial_id = {first}", (outcome,))
        database.execute(f"UPDATE trials SET state = 'FAIL' WHERE trial_id = {first}")
        database.execute(f"DELETE FROM curve WHERE trial_id = {first} AND number > 9")
    with Finished(folder, {}).open() as (_, state):
        runs = state.of("baseline", Phase.CALIBRATION)
        assert [run.failed for run in runs] == [True, False, False, False, False]
        alone = calibrate_target(state.curves(runs[1:]), state.workload.tau, state.experiment.target_at)
        assert state.calibration == alone
