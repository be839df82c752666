"""Who has won: the target that is calibrated, each arm's finalists and winner, the search's best."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from study.design.experiment import Experiment
from study.design.phases import CALIBRATION_SEEDS, MAX_TUNE_SEEDS
from study.design.space import SOBOL_DIMENSIONS, Space, resolve
from study.design.workload import Workload
from study.protocol.guided import Guided, Round, TuningRun, guide
from study.protocol.history import History, Run
from study.statistics.calibration import Calibration, calibrate_target
from study.statistics.curves import MISS, Curve, best_points, tuning_score
from study.store.store import Store
from study.terms import BASELINE, REFERENCE_ARMS, SEARCH, Outcome, Phase
from vae.recipe import Recipe

Scores = npt.NDArray[np.float64]
#: What an arm's guided tuning is asked with: arm, block, tuning target, slope (None: unknown, for no NaN is another),
#: and the curves of each round, of which one that failed as a whole has none.
Question = tuple[str, int, float, float | None, tuple[tuple[Curve, ...], ...]]


class State(History):
    """What has been run of an experiment, and what follows from it. With an `earlier` look at it, only what has changed
    since is read and worked out."""

    def __init__(
        self, store: Store, experiment: Experiment, workload: Workload, earlier: State | None = None
    ) -> None:
        super().__init__(store, experiment, workload, earlier)
        # By all that an answer rests on. A curve is known by its identity: one that was read anew is another.
        self._answers: dict[Question, Round | Guided | None] = {} if earlier is None else earlier._answers

    @cached_property
    def _guided(self) -> dict[tuple[str, int], Round | Guided | None]:
        return {}

    @cached_property
    def _variances(self) -> dict[tuple[str, int], float]:
        return {}

    @cached_property
    def calibration_finalists(self) -> list[Run] | None:
        """Step 1: the baseline's best points by final loss; None before all K have ended, none where all failed."""
        runs = self.complete(BASELINE, Phase.TUNE, 1, self.experiment.points(BASELINE))
        if runs is None:
            return None
        best = best_points(final_losses(runs), max(1, self.experiment.finalists(BASELINE)))
        return [runs[i] for i in best]

    @cached_property
    def calibration_winner(self) -> Run | None:
        """The best of them by its final loss over the tuning seeds; None before that is known."""
        return self._judged(self.calibration_finalists or [], final_losses, np.inf)

    @property
    def calibration(self) -> Calibration | None:
        """Step 1: the first block's target and how well it can be timed; None before its runs have ended, and without
        one."""
        return self.calibration_in(1)

    @property
    def target(self) -> float | None:
        """Validation loss to reach in the first block; None until it is known."""
        return self.target_in(1)

    @property
    def tuning_target(self) -> float | None:
        """What tuning aims at in the first block."""
        return self.tuning_target_in(1)

    def calibration_in(self, block: int) -> Calibration | None:
        """The calibration on a block's split of the data."""
        return self._calibrations[self.experiment.split_block(block)][0]

    @property
    def no_target(self) -> str | None:
        """Why this experiment will never have a target; None where it has one or may yet."""
        return next((reason for _, reason in self._calibrations.values() if reason is not None), None)

    @cached_property
    def _calibrations(self) -> dict[int, tuple[Calibration | None, str | None]]:
        """For each block with a split of its own: its calibration, or why it will never have one."""
        return {block: self._calibrate(block) for block in self.experiment.split_blocks()}

    def _calibrate(self, block: int) -> tuple[Calibration | None, str | None]:
        experiment, tau = self.experiment, self.workload.tau
        if experiment.target is None and self.calibration_finalists == []:
            tuned = self.of(BASELINE, Phase.TUNE, 1)
            return None, f"every tuning trial of the baseline failed: {reasons(tuned)}"
        runs = self.complete(BASELINE, Phase.CALIBRATION, block, CALIBRATION_SEEDS)
        if runs is None:
            return None, None
        ended = [run for run in runs if not run.failed]
        if not ended:
            return None, f"every calibration run failed: {reasons(runs)}"
        try:
            spare = int(experiment.guided)
            curves = self.curves(ended)
            return calibrate_target(curves, tau, experiment.target_at, experiment.target, spare), None
        except ValueError as error:
            return (
                None,
                f"{error}. Check the baseline's recipe and lr range, or give --target, under another --name",
            )

    def target_in(self, block: int) -> float | None:
        """Validation loss to reach in a block; None until it is known."""
        if self.experiment.target is not None:
            return self.experiment.target
        calibration = self.calibration_in(block)
        return None if calibration is None else calibration.target

    def tuning_target_in(self, block: int) -> float | None:
        """What tuning aims at in a block: a little below the calibrated target, or the target that was given."""
        calibration = self.calibration_in(block)
        return self.target_in(block) if calibration is None else calibration.tuning_target

    def above_first(self, block: int) -> float:
        """How far a block's target lies above the first's, in nats: its split of the data is so much harder. Without
        this difference its losses can stand beside the first's."""
        own, first = self.target_in(block), self.target
        return 0.0 if own is None or first is None else own - first

    def comparable(self, runs: Sequence[Run]) -> list[Curve]:
        """The recorded curves of finished runs, in their order, each on the scale of the first block."""
        return [
            curve.lowered(self.above_first(run.block))
            for run, curve in zip(runs, self.curves(runs), strict=True)
        ]

    def finalists(self, arm: str, block: int) -> list[Run] | None:
        """Step 2: the arm's best points by their score on the first tuning seed, once all K have ended.

        A capped or failed trial has no score and is none; a diverged one only where too few others ended well.
        Empty where every trial failed."""
        runs = self.complete(arm, Phase.TUNE, block, self.experiment.points(arm))
        if runs is None or self.tuning_target_in(block) is None:
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
        return [run for run in self.of(finalist.arm, Phase.FINAL, finalist.block) if run.index in indices]

    def winner(self, arm: str, block: int) -> Run | None:
        """The best of the arm's finalists by its scores over the tuning seeds; None before that is known, and
        where every trial failed."""
        return self._judged(self.finalists(arm, block) or [], self._scores, MISS)

    def _judged(
        self, finalists: list[Run], scores_of: Callable[[list[Run]], Scores], miss: float
    ) -> Run | None:
        """The best of the finalists over its seeds; None before all of those have ended."""
        scores = []
        for run in finalists:
            reruns = self.finals(run)
            if reruns is None:
                return None
            scores.append(scores_of([run, *reruns]))
        return finalists[judge(scores, miss)] if scores else None

    def guided(self, arm: str, block: int) -> Round | Guided | None:
        """Steps 2 and 3: what the arm's guided tuning asks for next, or has found; None before its coarse points have
        ended, and where all of them failed."""
        if (arm, block) not in self._guided:
            self._guided[arm, block] = self._guide(arm, block)
        return self._guided[arm, block]

    def _guide(self, arm: str, block: int) -> Round | Guided | None:
        coarse = self.complete(arm, Phase.TUNE, block, self.experiment.points(arm))
        target, calibration = self.tuning_target_in(block), self.calibration_in(block)
        if coarse is None or target is None:
            return None
        space = coarse[0].assignment.space
        slope = float(-calibration.slope / np.log(2.0)) if calibration is not None else np.nan
        rounds = [self._tuning_runs(coarse)]
        while True:
            curves = tuple(tuple(run.curve for run in runs) for runs in rounds)
            question = arm, block, target, None if np.isnan(slope) else slope, curves
            if question not in self._answers:
                tau = float(self.workload.tau)
                self._answers[question] = guide(space, rounds, target=target, tau=tau, slope=slope)
            step = self._answers[question]
            if not isinstance(step, Round):
                return step
            first = round_index(step.number, 0)
            indices = range(first, first + len(step.points))
            runs = [run for run in self.of(arm, Phase.GUIDED, block) if run.index in indices and run.finished]
            if len(runs) < len(step.points):
                return step
            rounds.append(self._tuning_runs(runs))

    def _tuning_runs(self, runs: Sequence[Run]) -> list[TuningRun]:
        """Those that say something: what failed left no curve to the end, or none at all."""
        ended = [run for run in runs if not run.failed]
        curves = zip(ended, self.curves(ended), strict=True)
        return [TuningRun(run.params, curve) for run, curve in curves if curve.examples.size]

    def tuned(self, arm: str, block: int) -> Tuned | None:
        """What the arm is confirmed with, by the experiment's method; None before that is known, and where every
        tuning trial failed."""
        coarse = self.of(arm, Phase.TUNE, block)
        if not self.experiment.guided:
            winner = self.winner(arm, block)
            return None if winner is None else _as_tuned(winner)
        found = self.guided(arm, block)
        base = coarse[0].assignment.base if coarse else None
        if not isinstance(found, Guided) or base is None:
            return None
        return Tuned(arm, block, base, found.space, found.params, found)

    def tuning_variance(self, arm: str, block: int) -> float:
        """What an arm's E owes to the luck of its tuning, in ln E; 0 by method 1, whose intervals leave it out."""
        found = self.guided(arm, block) if self.experiment.guided else None
        if not isinstance(found, Guided):
            return 0.0
        if (arm, block) not in self._variances:
            name = zlib.crc32(arm.encode())
            rng = np.random.default_rng([self.experiment.seed, block, name])
            self._variances[arm, block] = found.variance(rng)
        return self._variances[arm, block]

    @property
    def reruns(self) -> tuple[int, int]:
        """How many of the finalists' reruns have ended, and how many are due in all; of a finalist that isn't known
        yet none has. The combined arm is left out."""
        ended = due = 0
        for arm in (BASELINE, *self.experiment.arms):
            for block in range(1, self.experiment.blocks + 1):
                finalists, n = self.finalists(arm, block), self.experiment.finalists(arm)
                due += (self.experiment.tune_seeds - 1) * (n if finalists is None else min(n, len(finalists)))
                ended += sum(again.finished for run in finalists or [] for again in self._planned_finals(run))
        return ended, due

    def _scores(self, runs: list[Run]) -> Scores:
        """Scores of an arm's tuning trials, NaN where there is none. The baseline's first block was run before
        there was a target: it is scored from its curves."""
        target = self.tuning_target
        assert target is not None
        if (runs[0].arm, runs[0].block) != (BASELINE, 1):
            return np.array([run.score for run in runs])
        tau = self.workload.tau
        scores = [tuning_score(curve, target, tau) for curve in self.curves(runs)]
        return np.where([run.failed for run in runs], np.nan, scores)

    @cached_property
    def search_ranked(self) -> list[Run]:
        """The joint search's trials that weren't cut, by their lowest loss, the first of equals first."""
        lasted = (Outcome.COMPLETED, Outcome.COLLAPSED, Outcome.STOPPED)
        runs = self.of(SEARCH, Phase.SEARCH)
        done = [run for run in runs if run.outcome in lasted and np.isfinite(run.best_loss)]
        return sorted(done, key=lambda run: run.best_loss)

    @property
    def search_best(self) -> Run | None:
        """The best of them so far; None before one has ended."""
        return self.search_ranked[0] if self.search_ranked else None

    @property
    def search_winner(self) -> Run | None:
        """The joint search's best trial, once all its trials have ended."""
        n = self.experiment.search.trials
        return self.search_best if n and self.complete(SEARCH, Phase.SEARCH, 1, n) is not None else None

    def failed(self, arm: str, block: int) -> bool:
        """Whether every tuning trial of the arm failed in a block, which leaves nothing to confirm."""
        runs = self.complete(arm, Phase.TUNE, block, self.experiment.points(arm))
        return runs is not None and all(run.failed for run in runs)

    @cached_property
    def confirmed(self) -> bool:
        """Every arm has all the confirmation runs that it will ever have."""
        experiment = self.experiment
        for arm in (BASELINE, *experiment.arms):
            for block in range(1, experiment.blocks + 1):
                runs = self.of(arm, Phase.CONFIRM, block)
                due = 0 if self.failed(arm, block) else experiment.seeds // experiment.blocks
                if len(runs) < due or not all(run.finished for run in runs):
                    return False
        return True


