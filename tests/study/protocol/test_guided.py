"""Guided tuning: rounds round the vertex, planned from finished runs alone, and what is confirmed in the end."""

from __future__ import annotations

import math
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_training import BEST_LR, FakeTraining, Finished, finish, of, prepare

from study.design.space import Dimension, Space
from study.protocol.guided import Guided, Round, TuningRun, guide
from study.protocol.selection import State
from study.statistics.curves import Curve
from study.store import records
from study.store.store import Store
from study.workers.trial import Trainer
from vae.recipe import MAX_LR, Recipe

GUIDED: dict[str, Any] = {
    "method": 2,
    "tune_trials": 8,
    "seeds": 8,
    "arms": ["twice", "same"],
    "margin": 0.02,
    "stop_at_target": True,
}
TAU = 10_000.0
LR = Dimension(low=3e-4, high=3e-2, log=True)


def curve(speed: float) -> Curve:
    """Falls by 10 nats an e-fold of examples; `speed` e-folds ahead."""
    examples = np.geomspace(50.0, TAU, 180)
    return Curve(examples, 100.0 - 10.0 * (np.log(examples / 50.0) + speed))


def hill(params: dict[str, Any], top: float, noise: float = 0.0) -> float:
    """Speed in e-folds: a parabola over decades of lr with its top at `top`."""
    return -2.0 * (math.log10(params["lr"]) - math.log10(top)) ** 2 + noise


def tuned(
    space: Space, coarse: list[dict[str, Any]], top: float, seed: int = 0
) -> tuple[Guided, list[Round]]:
    """Guided tuning to its end where the speed is a hill with some luck of the run."""
    rng = np.random.default_rng(seed)
    rounds = [[TuningRun(p, curve(hill(p, top, 0.05 * rng.standard_normal()))) for p in coarse]]
    asked = []
    while True:
        step = guide(space, rounds, target=70.0, tau=TAU, slope=math.nan)
        if not isinstance(step, Round):
            assert step is not None
            return step, asked
        asked.append(step)
        rounds.append([TuningRun(p, curve(hill(p, top, 0.05 * rng.standard_normal()))) for p in step.points])


COARSE = [{"lr": LR.at("lr", (i + 0.5) / 8)} for i in range(8)]


def test_the_vertex_is_near_the_top() -> None:
    """Over twenty tunings of a noisy hill the vertex is within a tenth of a decade on average, closer than the best
    coarse point, whose grid alone is 0.25 decades wide; two rounds of four points each were asked for."""
    found = [tuned({"lr": LR}, COARSE, 4e-3, seed) for seed in range(20)]
    off = [abs(math.log10(guided.params["lr"] / 4e-3)) for guided, _ in found]
    assert np.mean(off) < 0.1
    for guided, asked in found:
        assert [(step.number, len(step.points)) for step in asked] == [(1, 4), (2, 4)]
        assert not guided.widened
        assert 0.0 < guided.variance(np.random.default_rng(0)) < 0.05


def test_an_edge_is_widened_once() -> None:
    """Where the top lies beyond the range, the next round looks up to a decade further, no more; and it is said."""
    guided, asked = tuned({"lr": LR}, COARSE, 6e-2)
    assert guided.widened == ("lr high",)
    assert asked[0].space["lr"].high == pytest.approx(0.3)
    assert max(p["lr"] for step in asked for p in step.points) > 3e-2
    assert guided.params["lr"] > 3e-2
    far, _ = tuned({"lr": LR}, COARSE, 10.0)
    assert far.widened == ("lr high",)
    assert far.edges == ("lr high",)
    assert far.params["lr"] <= 0.3 * (1 + 1e-12)


def test_no_range_is_widened_past_what_a_recipe_has() -> None:
    """An lr is at most 100: a range that ends near there is widened to it, and every point can be trained."""
    high = Dimension(low=0.3, high=43.0, log=True)
    guided, asked = tuned({"lr": high}, [{"lr": high.at("lr", (i + 0.5) / 8)} for i in range(8)], 1e4)
    assert guided.widened == ("lr high",)
    assert guided.space["lr"].high == pytest.approx(MAX_LR)
    lrs = [point["lr"] for step in asked for point in step.points] + [guided.params["lr"]]
    assert [Recipe(lr=lr).lr for lr in lrs] == lrs


def test_choices_and_whole_numbers_stay() -> None:
    """Those of the best coarse point are kept; lr alone is guided then."""
    space = {"lr": LR, "batch_size": Dimension(choices=(16, 32)), "latent_size": Dimension(low=2, high=8)}
    coarse = [p | {"batch_size": 16 if i % 2 else 32, "latent_size": 4} for i, p in enumerate(COARSE)]
    guided, asked = tuned(space, coarse, 4e-3)
    kept = {(p["batch_size"], p["latent_size"]) for step in asked for p in [*step.points, guided.params]}
    assert len(kept) == 1
    assert guided.fields == ("lr",)


def test_several_knobs_get_a_pair_each() -> None:
    """Beside lr, a knob is guided in its own range: two points along each a round, all inside the ranges."""
    dropout = Dimension(low=0.02, high=0.3)
    coarse = [p | {"dropout": dropout.at("dropout", (i * 3 % 8 + 0.5) / 8)} for i, p in enumerate(COARSE)]
    guided, asked = tuned({"lr": LR, "dropout": dropout}, coarse, 4e-3)
    assert [len(step.points) for step in asked] == [4, 4]
    assert guided.fields == ("lr", "dropout")
    for p in [*asked[0].points, *asked[1].points, guided.params]:
        assert 0.02 <= p["dropout"] <= 0.3
        assert 3e-4 <= p["lr"] <= 3e-2 * (1 + 1e-12)


