"""The protocol of `compare`: calibrate, tune each arm, confirm on fresh seeds, combine.

The planner looks at what the database holds and enqueues what may run next. It holds no state of its
own, so it goes on where it was after any kill, and its plan depends on no worker count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import optuna

from study.design.experiment import Experiment
from study.design.phases import CALIBRATION_SEEDS
from study.design.space import Space, plain, resolve, sobol_points
from study.design.workload import Workload
from study.protocol.combine import combined_choice
from study.protocol.history import Run, State, final_index
from study.store import records
from study.store.setup import setup_lock
from study.store.store import Store
from study.terms import SEARCH, Phase
from vae.recipe import Recipe

#: Recipe of the source article, whatever the baseline is: Adam at 1e-4, constant, batches of 256.
ARTICLE = {"optimizer": "adam", "lr": 1e-4, "lr_schedule": "constant", "warmup": 0.0, "batch_size": 256}
#: Search trials that wait at a time.
WAVE = 16


@dataclass(frozen=True)
class Planned:
    """A trial to enqueue; its key is its identity, so it is never enqueued twice."""

    study: str
    phase: Phase
    index: int
    params: dict[str, Any]
    attrs: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is known by."""
        return self.study, self.phase, self.index


def study_name(name: str, arm: str, block: int) -> str:
    """`NAME/ARM`, or `NAME/ARM/BLOCK` from the second block on."""
    return f"{name}/{arm}" if block == 1 else f"{name}/{arm}/{block}"


