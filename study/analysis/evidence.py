"""One experiment's evidence: its standing and the frames behind the figures, read and computed once, and only what is
asked for."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from study.analysis import frames
from study.analysis import search as searches
from study.analysis.standing import Standing, is_own
from study.design.experiment import Experiment
from study.protocol.history import Run
from study.statistics.curves import Curve
from study.store import records
from study.store.store import Store
from study.terms import BASELINE, REFERENCE_ARMS, Outcome, StudyName


class Evidence(Standing):
    """What the report, the dashboard and the export share. The estimates are there; a frame is read and computed when
    it is first asked for, so the database stays open as long. Frames are empty where there is nothing yet; none but
    `table` has a row of a study that is not the experiment's own."""

    # The trials and what became of them.

    @cached_property
    def table(self) -> pd.DataFrame:
        """Every trial of the studies NAME/..., as `records.trials` gives them."""
        return records.trials(self.store, self.name)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """The experiment's own trials."""
        return own_trials(self.table, self.experiment)

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """How many trials ended how."""
        return frames.outcomes(self.trials)

    @cached_property
    def failures(self) -> pd.DataFrame:
        """The trials that went wrong, with reasons."""
        return frames.failures(self.trials)

    @cached_property
    def savings(self) -> pd.DataFrame:
        """What stopping early saved."""
        return frames.savings(self.state)

    # The comparison's curves and seeds.

    @cached_property
    def curve_rows(self) -> pd.DataFrame:
        """Every recorded evaluation, as `records.curves` gives them."""
        return records.curves(self.store, self.name)

    @cached_property
    def curves(self) -> dict[int, Curve]:
        """Trial id -> its recorded curve on the scale of the first block, for trials that have a point."""
        above = {run.trial_id: self.state.above_first(run.block) for run in self.state.runs}
        diverged = {run.trial_id for run in self.state.runs if run.outcome is Outcome.DIVERGED}
        recorded = curves_of(self.curve_rows, diverged)
        return {i: curve.lowered(above.get(i, 0.0)) for i, curve in recorded.items()}

    @cached_property
    def confirmed(self) -> dict[str, list[Run]]:
        """arm -> its finished confirmation runs, for arms that have some, in the order of `arms`."""
        found = {arm: frames.confirmed(self.state, arm) for arm in self.arms}
        return {arm: runs for arm, runs in found.items() if runs}

    @cached_property
    def bands(self) -> pd.DataFrame:
        """Learning curves: median and middle 80 % over seeds."""
        recorded = {
            arm: [self.curves[run.trial_id] for run in runs if run.trial_id in self.curves]
            for arm, runs in self.confirmed.items()
        }
        return frames.bands(recorded, self.speeds)

    @cached_property
    def seeds(self) -> pd.DataFrame:
        """One row a confirmation run."""
        return frames.seeds(self.state, self.confirmed, self.speeds)

    @cached_property
    def survival(self) -> pd.DataFrame:
        """Kaplan-Meier curves."""
        return frames.survival(self.seeds)

    @cached_property
    def by_target(self) -> pd.DataFrame:
        """The speed-ups at other targets."""
        runs = self.confirmed.get(BASELINE, [])
        baseline = [self.curves[run.trial_id] for run in runs if run.trial_id in self.curves]
        arms = frames.paired_curves(self.state, self.confirmed, self.curves)
        stopped = any(run.outcome is Outcome.HIT for runs in self.confirmed.values() for run in runs)
        target = self.state.target
        lowest = target if stopped and target is not None else -math.inf
        return frames.by_target(baseline, arms, self.workload.tau, lowest=lowest)

    @cached_property
    def tuning(self) -> pd.DataFrame:
        """One row a tuning trial."""
        return frames.tuning(self.state, self._tuned, self.curves)

    @cached_property
    def winners(self) -> pd.DataFrame:
        """Where tuning points lie in their space."""
        return frames.winners(self.state, self._tuned)

    @cached_property
    def response_runs(self) -> pd.DataFrame:
        """The runs behind the response curves of guided tuning; empty by method 1."""
        return frames.response_runs(self.state, self._tuned)

    @cached_property
    def responses(self) -> pd.DataFrame:
        """The response curves of guided tuning; empty by method 1."""
        return frames.responses(self.state, self._tuned)

    @property
    def _tuned(self) -> list[str]:
        return [arm for arm in self.arms if arm not in REFERENCE_ARMS]

    # The joint search.

    @cached_property
    def search(self) -> pd.DataFrame:
        """The search's trials that have ended."""
        return searches.searched(self.trials, self.name, self.experiment.recipe)

    @cached_property
    def _importance(self) -> tuple[pd.DataFrame, str]:
        return searches.importance(self.store, self.name, self.search)

    @property
    def importance(self) -> pd.DataFrame:
        """What mattered in the search, by field."""
        return self._importance[0]

    @property
    def importance_note(self) -> str:
        """Why there is none, or what is left out of it."""
        return self._importance[1]

    @cached_property
    def rate_distortion(self) -> pd.DataFrame:
        """Rate and distortion of each search trial at its best evaluation."""
        return searches.rate_distortion(self.curve_rows, self.search)


def read(store: Store, name: str) -> Evidence:
    """The evidence of an experiment, as `Standing.read`."""
    return Evidence.read(store, name)


def own_trials(trials: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """The experiment's own trials: those of a foreign Optuna study that happens to be called NAME/... are left
    out. A trial that still waits has its arm from its study's name."""
    # An empty frame has no strings to tell that these columns hold some.
    trials = trials.astype({"study_name": str, "state": str})
    arm = trials["study_name"].map(_arm_of).astype(str)
    ours = arm.map(lambda name: is_own(experiment, name)).astype(bool)
    started = trials["owner"].notna() | trials["outcome"].notna()
    ours &= started | trials["state"].isin(["WAITING", "RUNNING"])
    return trials[ours].assign(arm=arm[ours]).reset_index(drop=True)


def _arm_of(study_name: str) -> str:
    parsed = StudyName.parse(study_name)
    return parsed.arm if parsed is not None else ""


def curves_of(rows: pd.DataFrame, diverged: Collection[int]) -> dict[int, Curve]:
    """Trial id -> its recorded curve, for trials that have a point; `diverged` are those that ended by diverging, which
    a last validation loss need not show."""
    groups: Mapping[Any, pd.DataFrame] = dict(iter(rows.groupby("trial_id")))
    return {
        int(trial_id): Curve(
            group["examples"].to_numpy(np.float64),
            group["valid_loss"].to_numpy(np.float64, na_value=np.nan),
            trial_id in diverged,
        )
        for trial_id, group in groups.items()
    }
