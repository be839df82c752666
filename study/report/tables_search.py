"""Frames behind the joint search's figures: its trials, what mattered in them, rate against distortion."""

from __future__ import annotations

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import TrialState

from study.report.tables import changes
from study.space import Space
from study.storage import Store
from vae.recipe import Recipe

#: Complete trials below which an importance would be noise.
LEAST_TRIALS = 8
#: Seeds of the random forests of fANOVA: their spread is shown.
FANOVA_SEEDS = (0, 1, 2)
#: Complete trials that an importance looks at, the latest ones: a forest's cost grows with them.
MOST_TRIALS = 500


def searched(trials: pd.DataFrame, name: str, base: Recipe) -> pd.DataFrame:
    """The search's trials that have ended, by number, with `best` (the least loss of a complete trial so far)
    and `changes` (the recipe against the baseline's)."""
    own = trials[(trials["study_name"] == f"{name}/search") & (trials["phase"] == "search")]
    own = own[own["outcome"].notna()].sort_values("number")
    loss = own["best_valid_loss"].where(own["state"] == "COMPLETE")
    recipes = [
        changes(Recipe.from_json(text), base) if isinstance(text, str) else "" for text in own["recipe"]
    ]
    return own.assign(best=loss.cummin().ffill(), changes=recipes).reset_index(drop=True)


def importance(store: Store, name: str, found: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """(frame, why it is empty or what is left out). Columns evaluator, run (seed of the forest; 0 for PED-ANOVA),
    field, importance (shares of 1). Optuna looks at complete trials only."""
    columns = ["evaluator", "run", "field", "importance"]
    nothing = pd.DataFrame(columns=columns)
    complete = found[(found["state"] == "COMPLETE") & found["value"].notna()]
    if len(complete) < LEAST_TRIALS or complete["value"].nunique() < 2:
        return (
            nothing,
            f"Importance needs {LEAST_TRIALS} complete trials that differ; there are {len(complete)}.",
        )
    study = _latest(optuna.load_study(study_name=f"{name}/search", storage=store.optuna))
    everywhere = [
        field
        for field in dict.fromkeys(field for trial in study.trials for field in trial.params)
        if all(field in trial.params for trial in study.trials)
    ]
    conditional = sorted({field for trial in study.trials for field in trial.params} - set(everywhere))
    note = f"Not asked for in every trial, so left out: {', '.join(conditional)}." if conditional else ""
    evaluators: list[tuple[str, int, BaseImportanceEvaluator]] = [
        ("PED-ANOVA", 0, PedAnovaImportanceEvaluator())
    ]
    evaluators += [
        ("fANOVA", seed, FanovaImportanceEvaluator(n_trees=32, seed=seed)) for seed in FANOVA_SEEDS
    ]
    rows = [
        (label, run, field, float(share))
        for label, run, evaluator in evaluators
        for field, share in get_param_importances(study, evaluator=evaluator, params=everywhere).items()
    ]
    return pd.DataFrame(rows, columns=columns), note


def _latest(study: optuna.Study) -> optuna.Study:
    """The study's complete trials with a value, the latest MOST_TRIALS of them, in memory."""
    complete = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.value is not None and np.isfinite(trial.value)
    ]
    copy = optuna.create_study(direction="minimize")
    copy.add_trials(complete[-MOST_TRIALS:])
    return copy


def rate_distortion(curves: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Rate and distortion of each search trial at its best evaluation. Columns number, outcome, state, rate,
    distortion, active_units, loss, beta, changes, seed."""
    columns = [
        "number",
        "outcome",
        "state",
        "rate",
        "distortion",
        "active_units",
        "loss",
        "beta",
        "changes",
        "seed",
    ]
    own = curves[curves["trial_id"].isin(found["trial_id"]) & curves["valid_loss"].notna()]
    if own.empty:
        return pd.DataFrame(columns=columns)
    best = own.loc[own.groupby("trial_id")["valid_loss"].idxmin()]
    best = best[["trial_id", "rate", "distortion", "active_units", "valid_loss"]]
    joined = found[["trial_id", "number", "outcome", "state", "changes", "seed", "recipe"]].merge(
        best, on="trial_id"
    )
    beta = [Recipe.from_json(text).beta for text in joined["recipe"]]
    return joined.assign(beta=beta, loss=joined["valid_loss"])[columns]


def axis_kind(space: Space, field: str) -> str:
    """ "log", "linear" or "category": how a search field's axis is drawn."""
    dimension = space[field].distribution(field) if field in space else None
    if isinstance(dimension, CategoricalDistribution):
        return "category"
    if isinstance(dimension, FloatDistribution | IntDistribution) and dimension.log:
        return "log"
    return "linear"