@dataclass(frozen=True, eq=False)
class Tuned:
    """What tuning has found for an arm in a block: a point, which by method 2 need not have been trained."""

    arm: str
    block: int
    base: Recipe
    """The recipe without the parameters."""
    space: Space
    params: dict[str, Any]
    guided: Guided | None = None
    """How, by method 2."""

    @property
    def recipe(self) -> Recipe:
        """The tuned recipe, with the seed of the experiment's. Raises UserError."""
        return resolve(self.params, self.base)


def _as_tuned(winner: Run) -> Tuned:
    told = winner.assignment
    assert told.base is not None
    return Tuned(told.arm, told.block, told.base, told.space, winner.params)


def round_index(number: int, i: int) -> int:
    """The index of the i-th trial of a round of guided tuning, counted from 1: at most a pair a dimension."""
    return (number - 1) * 2 * SOBOL_DIMENSIONS + i


def judge(scores: Sequence[Scores], miss: float) -> int:
    """Which of the finalists is best over its seeds, by its scores (n_seeds,), NaN where a run failed.

    Fewest scores of `miss` or worse, then the lowest mean; the first of equals. Failed runs are left out, but a
    finalist that failed on every other seed comes last."""
    ranks: list[tuple[bool, int, float]] = []
    for all_seeds in scores:
        ended = all_seeds[~np.isnan(all_seeds)]
        alone = len(all_seeds) > 1 and len(ended) < 2
        mean = float(ended.mean()) if len(ended) else np.inf
        ranks.append((alone, int((ended >= miss).sum()), mean))
    return min(range(len(ranks)), key=ranks.__getitem__)


