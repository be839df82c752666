"""The joint search on real, tiny trainings: counts are totals, values are losses, the best model can be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import optuna
import pytest
from fake_training import SPACE, prepare, prepare_search

from study.analysis.advice import Use, offers
from study.analysis.evidence import read
from study.analysis.export import keep_models
from study.design.experiment import PrunerName, SamplerName
from study.session import Session
from study.store import records
from study.store.store import Store
from study.workers.samplers import build_sampler
from vae.checkpoint import load_model
from vae.elbo import elbo_terms
from vae.evaluation import GRID_IMAGES, evaluation_inputs
from vae.grid import evaluation_grid
from vae.likelihoods import likelihood
from vae.recipe import Recipe


def search(folder: Path, trials: int, **plan: Any) -> Session:
    session = prepare_search(folder, trials, **plan)
    session.run_here()
    return session


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Eight trials run to their ends."""
    return search(tmp_path_factory.mktemp("search"), 8, budget=3.0, pruner="none", sampler="random")


def test_a_count_is_a_total(searched: Session, tmp_path: Path) -> None:
    """`trials` is how many there are in the end: asked again nothing is added, asked for more only the rest, of which
    none is a point of before."""
    searched.run_here()
    assert len(records.trials(searched.store, "fake")) == 8
    session = search(tmp_path, 2)
    before = records.trials(session.store, "fake")
    session.store.close()
    session = search(tmp_path, 5)
    after = records.trials(session.store, "fake")
    assert len(before) == 2
    assert len(after) == 5
    assert list(after["number"]) == list(range(5))
    assert after.loc[:1, "value"].tolist() == before["value"].tolist()
    assert after["params_lr"].nunique() == 5
    session.store.close()


def test_a_value_is_the_best_validation_loss(searched: Session) -> None:
    """Optuna's value of each trial is the least validation loss on its curve."""
    trials, curves = records.trials(searched.store, "fake"), records.curves(searched.store, "fake")
    study = optuna.load_study(study_name="fake/search", storage=searched.store.optuna)
    least = curves.groupby("trial_id")["valid_loss"].min()
    for row, trial in zip(trials.to_dict("records"), study.trials, strict=True):
        assert row["value"] == trial.value == row["best_valid_loss"] == least[row["trial_id"]]
    assert study.best_value == least.min()


def test_a_finished_trial_has_its_whole_curve(searched: Session) -> None:
    """Each evaluation of the grid is a row, in order, to tau; the report to Optuna is a part of them."""
    grid = evaluation_grid(searched.workload.tau)
    study = optuna.load_study(study_name="fake/search", storage=searched.store.optuna)
    curves = records.curves(searched.store, "fake")
    for row, trial in zip(
        records.trials(searched.store, "fake").to_dict("records"), study.trials, strict=True
    ):
        curve = curves[curves["trial_id"] == row["trial_id"]]
        assert (curve["number"].diff().dropna() > 0).all()
        assert (curve["examples"].to_numpy() >= grid[curve["number"].to_numpy(dtype=int)]).all()
        assert curve["number"].iloc[-1] == len(grid) - 1
        assert curve["examples"].iloc[-1] == row["examples"] == searched.workload.tau
        assert curve["steps"].iloc[-1] == row["steps"] == searched.workload.tau / 4
        numbers = set(curve["number"])
        assert set(trial.intermediate_values) <= numbers
        assert len(trial.intermediate_values) >= len(grid) // 15


def test_every_trial_is_another_recipe(searched: Session) -> None:
    """Each trial's recipe holds its parameters and a seed of its own; what isn't searched is the baseline's."""
    trials = records.trials(searched.store, "fake")
    assert trials["seed"].nunique() == 8
    for row in trials.to_dict("records"):
        recipe = Recipe.from_json(row["recipe"])
        assert (recipe.seed, recipe.lr, recipe.batch_size) == (row["seed"], row["params_lr"], 4)
        assert (recipe.lr_schedule == "constant") == (
            row["params_horizon"] is None or np.isnan(row["params_horizon"])
        )
    assert {c for c in trials if c.startswith("params_")} == {f"params_{field}" for field in SPACE}


