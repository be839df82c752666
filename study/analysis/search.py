"""Frames behind the joint search's figures: its trials, what mattered in them, rate against distortion."""

from __future__ import annotations

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from study.analysis.words import changes
from study.design.space import Space
from study.store.store import Store
from vae.recipe import Recipe

#: Complete trials below which an importance would be noise.
LEAST_TRIALS = 8
#: Seeds of the random forests of fANOVA: their spread is shown.
FANOVA_SEEDS = (0, 1, 2)
#: Trees of a forest, and complete trials that it is grown from at most: its cost is the product of the two.
N_TREES, MOST_TRIALS = 24, 100


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
    complete = found[(found["state"] == "COMPLETE") & found["value"].notna()]
    if len(complete) < LEAST_TRIALS or complete["value"].nunique() < 2:
        note = f"Importance needs {LEAST_TRIALS} complete trials that differ; there are {len(complete)}."
        return pd.DataFrame(columns=columns), note
    from optuna.importance import (  # scikit-learn's forests come with it: a second of imports
        BaseImportanceEvaluator,
        FanovaImportanceEvaluator,
        PedAnovaImportanceEvaluator,
        get_param_importances,
    )

    trials = [
        trial
        for trial in optuna.load_study(study_name=f"{name}/search", storage=store.optuna).trials
        if trial.state == TrialState.COMPLETE and trial.value is not None and np.isfinite(trial.value)
    ]
    fields = list(dict.fromkeys(field for trial in trials for field in trial.params))
    everywhere = [field for field in fields if all(field in trial.params for trial in trials)]
    if not everywhere:
        return pd.DataFrame(
            columns=columns
        ), "No field was asked for in every complete trial, so none has an importance."
    notes = [f"{field} is left out: not every trial has it." for field in fields if field not in everywhere]
    some = [trials[i] for i in np.unique(np.linspace(0, len(trials) - 1, MOST_TRIALS).astype(int))]
    if len(some) < len(trials):
        notes.append(f"fANOVA is of {len(some)} of the {len(trials)} complete trials, evenly spread.")
    forests = [FanovaImportanceEvaluator(n_trees=N_TREES, seed=seed) for seed in FANOVA_SEEDS]
    evaluators: list[tuple[str, int, BaseImportanceEvaluator, list[FrozenTrial]]] = [
        ("PED-ANOVA", 0, PedAnovaImportanceEvaluator(), trials),
        *(("fANOVA", seed, forest, some) for seed, forest in zip(FANOVA_SEEDS, forests, strict=True)),
    ]
    rows = [
        (label, run, field, float(share))
        for label, run, evaluator, own in evaluators
        for field, share in get_param_importances(_study(own), evaluator=evaluator, params=everywhere).items()
    ]
    return pd.DataFrame(rows, columns=columns), " ".join(notes)


def _study(trials: list[FrozenTrial]) -> optuna.Study:
    """A study of just these trials, in memory."""
    study = optuna.create_study(direction="minimize")
    study.add_trials(trials)
    return study


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
    dimension = space.get(field)
    if dimension is not None and dimension.choices is not None:
        return "category"
    return "log" if dimension is not None and dimension.log else "linear"