def test_nothing_to_guide() -> None:
    """A point alone, choices alone and no run at all ask for no round."""
    alone = guide({"lr": LR}, [[TuningRun({"lr": 1e-3}, curve(0.0))]], target=70.0, tau=TAU, slope=1.0)
    assert isinstance(alone, Guided)
    assert alone.params == {"lr": 1e-3}
    assert alone.variance(np.random.default_rng(0)) == 0.0
    batch = {"batch_size": Dimension(choices=(16, 32))}
    runs = [TuningRun({"batch_size": size}, curve(size / 100)) for size in (16, 32)]
    chosen = guide(batch, [runs], target=70.0, tau=TAU, slope=1.0)
    assert isinstance(chosen, Guided)
    assert chosen.params == {"batch_size": 32}
    assert guide({"lr": LR}, [[]], target=70.0, tau=TAU, slope=1.0) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A guided comparison that was run at one go; not to be changed."""
    return finish(tmp_path_factory.mktemp("whole"), **GUIDED)


def test_what_a_guided_comparison_runs(whole: Finished) -> None:
    """K coarse points, two rounds of four on seeds of their own to E0, then the vertex on S seeds, five of them to
    tau; the rounds' seeds and the confirmation's are the same in every arm; the vertex is near the known best lr. A
    later look that finds the same curves works nothing out again."""
    with whole.open() as (store, state):
        trials = records.trials(store, "fake")
        for arm in ("baseline", "twice", "same"):
            found = state.guided(arm, 1)
            assert isinstance(found, Guided)
            rounds = of(trials, "guided", arm)
            assert len(of(trials, "tune", arm)) == 8
            assert list(rounds["seed"].value_counts(sort=False)) == [4, 4]
            assert set(rounds["outcome"]) == {"measured"}
            where = found.where.examples
            assert rounds["examples"].between(where, 1.2 * where + 8).all()
            confirm = of(trials, "confirm", arm)
            assert len(confirm) == 8
            assert (confirm["examples"] >= state.workload.tau).sum() == 5
            assert list(confirm["outcome"]).count("hit") == 3
            used = {Recipe.from_json(text).lr for text in confirm["recipe"]}
            assert used == {found.params["lr"]}
            assert abs(math.log10(found.params["lr"] / BEST_LR)) < 0.2
            assert 0.0 < state.tuning_variance(arm, 1) < 0.1
        later = State(store, state.experiment, state.workload, state)
        for arm in ("baseline", "twice", "same"):
            assert later.guided(arm, 1) is state.guided(arm, 1)
        seeds = trials.groupby(["arm", "phase"])["seed"].agg(lambda s: sorted(set(s)))
        assert seeds["baseline", "guided"] == seeds["twice", "guided"] == seeds["same", "guided"]
        assert seeds["baseline", "confirm"] == seeds["twice", "confirm"]


def test_a_round_that_failed_as_a_whole_is_passed_over(whole: Finished, tmp_path: Path) -> None:
    """Its points say nothing: the next round comes all the same, and the vertex is found from what there is."""
    folder = whole.copy(tmp_path / "copy")
    of_round = "phase = 'guided' AND arm = 'twice'"
    with closing(sqlite3.connect(folder / "optuna.db")) as connection, connection:
        failed = connection.execute(
            f"UPDATE trial_run SET outcome = 'failed' WHERE {of_round} "
            f"AND seed = (SELECT min(seed) FROM trial_run WHERE {of_round})"
        )
        assert failed.rowcount == 4
    with Finished(folder, GUIDED).open() as (_, state):
        found = state.guided("twice", 1)
        assert isinstance(found, Guided)
        assert found.response is not None
        assert len(found.response.y) == 8 + 4


def test_an_unknown_slope_is_asked_with_once(whole: Finished, tmp_path: Path) -> None:
    """Where the baseline never reaches the target that was given, a later look works nothing out again either."""
    folder = whole.copy(tmp_path / "copy")
    with Store.open(f"sqlite:///{folder / 'optuna.db'}") as store:
        spec = store.load_experiment("fake")
        assert spec is not None
        store.save_experiment("fake", spec | {"experiment": spec["experiment"] | {"target": 5.0}})
    with Finished(folder, GUIDED).open() as (store, state):
        assert state.calibration is not None
        assert math.isnan(state.calibration.slope)
        found = state.guided("twice", 1)
        assert State(store, state.experiment, state.workload, state).guided("twice", 1) is found


def test_the_plan_depends_on_no_stop(whole: Finished, tmp_path: Path) -> None:
    """A comparison that is stopped in the middle of a trial every few dozen evaluations, and gone on with by another
    process that knows the database alone, runs and finds the same as one that was run at one go."""
    (tmp_path / "parts").mkdir()
    stops, ended = 0, False
    while not ended:
        stop, seen = threading.Event(), 0

        class Stopped(FakeTraining):
            @staticmethod
            def hook(_: FakeTraining) -> None:
                nonlocal seen
                seen += 1
                if seen > 97:
                    stop.set()  # noqa: B023 - called before the next one is made

        trainer = Trainer(train=Stopped, grid=FakeTraining.grid)  # type: ignore[arg-type]
        with (session := prepare(tmp_path / "parts", trainer, **GUIDED)).store:
            session.work(stop, 0, until=session.planner.advance)
            ended = not stop.is_set() and session.planner.advance()
        stops += stop.is_set()
    assert stops > 10
    with whole.open() as (a, _), Finished(tmp_path / "parts", GUIDED).open() as (b, _):
        columns = ["study_name", "number", "phase", "seed", "recipe", "outcome", "examples_to_target"]
        left, right = (
            records.trials(s, "fake")[columns].sort_values(["study_name", "number"]) for s in (a, b)
        )
        assert left.reset_index(drop=True).equals(right.reset_index(drop=True))
