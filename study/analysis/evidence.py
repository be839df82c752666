"""Everything one report shows, computed once: frames that `export` can write too, and the facts beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from study.analysis import frames as tables
from study.analysis import search as tables_search
from study.analysis.comparison import Comparison, estimate
from study.cli.tables import sorted_arms
from study.design.experiment import Experiment
from study.design.workload import Workload
from study.protocol.history import Run
from study.protocol.plan import describe_plan
from study.protocol.selection import State
from study.statistics.curves import Curve
from study.store import records
from study.store.store import Store
from study.terms import REFERENCE_ARMS

#: Families in the order of the catalogue come from the arms themselves; these arms have none.
NO_FAMILY = {"baseline": "baseline", "search": "reference", "combined": "reference"}


@dataclass(frozen=True)
class Evidence:
    """One experiment's evidence. Frames are empty where there is nothing yet; none has a row of a study that is
    not the experiment's own."""

    name: str
    experiment: Experiment
    fingerprint: str
    state: State
    comparison: Comparison | None
    """None where no comparison was asked for."""
    trials: pd.DataFrame
    speeds: dict[str, float]
    """Examples per second of the arms that were timed."""
    bands: pd.DataFrame
    seeds: pd.DataFrame
    survival: pd.DataFrame
    by_target: pd.DataFrame
    tuning: pd.DataFrame
    winners: pd.DataFrame
    savings: pd.DataFrame
    outcomes: pd.DataFrame
    failures: pd.DataFrame
    search: pd.DataFrame
    importance: pd.DataFrame
    importance_note: str
    rate_distortion: pd.DataFrame

    @property
    def workload(self) -> Workload:
        """What every arm shares."""
        return self.state.workload

    @property
    def arms(self) -> list[str]:
        """The comparison's arms in the order of the forest plot, the baseline first."""
        if self.comparison is None or self.comparison.arms.empty:
            return []
        return [str(arm) for arm in sorted_arms(self.comparison.arms)["arm"]]

    def family(self, arm: str) -> str:
        """The arm's family; "reference" for what is no technique."""
        technique = self.experiment.technique(arm)
        return technique.family if technique else NO_FAMILY.get(arm, "reference")

    @property
    def planned(self) -> dict[str, tuple[int, int]]:
        """phase -> (trials finished, trials planned), phases that are planned only."""
        done = self.trials[self.trials["outcome"].notna()].groupby("phase").size()
        plan = describe_plan(self.experiment)
        planned = {phase: (int(done.get(phase, 0)), n) for phase, n in plan.items() if n}
        return planned | ({"final": self.state.reruns} if "final" in planned else {})

    @property
    def complete(self) -> bool:
        """Everything that was planned has been run."""
        return all(done >= n for done, n in self.planned.values())

    def frames(self) -> dict[str, pd.DataFrame]:
        """The computed tables by name, those that are empty left out."""
        found = {
            "bands": self.bands,
            "seeds": self.seeds,
            "survival": self.survival,
            "by-target": self.by_target,
            "tuning": self.tuning,
            "winners": self.winners,
            "savings": self.savings,
            "outcomes": self.outcomes,
            "failures": self.failures,
            "importance": self.importance,
            "rate-distortion": self.rate_distortion,
        }
        return {key: frame for key, frame in found.items() if not frame.empty}


def collect(store: Store, name: str) -> Evidence:
    """Read an experiment and compute what its report shows; nothing is written or trained."""
    spec = store.load_experiment(name)
    assert spec is not None
    experiment = Experiment.from_values(spec["experiment"], f"experiment '{name}'")
    state = State(store, experiment, experiment.workload(spec["n_train"]))
    comparison = estimate(store, name, spec["n_train"]) if experiment.arms else None
    arms = [] if comparison is None else [str(arm) for arm in sorted_arms(comparison.arms)["arm"]]
    trials = own_trials(records.trials(store, name), experiment)
    rows = records.curves(store, name)
    curves = curves_of(rows)
    confirm = _with_runs(state, arms)
    speed = tables.speeds(records.throughput(store, name))
    runs = tables.seeds(state, confirm, speed)
    tuned = [arm for arm in arms if arm not in REFERENCE_ARMS]
    search = tables_search.searched(trials, name, experiment.recipe)
    importance, note = tables_search.importance(store, name, search)
    return Evidence(
        name=name,
        experiment=experiment,
        fingerprint=str(spec["data_fingerprint"]),
        state=state,
        comparison=comparison,
        trials=trials,
        speeds=speed,
        bands=tables.bands(confirm, curves, speed),
        seeds=runs,
        survival=tables.survival(runs),
        by_target=tables.by_target(state, confirm, curves),
        tuning=tables.tuning(state, tuned, curves),
        winners=tables.winners(state, tuned),
        savings=tables.savings(state),
        outcomes=tables.outcomes(trials),
        failures=tables.failures(trials),
        search=search,
        importance=importance,
        importance_note=note,
        rate_distortion=tables_search.rate_distortion(rows, search),
    )


def own_trials(trials: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """The experiment's own trials: those of a foreign Optuna study that happens to be called NAME/... are left
    out. A trial that still waits has its arm from its study's name."""
    # An empty frame has no strings to tell that these columns hold some.
    trials = trials.astype({"study_name": str, "state": str})
    arm = trials["study_name"].str.split("/").str[1]
    known = {"baseline", "search", "combined", *REFERENCE_ARMS, *experiment.arms}
    ours = arm.isin(known) | arm.str.startswith("combined-without-")
    started = trials["owner"].notna() | trials["outcome"].notna()
    ours &= started | trials["state"].isin(["WAITING", "RUNNING"])
    return trials[ours].assign(arm=arm[ours]).reset_index(drop=True)


def curves_of(rows: pd.DataFrame) -> dict[int, Curve]:
    """Trial id -> its recorded curve, for trials that have a point."""
    groups: Mapping[Any, pd.DataFrame] = dict(iter(rows.groupby("trial_id")))
    return {
        int(trial_id): Curve(
            group["examples"].to_numpy(np.float64), group["valid_loss"].to_numpy(np.float64, na_value=np.nan)
        )
        for trial_id, group in groups.items()
    }


def _with_runs(state: State, arms: Sequence[str]) -> dict[str, list[Run]]:
    found = {arm: tables.confirmed(state, arm) for arm in arms}
    return {arm: runs for arm, runs in found.items() if runs}
