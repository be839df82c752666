"""Curves of our own database: the trials of an experiment with how each of them ended."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from study.curves.recorded import Curves, Ended, Recorded
from study.store import records
from study.store.store import Store
from study.store.url import shown
from study.terms import Outcome, Phase
from vae.errors import UserError

#: What our curves' value is called.
VALUE = "validation loss"


def label(seed: Any, block: int, number: int) -> str:
    """Which run of its arm: its seed, or its trial where it failed before it was told one."""
    return f"block {block}, trial {number}" if pd.isna(seed) else str(seed)


def read_stored(store: Store, name: str, phases: Collection[Phase] = (Phase.CONFIRM,)) -> Curves:
    """The runs of NAME of these phases that have ended, by arm, block and seed, those without an evaluation too.

    The label is `label`'s, the clock counts training examples, seconds are those of training alone. Raises UserError
    where there is none."""
    trials = records.trials(store, name)
    ended = trials[trials["outcome"].notna() & trials["phase"].isin([str(phase) for phase in phases])]
    if ended.empty:
        raise UserError(
            f"'{name}' has no finished trial of {' or '.join(phases)} in {shown(store.url)}: "
            "`python -m study compare` runs them."
        )
    rows = records.curves(store, name, [int(i) for i in ended["trial_id"]])
    ids, clock, value, seconds = (
        rows[column].to_numpy(np.float64, na_value=np.nan)
        for column in ("trial_id", "examples", "valid_loss", "train_seconds")
    )
    runs = []
    for trial in ended.sort_values(["block", "number"], kind="stable").to_dict("records"):
        mine = ids == trial["trial_id"]
        of_run = seconds[mine]
        runs.append(
            Recorded(
                arm=str(trial["arm"]),
                label=label(trial["seed"], int(trial["block"]), int(trial["number"])),
                clock=clock[mine],
                value=value[mine],
                seconds=of_run if np.isfinite(of_run).all() else None,
                ended=Ended.of(Outcome(trial["outcome"])),
                block=int(trial["block"]),
                phase=str(trial["phase"]),
                source=shown(store.url),
            )
        )
    source = f"{shown(store.url)}, experiment {name}, {' and '.join(phases)} trials"
    return Curves(runs=runs, clock="examples", value=VALUE, sources=[source])