class Planner:
    """Enqueues the trials of one experiment phase by phase."""

    def __init__(self, store: Store, experiment: Experiment, workload: Workload) -> None:
        self.store = store
        self.experiment = experiment
        self.workload = workload
        self._studies: dict[str, optuna.Study] = {}
        self._progress = -1

    def advance(self) -> bool:
        """Enqueue what has become possible; True when nothing is left to plan or to run."""
        progress = records.progress(self.store, self.experiment.name)
        # Counted before the look at what has been run: a trial that ends after it may make more possible. And that
        # look counts too: another planner may have enqueued the next phase meanwhile.
        remaining = records.remaining(self.store, self.experiment.name)
        if progress == self._progress and remaining:
            return False
        with setup_lock(self.store):
            state = self.observe()
            missing = [trial for trial in self._plan(state) if trial.key not in state.known]
            for trial in missing:
                study = self._study(trial.study)
                study.enqueue_trial(trial.params, user_attrs=trial.attrs)
        self._progress = progress
        return not missing and not remaining and all(run.finished for run in state.runs)

    def observe(self) -> State:
        """What the database holds of this experiment now."""
        return State(self.store, self.experiment, self.workload)

    def _study(self, name: str) -> optuna.Study:
        if name not in self._studies:
            self._studies[name] = optuna.create_study(
                study_name=name, storage=self.store.optuna, direction="minimize", load_if_exists=True
            )
        return self._studies[name]

    def _plan(self, state: State) -> Iterable[Planned]:
        yield from self._search(state)
        if not self.experiment.arms:
            return
        yield from self._tune(state, "baseline", 1)
        if state.calibration_finalists is None:
            return
        if self.experiment.target is None:
            yield from self._calibrate(state)
        if state.target is None:
            return
        arms = ("baseline", *self.experiment.arms)
        for block in range(1, self.experiment.blocks + 1):
            for arm in arms:
                if (arm, block) != ("baseline", 1):
                    yield from self._tune(state, arm, block)
                yield from self._finals(state, state.finalists(arm, block))
                best = state.winner(arm, block)
                if best is not None:
                    yield from self._confirm(state, arm, block, best)
        if not self._is_aa():
            yield from self._references(state)
        if self.experiment.combine:
            yield from self._combine(state)

    def _search(self, state: State) -> Iterable[Planned]:
        """The next search trials, a wave at a time: Optuna reads every waiting trial whenever a sampler or a
        pruner looks at the study."""
        waiting = sum(not run.started for run in state.of(SEARCH, Phase.SEARCH))
        begun = len(state.of(SEARCH, Phase.SEARCH)) - waiting
        for index in range(min(self.experiment.search.trials, begun + WAVE)):
            attrs = {"arm": "search", "phase": Phase.SEARCH, "block": 1, "index": index}
            yield Planned(f"{self.experiment.name}/search", Phase.SEARCH, index, {}, attrs)

    def _trial(
        self,
        arm: str,
        block: int,
        phase: Phase,
        index: int,
        params: dict[str, Any],
        base: Recipe,
        **more: Any,
    ) -> Planned:
        """`base` is the recipe without `params`; `space` in `more`: the dimensions that params are points of."""
        attrs = {"arm": arm, "phase": phase, "block": block, "index": index, "recipe": base.to_json()}
        study = study_name(self.experiment.name, arm, block)
        return Planned(study, phase, index, params, attrs | more)

    def _tune(self, state: State, arm: str, block: int) -> Iterable[Planned]:
        shared, own = self.experiment.spaces(arm, self.workload)
        base = self.experiment.base_recipe(arm)
        yield from self._points(state, arm, block, base, shared, own)

    def _points(
        self, state: State, arm: str, block: int, base: Recipe, shared: Space, own: Space, **more: Any
    ) -> Iterable[Planned]:
        seed = self.experiment.seed_set(Phase.TUNE, 1, block + self.experiment.seeds_apart(arm))[0]
        # The first block of the baseline is what the target is calibrated on, and runs to tau uncapped.
        capped = (arm, block) != ("baseline", 1)
        more |= {"seed": seed, "space": plain(shared | own)}
        more |= {"target": state.tuning_target, "capped": True} if capped else {}
        n = self.experiment.points(arm)
        for index, params in enumerate(sobol_points(shared, own, n, seed)):
            if params.get("lr_schedule", base.lr_schedule) == "constant":
                params = {field: value for field, value in params.items() if field != "horizon"}
            yield self._trial(arm, block, Phase.TUNE, index, params, base, **more)

    def _finals(self, state: State, finalists: list[Run] | None) -> Iterable[Planned]:
        """An arm's best points again, on the other tuning seeds."""
        for run in finalists or []:
            if not self.experiment.finalists(run.arm):
                continue
            # Where the target is yet to be made, or was made, from the baseline's first block that runs to tau.
            to_tau = self.experiment.target is None and "target" not in run.attrs
            more = {} if to_tau else {"target": state.tuning_target}
            for i, seed in enumerate(self.experiment.final_seeds(run.arm, run.block)):
                yield self._again(run, Phase.FINAL, final_index(run, i), seed=seed, **more)

    def _calibrate(self, state: State) -> Iterable[Planned]:
        yield from self._finals(state, state.calibration_finalists)
        best = state.calibration_winner
        if best is None:
            return
        for index, seed in enumerate(self.experiment.seed_set(Phase.CALIBRATION, CALIBRATION_SEEDS)):
            yield self._again(best, Phase.CALIBRATION, index, seed=seed)

    def _confirm(self, state: State, arm: str, block: int, best: Run) -> Iterable[Planned]:
        apart = self.experiment.seeds_apart(arm)
        for index, seed in self._block_seeds(Phase.CONFIRM, block):
            yield self._again(best, Phase.CONFIRM, index, seed=seed + apart, target=state.target)

    def _again(self, best: Run, phase: Phase, index: int, **more: Any) -> Planned:
        """The recipe of a tuning trial, with a seed of another phase."""
        base = Recipe.from_json(best.attrs["recipe"])
        more |= {"space": best.attrs["space"]}
        return self._trial(best.arm, best.block, phase, index, best.params, base, **more)

    def _block_seeds(self, phase: Phase, block: int) -> Iterable[tuple[int, int]]:
        """(index, seed) of a block's confirmation runs: every R-th, so topping S up moves no seed."""
        seeds = self.experiment.seed_set(phase, self.experiment.seeds)
        return [(i, seed) for i, seed in enumerate(seeds) if i % self.experiment.blocks == block - 1]

    def _is_aa(self) -> bool:
        techniques = [self.experiment.technique(arm) for arm in self.experiment.arms]
        return all(technique is not None and technique.independent for technique in techniques)

    def _references(self, state: State) -> Iterable[Planned]:
        """Two arms outside the family, untuned here: the article's recipe and the joint search's best."""
        recipes = {"article": self.experiment.recipe.replace(**ARTICLE)}
        best, earlier = state.search_winner, state.of("search-best", Phase.CONFIRM)
        if earlier:  # a search topped up later may have another best: an arm has one recipe for all its seeds
            recipes["search-best"] = Recipe.from_json(earlier[0].attrs["recipe"])
        elif best is not None and best.recipe is not None:
            recipes["search-best"] = best.recipe
        for arm, recipe in recipes.items():
            yield from self._fixed(state, arm, Phase.CONFIRM, recipe)

    def _fixed(self, state: State, arm: str, phase: Phase, recipe: Recipe) -> Iterable[Planned]:
        """A recipe with nothing left to tune, on every seed of a phase."""
        for index, seed in enumerate(self.experiment.seed_set(phase, self.experiment.seeds)):
            yield self._trial(arm, 1, phase, index, {}, recipe, seed=seed, space={}, target=state.target)

    def _combine(self, state: State) -> Iterable[Planned]:
        """Step 6: the best technique of each slot together, its lr tuned again, then everything on fresh
        seeds: baseline, each single, combined, and combined without each one."""
        if not state.confirmed:
            return
        earlier = state.of("combined", Phase.TUNE)
        # Chosen once: with more seeds the choice may be another, and the arms must keep their recipes.
        chosen = earlier[0].attrs["parts"] if earlier else combined_choice(state)
        if len(chosen) < 2:
            return
        winners = {arm: state.winner(arm, 1) for arm in ("baseline", *chosen)}
        won = {arm: _recipe(best) for arm, best in winners.items() if best is not None}
        parts = {arm: self._change(arm, won[arm]) for arm in chosen}
        recipe = self._with(parts.values())
        shared = self.experiment.shared_space(recipe, self.workload)
        for arm in chosen:
            shared = self.experiment.known[arm].in_place(shared)
        yield from self._points(state, "combined", 1, recipe, shared, {}, parts=chosen)
        yield from self._finals(state, state.finalists("combined", 1))
        best = state.winner("combined", 1)
        if best is None:
            return
        recipes = won | {"combined": _recipe(best)}
        for left_out in chosen:
            rest = self._with(change for arm, change in parts.items() if arm != left_out)
            recipes[f"combined-without-{left_out}"] = resolve(best.params, rest)
        for arm, full in recipes.items():
            yield from self._fixed(state, arm, Phase.COMBINE, full)

    def _with(self, changes: Iterable[dict[str, Any]]) -> Recipe:
        recipe = self.experiment.recipe
        for change in changes:
            recipe = recipe.replace(**change)
        return recipe

    def _change(self, arm: str, won: Recipe) -> dict[str, Any]:
        """The fields in which the arm's tuned recipe differs from the baseline, without the shared dimensions."""
        shared, _ = self.experiment.spaces(arm, self.workload)
        before = self.experiment.recipe.model_dump()
        return {
            field: value
            for field, value in won.model_dump().items()
            if value != before[field] and field != "seed" and field not in shared
        }


def _recipe(run: Run) -> Recipe:
    """A tuned recipe, with the seed of the experiment's."""
    return resolve(run.params, Recipe.from_json(run.attrs["recipe"]))


def describe_plan(experiment: Experiment) -> dict[str, int]:
    """How many trials each part will run. What depends on what is found isn't counted: the combined arm's, and
    reruns of baseline points that are among the best by score but not by final loss."""
    plan = {"search": experiment.search.trials}
    if not experiment.arms:
        return plan
    arms = ("baseline", *experiment.arms)
    reference_arms = 2 if experiment.search.trials else 1
    plan["tune"] = experiment.blocks * sum(map(experiment.points, arms))
    plan["final"] = experiment.blocks * (experiment.tune_seeds - 1) * sum(map(experiment.finalists, arms))
    plan["calibration"] = CALIBRATION_SEEDS if experiment.target is None else 0
    plan["confirm"] = (len(arms) + reference_arms) * experiment.seeds
    return plan
