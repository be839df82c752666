"""What has been run of an experiment, read back from the database, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from study.design.experiment import Experiment
from study.design.phases import CALIBRATION_SEEDS, MAX_TUNE_SEEDS
from study.design.workload import Workload
from study.statistics.calibration import Calibration, calibrate_target
from study.statistics.curves import MISS, Curve, best_points, tuning_score
from study.store import records
from study.store.records import attributes, parameters
from study.store.store import Store
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

    def __init__(self, store: Store, experiment: Experiment, workload: Workload) -> None:
        self._store = store
        self._curves: dict[int, Curve] = {}
        self.experiment = experiment
        self.workload = workload
        table = records.trials(store, experiment.name)
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
        best = best_points(_final_losses(runs), max(1, self.experiment.finalists("baseline")))
        return [runs[i] for i in best] or runs[:1]  # where all failed calibration will say so

    @cached_property
    def calibration_winner(self) -> Run | None:
        """The best of them by its final loss over the tuning seeds; None before that is known."""
        return self._judged(self.calibration_finalists or [], _final_losses, np.inf)

    @cached_property
    def calibration(self) -> Calibration | None:
        """Step 1: the target and how well it can be timed, once its runs have ended."""
        experiment = self.experiment
        runs = self.complete("baseline", "calibration", 1, CALIBRATION_SEEDS)
        if runs is None:
            return None
        try:
            return calibrate_target(
                self.curves(runs), self.workload.tau, experiment.target_at, experiment.target
            )
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
            table = records.curves(self._store, self.experiment.name, missing)
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
        return [runs[i] for i in best_points(self._scores(runs), max(1, self.experiment.finalists(arm)))]

    def finals(self, finalist: Run) -> list[Run] | None:
        """A finalist's runs on the other tuning seeds, once all have ended; none where one seed is enough."""
        n = self.experiment.tune_seeds - 1 if self.experiment.finalists(finalist.arm) else 0
        runs = self._planned_finals(finalist)
        return runs if len(runs) == n and all(run.finished for run in runs) else None

    def _planned_finals(self, finalist: Run) -> list[Run]:
        """A finalist's runs on the other tuning seeds, as far as they are planned, by seed."""
        indices = {final_index(finalist, i) for i in range(self.experiment.tune_seeds - 1)}
        return [run for run in self.of(finalist.arm, "final", finalist.block) if run.index in indices]

    def winner(self, arm: str, block: int) -> Run | None:
        """The best of the arm's finalists by its scores over the tuning seeds; None before that is known, and
        where every trial failed."""
        return self._judged(self.finalists(arm, block) or [], self._scores, MISS)

    def _judged(
        self, finalists: list[Run], scores_of: Callable[[list[Run]], np.ndarray], miss: float
    ) -> Run | None:
        """Which finalist is best over its seeds: fewest scores of `miss` or worse, then the lowest mean; the first
        of equals. Failed runs (NaN) are left out, but one that failed on every other seed comes last."""
        judged: list[tuple[bool, int, float]] = []
        for run in finalists:
            again = self.finals(run)
            if again is None:
                return None
            scores = scores_of([run, *again])
            scores = scores[~np.isnan(scores)]
            alone = bool(again) and len(scores) < 2
            judged.append(
                (alone, int((scores >= miss).sum()), float(scores.mean()) if len(scores) else np.inf)
            )
        return finalists[min(range(len(judged)), key=judged.__getitem__)] if judged else None

    @property
    def reruns(self) -> tuple[int, int]:
        """How many of the finalists' reruns have ended, and how many are due in all; of a finalist that isn't known
        yet none has. The combined arm is left out."""
        ended = due = 0
        for arm in ("baseline", *self.experiment.arms):
            for block in range(1, self.experiment.blocks + 1):
                finalists, n = self.finalists(arm, block), self.experiment.finalists(arm)
                due += (self.experiment.tune_seeds - 1) * (n if finalists is None else min(n, len(finalists)))
                ended += sum(again.finished for run in finalists or [] for again in self._planned_finals(run))
        return ended, due

    def _scores(self, runs: list[Run]) -> np.ndarray:
        """Scores of an arm's tuning trials, NaN where there is none. The baseline's first block was run before
        there was a target: it is scored from its curves."""
        assert self.tuning_target is not None
        if (runs[0].arm, runs[0].block) != ("baseline", 1):
            return np.array([run.score for run in runs])
        scores = [tuning_score(curve, self.tuning_target, self.workload.tau) for curve in self.curves(runs)]
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


@dataclass(frozen=True)
class Confirmed:
    """An arm's finished runs of a phase, by seed index."""

    index: list[int]
    runs: list[Run]
    E: np.ndarray
    """(S,) examples to target; tau on a miss."""
    hit: np.ndarray
    blocks: np.ndarray
    test: np.ndarray
    """(S,) loss on the test split at the hit; NaN on a miss."""


def confirmed(state: State, arm: str, phase: str) -> Confirmed:
    """What an arm's finished runs of a phase, which all have a target, took to reach it."""
    runs = [run for run in state.of(arm, phase) if run.outcome is not None]
    tau = state.workload.tau
    rows = state.table.loc[[run.trial_id for run in runs]]
    hit = rows["hit"].fillna(False).to_numpy(dtype=bool)
    E = rows["examples_to_target"].fillna(float(tau)).to_numpy(dtype=float)
    return Confirmed(
        index=[run.index for run in runs],
        runs=runs,
        E=np.where(hit, E, float(tau)),
        hit=hit,
        blocks=np.array([run.block for run in runs]),
        test=rows["test_loss"].to_numpy(dtype=float),
    )


def joint(a: Confirmed, b: Confirmed) -> tuple[Confirmed, Confirmed]:
    """The two arms on the seeds that both have finished."""
    both = sorted(set(a.index) & set(b.index))

    def pick(c: Confirmed) -> Confirmed:
        at = [c.index.index(i) for i in both]
        return Confirmed(both, [c.runs[i] for i in at], c.E[at], c.hit[at], c.blocks[at], c.test[at])

    return pick(a), pick(b)


def final_index(finalist: Run, i: int) -> int:
    """The index of a finalist's run on the i-th of the other tuning seeds."""
    return finalist.index * (MAX_TUNE_SEEDS - 1) + i


def _final_losses(runs: list[Run]) -> np.ndarray:
    """Validation losses at tau; infinite for what diverged before, NaN for what failed."""
    there = {"completed", "collapsed"}
    return np.array(
        [
            run.valid_loss if run.outcome in there else np.inf if run.outcome == "diverged" else np.nan
            for run in runs
        ]
    )


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