def evaluated(session: Session, path: Path) -> float:
    """The validation loss of a saved model, with the grid's images and noise."""
    trained = load_model(path)
    of = likelihood(trained.recipe.likelihood)
    x, noise = evaluation_inputs(of, trained.recipe.latent_size, session.data.valid.all(GRID_IMAGES))
    terms = elbo_terms(trained.model, of, x, noise)
    return float((terms.rate + terms.distortion).detach().mean())


def test_the_best_model_can_be_used(searched: Session) -> None:
    """The best trial's model is kept with its recipe, and its validation loss is the trial's value: the weights
    are those of its best evaluation, not of its last."""
    trials = records.trials(searched.store, "fake")
    best = trials.loc[trials["value"].astype(float).idxmin()]
    path = keep_models(read(searched.store, "fake"), searched.artifacts, pytest.fail)[Use.BEST].path
    recipe = Recipe.from_json(best["recipe"])
    assert load_model(path).recipe == recipe
    assert Recipe.load(path.with_suffix(".toml")) == recipe
    assert [offer.recipe for offer in offers(read(searched.store, "fake"))] == [recipe]
    trained = load_model(path)
    assert trained.data_fingerprint == searched.data.fingerprint
    assert evaluated(searched, path) == pytest.approx(best["value"], rel=1e-6)


def test_a_lost_model_is_said(tmp_path: Path) -> None:
    """Where the best trial's model was deleted, that is told with its path, and nothing is kept."""
    session = search(tmp_path, 1, pruner="none")
    (kept,) = (file for file in session.place.artifacts.files() if file.name.startswith("trial-"))
    kept.delete()
    said: list[str] = []
    assert keep_models(read(session.store, "fake"), session.artifacts, said.append) == {}
    assert str(kept) in said[0]
    assert "deleted" in said[0]
    session.store.close()


def test_an_overfitted_end_is_not_kept(tmp_path: Path) -> None:
    """A trial that gets worse after its best evaluation keeps the model of the best."""
    space = {"lr": {"low": 0.3, "high": 0.5}}
    session = search(tmp_path, 1, pruner="none", space=space, budget=3.0)
    (row,) = records.trials(session.store, "fake").to_dict("records")
    assert row["valid_loss"] > row["value"]
    path = keep_models(read(session.store, "fake"), session.artifacts, pytest.fail)[Use.BEST].path
    assert evaluated(session, path) == pytest.approx(row["value"], rel=1e-6)
    session.store.close()


def test_a_comparison_keeps_the_models_that_it_offers(tmp_path: Path) -> None:
    """Of every arm the model of its best confirmation run is kept: what is copied under the name of each offer has the
    loss of that run and its recipe; a model that is gone is said, and the others are copied all the same."""
    session = prepare(tmp_path, None, arms=["twice"], seeds=3, tune_trials=1, budget=2.0, target=3.0)
    said: list[str] = []
    with session.store as store:
        session.run_here()
        evidence = read(store, "fake")
        offered = {offer.use: offer for offer in offers(evidence)}
        kept = keep_models(evidence, session.artifacts, pytest.fail)
        assert set(kept) == set(offered) == set(Use)
        for use, path in ((use, file.path) for use, file in kept.items()):
            run = offered[use].run
            assert run is not None
            assert run.phase == "confirm"
            assert run.best_loss == min(other.best_loss for other in evidence.confirmed[run.arm])
            assert load_model(path).recipe == run.recipe == Recipe.load(path.with_suffix(".toml"))
            assert evaluated(session, path) == pytest.approx(run.best_loss, rel=1e-6)
        for path in (session.artifacts.path / "baseline").files():
            path.delete()
        kept = keep_models(evidence, session.artifacts, said.append)
    lost = {use for use, offer in offered.items() if offer.arm == "baseline"}
    assert set(kept) == set(Use) - lost
    assert [line.startswith("No model of baseline, ") for line in said] == [True] * len(lost)


