"""The protocol of `compare`: calibrate, tune each arm, confirm on fresh seeds, combine.

The planner looks at what the database holds and enqueues what may run next. What it keeps of an earlier look only
saves reading it again, so it goes on where it was after any kill, and its plan depends on no worker count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import optuna

from study.design.experiment import Experiment
from study.design.phases import CALIBRATION_SEEDS
from study.design.space import Space, resolve, sobol_points
from study.design.workload import Workload
from study.protocol.assignment import Assignment
from study.protocol.combine import change, combined_choice, combined_recipe, combined_space, together
from study.protocol.guided import Round
from study.protocol.history import Run
from study.protocol.plan import article_recipe
from study.protocol.selection import State, Tuned, final_index, reasons, round_index
from study.protocol.stored import stored
from study.store import records
from study.store.enqueue import enqueue
from study.store.keepalive import LeaseLost
from study.store.setup import setup_lock
from study.store.store import Store
from study.terms import (
    ARTICLE,
    BASELINE,
    COMBINED,
    REFERENCE_ARMS,
    SEARCH,
    SEARCH_BEST,
    WITHOUT,
    Outcome,
    Phase,
    StudyName,
)
from vae.errors import FailureError, UserError
from vae.recipe import Recipe

#: So many trials that fail for one reason, and none that doesn't, end an experiment.
HOPELESS = 4
#: Search trials that wait at a time.
WAVE = 16


@dataclass(frozen=True)
class Planned:
    """A trial to enqueue; its key is its identity, so it is never enqueued twice."""

    study: str
    assignment: Assignment
    params: dict[str, Any]

    @property
    def key(self) -> tuple[str, Phase, int]:
        """What it is known by."""
        return self.study, self.assignment.phase, self.assignment.index


class Planner:
    """Enqueues the trials of one experiment phase by phase."""

    def __init__(self, store: Store, experiment: Experiment, workload: Workload) -> None:
        self.store = store
        self.experiment = experiment
        self.workload = workload
        self._sobol: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self._progress = -1
        self._earlier: State | None = None
        self._ended_before: set[int] | None = None

    def advance(self) -> bool:
        """Enqueue what has become possible; True when nothing is left to plan or to run."""
        progress = records.progress(self.store, self.experiment.name)
        # Counted before the look at what has been run: a trial that ends after it may make more possible. And that
        # look counts too: another planner may have enqueued the next phase meanwhile.
        remaining = records.remaining(self.store, self.experiment.name)
        if progress == self._progress and remaining:
            return False
        try:
            missing, state = self._enqueue_missing()
        except LeaseLost:
            return False  # another planner has been here since: what it found is looked at next
        self._progress = progress
        return not missing and not remaining and all(run.finished for run in state.runs)

    def _enqueue_missing(self) -> tuple[list[Planned], State]:
        """What was missing and is enqueued now, and the look that it was planned from. Raises LeaseLost, with nothing
        enqueued."""
        with setup_lock(self.store) as require_right:
            # It may have been deleted meanwhile, with the last of its studies.
            stored(self.store, self.experiment.name)
            state = self.observe()
            self._refuse_the_hopeless(state)
            missing = [trial for trial in self._plan(state) if trial.key not in state.known]
            for study_name in dict.fromkeys(trial.study for trial in missing):
                self._make_study(study_name)
            enqueue(
                self.store,
                [(trial.study, trial.params, trial.assignment.to_attrs(trial.params)) for trial in missing],
                require_right,
            )
        return missing, state

    def _refuse_the_hopeless(self, state: State) -> None:
        """Raises FailureError where every trial fails for one reason, UserError where no target can be calibrated."""
        ended = {run.trial_id for run in state.runs if run.finished}
        if self._ended_before is None:
            self._ended_before = ended
        new = [run for run in state.runs if run.trial_id in ended - self._ended_before]
        failed = all(run.outcome == Outcome.FAILED for run in state.runs if run.finished)
        if len(new) >= HOPELESS and failed and len({_kind(run.reason) for run in new}) == 1:
            raise FailureError(f"All of {len(new)} trials failed for one reason: {reasons(new)}.")
        if state.no_target is not None:
            raise UserError(f"No target can be calibrated for '{self.experiment.name}': {state.no_target}.")

    def observe(self) -> State:
        """What the database holds of this experiment now."""
        self._earlier = State(self.store, self.experiment, self.workload, self._earlier)
        return self._earlier

    def _make_study(self, name: str) -> None:
        # Looked up each time: it may have been deleted, and made anew, since the last.
        optuna.create_study(
            study_name=name, storage=self.store.optuna, direction="minimize", load_if_exists=True
        )

    def _plan(self, state: State) -> Iterable[Planned]:
        yield from self._search(state)
        if not self.experiment.arms:
            return
        yield from self._tune(state, BASELINE, 1)
        if state.calibration_finalists is None:
            return
        if self.experiment.target is None:
            yield from self._calibrate(state)
        if state.target is None:
            return
        for block in range(1, self.experiment.blocks + 1):
            if state.target_in(block) is None:
                continue
            for arm in (BASELINE, *self.experiment.arms):
                if (arm, block) != (BASELINE, 1):
                    yield from self._tune(state, arm, block)
                yield from self._judge(state, arm, block)
                tuned = state.tuned(arm, block)
                if tuned is not None:
                    yield from self._confirm(state, tuned)
        if not self.experiment.is_aa:
            yield from self._references(state)
        if self.experiment.combine:
            yield from self._combine(state)

    def _planned(self, assignment: Assignment, params: dict[str, Any]) -> Planned:
        study = StudyName(self.experiment.name, assignment.arm, assignment.block)
        return Planned(str(study), assignment, params)

    def _search(self, state: State) -> Iterable[Planned]:
        """The next search trials, a wave at a time: Optuna reads every waiting trial whenever a sampler or a
        pruner looks at the study."""
        begun = sum(run.started for run in state.of(SEARCH, Phase.SEARCH))
        for index in range(min(self.experiment.search.trials, begun + WAVE)):
            yield self._planned(Assignment(SEARCH, Phase.SEARCH, 1, index), {})

    def _tune(self, state: State, arm: str, block: int) -> Iterable[Planned]:
        shared, knobs = self.experiment.spaces(arm, self.workload)
        base = self.experiment.base_recipe(arm)
        # The first block of the baseline is what the target is calibrated on, and runs to tau uncapped.
        to_tau = (arm, block) == (BASELINE, 1)
        first = Assignment(arm, Phase.TUNE, block, 0, base, space=shared | knobs)
        if not to_tau:
            first = replace(first, target=state.tuning_target_in(block), capped=True)
        yield from self._points(first, shared, knobs)

    def _points(self, first: Assignment, shared: Space, knobs: Space) -> Iterable[Planned]:
        """An arm's K tuning points in one block; `first` is told them all but for index and seed."""
        arm, block, base = first.arm, first.block, first.base
        assert base is not None
        seed = self.experiment.seed_set(Phase.TUNE, 1, block + self.experiment.seeds_apart(arm))[0]
        if (arm, block) not in self._sobol:
            self._sobol[arm, block] = sobol_points(shared, knobs, self.experiment.points(arm), seed)
        for index, params in enumerate(self._sobol[arm, block]):
            if params.get("lr_schedule", base.lr_schedule) == "constant":
                params = {field: value for field, value in params.items() if field != "horizon"}
            yield self._planned(replace(first, index=index, seed=seed), params)

    def _judge(self, state: State, arm: str, block: int) -> Iterable[Planned]:
        """What follows the coarse points: guided rounds, or by method 1 the finalists' reruns."""
        if not self.experiment.guided:
            yield from self._finals(state, state.finalists(arm, block))
            return
        step = state.guided(arm, block)
        if not isinstance(step, Round):
            return
        first = replace(
            state.of(arm, Phase.TUNE, block)[0].assignment,
            phase=Phase.GUIDED,
            seed=self.experiment.guided_seed(arm, block, step.number),
            space=step.space,
            target=None,
            capped=False,
            until=step.examples,
        )
        for i, params in enumerate(step.points):
            yield self._planned(replace(first, index=round_index(step.number, i)), params)

    def _finals(self, state: State, finalists: list[Run] | None) -> Iterable[Planned]:
        """An arm's best points again, on the other tuning seeds."""
        for run in finalists or []:
            if not self.experiment.finalists(run.arm):
                continue
            # Where the target is yet to be made, or was made, from the baseline's first block that runs to tau.
            to_tau = self.experiment.target is None and run.assignment.target is None
            target = None if to_tau else state.tuning_target_in(run.block)
            for i, seed in enumerate(self.experiment.final_seeds(run.arm, run.block)):
                yield self._again(run, Phase.FINAL, final_index(run, i), seed, target, run.block)

    def _calibrate(self, state: State) -> Iterable[Planned]:
        """The baseline's best coarse point on the calibration seeds, on each split of the data: validation images
        that are harder ask for a higher target."""
        yield from self._finals(state, state.calibration_finalists)
        best = state.calibration_winner
        if best is None:
            return
        for block in self.experiment.split_blocks():
            for index, seed in enumerate(self.experiment.seed_set(Phase.CALIBRATION, CALIBRATION_SEEDS)):
                yield self._again(best, Phase.CALIBRATION, index, seed, None, block)

    def _confirm(self, state: State, tuned: Tuned) -> Iterable[Planned]:
        """What was tuned, on its block's confirmation seeds. The first of them says what that is from then on: another
        machine that goes on may round otherwise, and an arm has one recipe for all seeds of a block."""
        earlier = state.of(tuned.arm, Phase.CONFIRM, tuned.block)
        params, space = (
            (earlier[0].params, earlier[0].assignment.space) if earlier else (tuned.params, tuned.space)
        )
        told = Assignment(
            tuned.arm,
            Phase.CONFIRM,
            tuned.block,
            0,
            tuned.base,
            space=space,
            target=state.target_in(tuned.block),
        )
        for index, seed in self.experiment.confirm_seeds(tuned.arm, tuned.block):
            yield self._planned(replace(told, index=index, seed=seed), params)

    def _again(
        self, best: Run, phase: Phase, index: int, seed: int, target: float | None, block: int
    ) -> Planned:
        """The recipe of a tuning trial, with a seed of another phase."""
        told = best.assignment
        again = Assignment(
            told.arm, phase, block, index, told.base, seed=seed, space=told.space, target=target
        )
        return self._planned(again, best.params)

    def _references(self, state: State) -> Iterable[Planned]:
        """Two arms outside the family, untuned here: the article's recipe and the joint search's best."""
        recipes = {ARTICLE: article_recipe(self.experiment, self.workload)}
        best, earlier = state.search_winner, state.of(SEARCH_BEST, Phase.CONFIRM)
        if earlier:  # a search topped up later may have another best: an arm has one recipe for all its seeds
            recipes[SEARCH_BEST] = _base(earlier[0])
        elif best is not None and best.recipe is not None:
            recipes[SEARCH_BEST] = best.recipe
        for arm, recipe in recipes.items():
            yield from self._fixed(state, arm, Phase.CONFIRM, recipe)

    def _fixed(self, state: State, arm: str, phase: Phase, recipe: Recipe) -> Iterable[Planned]:
        """A recipe with nothing left to tune, on a phase's seeds; a reference needs no more than a few by method 2."""
        n = self.experiment.reference_seeds if arm in REFERENCE_ARMS else self.experiment.seeds
        for index, seed in enumerate(self.experiment.seed_set(phase, n)):
            # A reference is paired with the baseline seed by seed, so it is trained on that seed's split.
            block = (
                self.experiment.split_block(index % self.experiment.blocks + 1)
                if arm in REFERENCE_ARMS
                else 1
            )
            target = state.target_in(block)
            if target is not None:
                told = Assignment(arm, phase, block, index, recipe, seed=seed, target=target)
                yield self._planned(told, {})

    def _combine(self, state: State) -> Iterable[Planned]:
        """Step 6: the best technique of each slot together, its lr tuned again, then everything on fresh
        seeds: baseline, each single, combined, and combined without each one."""
        if not state.confirmed:
            return
        earlier = state.of(COMBINED, Phase.TUNE)
        # Chosen once: with more seeds the choice may be another, and the arms must keep their recipes.
        chosen = list(earlier[0].assignment.parts) if earlier else combined_choice(state)
        experiment, workload = self.experiment, self.workload
        found = {arm: state.tuned(arm, 1) for arm in (BASELINE, *chosen)}
        won = {arm: tuned.recipe for arm, tuned in found.items() if tuned is not None}
        changes = {arm: change(experiment, workload, arm, won[arm]) for arm in chosen if arm in won}
        if not earlier:
            chosen = together(experiment, workload, [*changes], changes)
        if BASELINE not in won or len(chosen) < 2:
            return
        won = {arm: won[arm] for arm in (BASELINE, *chosen)}
        recipe = combined_recipe(experiment.recipe, (changes[arm] for arm in chosen))
        shared = combined_space(experiment, workload, chosen, recipe)
        first = Assignment(
            COMBINED,
            Phase.TUNE,
            1,
            0,
            recipe,
            space=shared,
            target=state.tuning_target,
            capped=True,
            parts=tuple(chosen),
        )
        yield from self._points(first, shared, {})
        yield from self._judge(state, COMBINED, 1)
        best = state.tuned(COMBINED, 1)
        if best is None:
            return
        recipes = won | {COMBINED: best.recipe}
        for left_out in chosen:
            rest = combined_recipe(experiment.recipe, (changes[arm] for arm in chosen if arm != left_out))
            recipes[WITHOUT + left_out] = resolve(best.params, rest)
        for arm, full in recipes.items():
            yield from self._fixed(state, arm, Phase.COMBINE, full)


def _kind(reason: str | None) -> str:
    """A reason without its numbers, which may be the trial's own."""
    return re.sub(r"\d+", "#", reason or "")


def _base(run: Run) -> Recipe:
    assert run.assignment.base is not None
    return run.assignment.base