def reasons(runs: Sequence[Run]) -> str:
    """Why runs failed: each reason once, the most frequent first."""
    counted = Counter(run.reason or "no reason is known" for run in runs if run.outcome == Outcome.FAILED)
    return "; ".join(reason.rstrip(".") for reason, _ in counted.most_common(3))


def final_index(finalist: Run, i: int) -> int:
    """The index of a finalist's run on the i-th of the other tuning seeds."""
    return finalist.index * (MAX_TUNE_SEEDS - 1) + i


def final_losses(runs: Sequence[Run]) -> Scores:
    """Validation losses at tau; infinite for what diverged before, NaN for what failed."""

    def loss(run: Run) -> float:
        if run.outcome is not None and run.outcome.ran_to_tau:
            return run.valid_loss
        return np.inf if run.outcome == Outcome.DIVERGED else np.nan

    return np.array([loss(run) for run in runs])


def winning_recipes(experiment: Experiment, history: History) -> dict[str, Recipe]:
    """arm -> the recipe it was confirmed with (its first block's winner, or the next one's that could be trained),
    for arms that have one."""
    recipes = {}
    for arm in (BASELINE, *experiment.arms, *REFERENCE_ARMS):
        trained = [run for run in history.of(arm, Phase.CONFIRM) if run.outcome not in (None, Outcome.FAILED)]
        first = min(trained, key=lambda run: run.block, default=None)
        if first is not None and first.recipe is not None:
            recipes[arm] = first.recipe
    return recipes