def test_patience_ends_a_trial(tmp_path: Path) -> None:
    """With patience P a trial ends P grid points after its best loss, as a complete one."""
    space = {"lr": {"low": 0.3, "high": 0.5}}
    session = search(tmp_path, 2, pruner="none", patience=4, space=space, budget=3.0)
    trials, curves = records.trials(session.store, "fake"), records.curves(session.store, "fake")
    assert set(trials["outcome"]) == {"stopped"}
    assert set(trials["state"]) == {"COMPLETE"}
    for _, curve in curves.groupby("trial_id"):
        best = curve.loc[curve["valid_loss"].idxmin(), "number"]
        assert 4 <= curve["number"].iloc[-1] - best <= 4 + curve["number"].diff().max()
    assert (trials["examples"] < session.workload.tau).all()
    session.store.close()


@pytest.mark.parametrize("name", get_args(SamplerName))
def test_every_named_sampler_searches(tmp_path: Path, name: str) -> None:
    """Each sampler suggests different points for all trials, past its random start."""
    n = 11 if name in ("gp", "tpe") else 3
    session = search(
        tmp_path, n, sampler=name, pruner="none", space={"lr": SPACE["lr"], "beta": {"low": 0.5, "high": 1.0}}
    )
    trials = records.trials(session.store, "fake")
    assert set(trials["outcome"]) <= {"completed", "collapsed"}
    assert trials["params_lr"].nunique() == n
    assert trials["params_lr"].between(1e-3, 0.3).all()
    session.store.close()


@pytest.mark.parametrize("name", get_args(PrunerName))
def test_every_named_pruner_prunes_in_a_search(tmp_path: Path, name: str) -> None:
    """With each pruner the search ends with a complete best trial, and a pruned trial is never the best."""
    session = search(
        tmp_path,
        7,
        budget=2.0,
        sampler="random",
        pruner=name,
        space={"lr": {"low": 1e-6, "high": 0.3, "log": True}},
    )
    trials = records.trials(session.store, "fake")
    assert set(trials["outcome"]) <= {"completed", "collapsed", "pruned"}
    assert set(trials[trials["outcome"] == "pruned"]["state"]) <= {"PRUNED"}
    complete = trials[trials["state"] == "COMPLETE"]
    winner = session.planner.observe().search_winner
    assert winner is not None
    assert winner.best_loss == complete["value"].min()
    assert set(keep_models(read(session.store, "fake"), session.artifacts, pytest.fail)) == {Use.BEST}
    pruned = trials[trials["outcome"] == "pruned"]
    assert (pruned["examples"] < session.workload.tau).all()
    if name in ("none", "halving", "hyperband"):
        assert (len(pruned) == 0) == (name == "none")
    session.store.close()


def test_every_worker_has_its_own_points() -> None:
    """Workers, searches of other seeds and a search that goes on suggest different points; the same of all three gives
    the same again."""

    def first(name: str, *told: int) -> float:
        study = optuna.create_study(sampler=build_sampler(name, *told))
        return study.ask().suggest_float("lr", 0.0, 1.0)

    for name in ("tpe", "random", "gp", "qmc"):
        assert first(name, 0, 1, 1) == first(name, 0, 1, 1)
        assert len({first(name, *told) for told in ((0, 1, 1), (0, 2, 1), (3, 1, 1), (0, 1, 5))}) == 4
    with pytest.raises(ValueError, match="no sampler 'grid'"):
        build_sampler("grid", 0, 1, 1)


def test_optuna_alone_reads_the_study(searched: Session) -> None:
    """The study is an ordinary Optuna study: its own API finds trials, parameters and the best value."""
    with Store.open(searched.place.storage, read_only=True) as store:
        assert list(records.study_ids(store, "fake")) == ["fake/search"]
    study = optuna.load_study(study_name="fake/search", storage=searched.place.storage)
    assert len(study.trials) == 8
    assert set(study.best_params) >= {"lr", "hidden", "optimizer", "lr_schedule"}
    study._storage.remove_session()
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
