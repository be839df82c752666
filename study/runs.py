"""What has been run of an experiment, read back from the database, and what follows from it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from study.experiment import CALIBRATION_SEEDS, MAX_TUNE_SEEDS, SMALL_DATA, Experiment
from study.overview import attributes, parameters
from study.storage import Store
from study.survival import Calibration, Curve, calibrate_target, tuning_score, winner
from vae.errors import UserError
from vae.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """One trial as the planner sees it."""

    trial_id: int
    number: int
    study: str
    arm: str
    block: int
    phase: str
    index: int
    started: bool
    finished: bool
    params: dict[str, Any]
    recipe: Recipe | None
    outcome: str | None
    score: float
    hit: bool
    valid_loss: float
    best_loss: float
    attrs: dict[str, Any]


class State:
    """What has been run of an experiment, and what follows from it."""

    def __init__(self, store: Store, experiment: Experiment, n_train: int) -> None:
        self._store = store
        self._curves: dict[int, Curve] = {}
        self.experiment = experiment
        self.n_train = n_train
        self.small_data = n_train < SMALL_DATA
        self.tau = experiment.tau(n_train)
        table = store.trials(experiment.name)
        self.table = table.set_index("trial_id")
        attrs, params = attributes(store, experiment.name), parameters(store, experiment.name)
        self.runs = [
            _run(row, attrs.get(row["trial_id"], {}), params.get(row["trial_id"], {}))
            for row in table.to_dict("records")
            if "index"
            in attrs.get(row["trial_id"], {})  # else a foreign study that happens to be called NAME/...
        ]
        self.known = {(run.study, run.phase, run.index) for run in self.runs}

    def of(self, arm: str, phase: str, block: int | None = None) -> list[Run]:
        """Runs of an arm and phase by index."""
        found = [
            run
            for run in self.runs
            if run.arm == arm and run.phase == phase and (block is None or run.block == block)
        ]
        return sorted(found, key=lambda run: run.index)

    def complete(self, arm: str, phase: str, block: int, n: int) -> list[Run] | None:
        """The n runs of a phase once all have ended; None before."""
        runs = self.of(arm, phase, block)[:n]
        return runs if len(runs) == n and all(run.finished for run in runs) else None

    @cached_property
    def calibration_finalists(self) -> list[Run] | None:
        """Step 1: the baseline's best points by final loss; None before all K have ended."""
        runs = self.complete("baseline", "tune", 1, self.experiment.points("baseline"))
        if runs is None:
            return None
        return _best(runs, _final_losses(runs), max(1, self.experiment.finalists("baseline")))

    @cached_property
    def calibration_winner(self) -> Run | None:
        """The best of them by the mean of its final loss over the tuning seeds."""
        losses = []
        for run in self.calibration_finalists or []:
            again = self.finals(run)
            if again is None:
                return None
            losses.append(float(np.mean(_final_losses([run, *again]))))
        return self.calibration_finalists[int(np.argmin(losses))] if self.calibration_finalists else None

    @cached_property
    def calibration(self) -> Calibration | None:
        """Step 1: the target and how well it can be timed, once its runs have ended."""
        experiment = self.experiment
        runs = self.complete("baseline", "calibration", 1, CALIBRATION_SEEDS)
        if runs is None:
            return None
        try:
            return calibrate_target(self.curves(runs), self.tau, experiment.target_at, experiment.target)
        except ValueError as error:
            raise UserError(
                f"No target can be calibrated for '{experiment.name}': {error}. Check the baseline's recipe and "
                f"lr range, or give --target, under another --name."
            ) from None

    @cached_property
    def target(self) -> float | None:
        """Validation loss to reach; None until it is known."""
        if self.experiment.target is not None:
            return self.experiment.target
        return self.calibration.target if self.calibration is not None else None

    @cached_property
    def tuning_target(self) -> float | None:
        """What tuning aims at: a little below the calibrated target, or the target that was given."""
        return self.calibration.tuning_target if self.calibration is not None else self.target

    def curves(self, runs: list[Run]) -> list[Curve]:
        """The recorded curves of runs, in their order; read once."""
        missing = [run.trial_id for run in runs if run.trial_id not in self._curves]
        if missing:
            table = self._store.curves(self.experiment.name, missing)
            ids, examples, losses = (table[c].to_numpy() for c in ("trial_id", "examples", "valid_loss"))
            for run in runs:
                mine = ids == run.trial_id
                diverged = run.outcome == "diverged"
                self._curves.setdefault(run.trial_id, Curve(examples[mine], losses[mine], diverged))
        return [self._curves[run.trial_id] for run in runs]

    def finalists(self, arm: str, block: int) -> list[Run] | None:
        """Step 2: the arm's best points by their score on the first tuning seed, once all K have ended.

        A capped or failed trial has no score and is none; a diverged one only where too few others ended well.
        Empty where every trial failed."""
        runs = self.complete(arm, "tune", block, self.experiment.points(arm))
        if runs is None or self.tuning_target is None:
            return None
        return _best(runs, self._scores(runs), max(1, self.experiment.finalists(arm)))

    def finals(self, finalist: Run) -> list[Run] | None:
        """A finalist's runs on the other tuning seeds, once all have ended; none where one seed is enough."""
        n = self.experiment.tune_seeds - 1 if self.experiment.finalists(finalist.arm) else 0
        wanted = {final_index(finalist, i) for i in range(n)}
        runs = [run for run in self.of(finalist.arm, "final", finalist.block) if run.index in wanted]
        return runs if len(runs) == n and all(run.finished for run in runs) else None

    def winner(self, arm: str, block: int) -> Run | None:
        """The best of the arm's finalists by its mean score over the tuning seeds; None before that is known,
        and where every trial failed."""
        finalists = self.finalists(arm, block)
        scores = []
        for run in finalists or []:
            again = self.finals(run)
            if again is None:
                return None
            of_seeds = self._scores([run, *again])
            scores.append(float(np.nanmean(of_seeds)))  # the first seed's is a number
        best = winner(scores)
        return None if best is None or finalists is None else finalists[best]

    def _scores(self, runs: list[Run]) -> np.ndarray:
        """Scores of an arm's tuning trials, NaN where there is none. The baseline's first block was run before
        there was a target: it is scored from its curves."""
        assert self.tuning_target is not None
        if (runs[0].arm, runs[0].block) != ("baseline", 1):
            return np.array([run.score for run in runs])
        scores = [tuning_score(curve, self.tuning_target, self.tau) for curve in self.curves(runs)]
        failed = [run.outcome == "failed" for run in runs]
        return np.where(failed, np.nan, scores)

    @cached_property
    def search_winner(self) -> Run | None:
        """The joint search's best trial, once all its trials have ended."""
        n = self.experiment.search.trials
        runs = self.complete("search", "search", 1, n) if n else None
        done = [
            run
            for run in runs or []
            if run.outcome in ("completed", "collapsed", "stopped") and np.isfinite(run.best_loss)
        ]
        return min(done, key=lambda run: run.best_loss, default=None)

    @cached_property
    def confirmed(self) -> bool:
        """Every arm has all its confirmation runs."""
        experiment = self.experiment
        for arm in ("baseline", *experiment.arms):
            runs = self.of(arm, "confirm")
            if len(runs) < experiment.seeds or not all(run.finished for run in runs):
                return False
        return True


