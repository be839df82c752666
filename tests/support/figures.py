"""What a fault must not change: every figure of an experiment that follows from its losses."""

from __future__ import annotations

import pandas as pd

from study.store import records
from study.store.store import Store

#: What follows from the losses alone; the rest are clocks, hosts, ids and how often a trial was taken.
FIGURES = [
    "study_name",
    "number",
    "state",
    "phase",
    "seed",
    "recipe",
    "outcome",
    "reason",
    "value",
    "target",
    "hit",
]
FIGURES += ["examples_to_target", "score", "valid_loss", "best_valid_loss", "test_loss", "examples", "steps"]


def figures(url: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every trial's figures and every curve, in order."""
    with Store.open(url) as store:
        trials = records.trials(store, "digits")
        rows = records.curves(store, "digits", trials["trial_id"].tolist())
    order = ["study_name", "number"]
    trials = trials.sort_values(order, ignore_index=True)[FIGURES]
    rows = rows.sort_values(["arm", "trial", "number"], ignore_index=True)
    return trials, rows.drop(columns=["trial_id", "train_seconds"])