def final_index(finalist: Run, i: int) -> int:
    """The index of a finalist's run on the i-th of the other tuning seeds."""
    return finalist.index * (MAX_TUNE_SEEDS - 1) + i


def _best(runs: list[Run], scores: npt.ArrayLike, n: int) -> list[Run]:
    """The n with the lowest scores, best first; a tie goes to the lower index, and NaN is none."""
    values = np.asarray(scores, dtype=np.float64)
    order = np.argsort(values, kind="stable")  # NaN last
    return [runs[i] for i in order[:n] if not np.isnan(values[i])]


def _final_losses(runs: list[Run]) -> np.ndarray:
    """Validation losses at tau; infinite for what didn't get there."""
    return np.array([run.valid_loss if run.outcome in ("completed", "collapsed") else np.inf for run in runs])


def _run(row: dict[Hashable, Any], attrs: dict[str, Any], params: dict[str, Any]) -> Run:
    score, outcome, recipe = _number(row["score"]), row["outcome"], row["recipe"]
    _, arm, *block = row["study_name"].split("/")
    return Run(
        trial_id=row["trial_id"],
        number=row["number"],
        study=row["study_name"],
        arm=arm,
        block=int(block[0]) if block else 1,
        phase=attrs.get("phase", ""),
        index=attrs.get("index", row["number"]),
        started=row["state"] != "WAITING",
        finished=row["state"] in ("COMPLETE", "PRUNED", "FAIL") or isinstance(outcome, str),
        params=params,
        recipe=Recipe.from_json(recipe) if isinstance(recipe, str) else None,
        outcome=outcome if isinstance(outcome, str) else None,
        score=score,
        hit=row["hit"] is True,
        valid_loss=_number(row["valid_loss"]),
        best_loss=_number(row["best_valid_loss"]),
        attrs=attrs,
    )


def _number(value: Any) -> float:
    return float(value) if value is not None else float("nan")
