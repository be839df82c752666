"""Step 6: which techniques are combined, and what each changes of the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from study.design.experiment import Experiment
from study.design.space import Space, check_corner
from study.design.workload import Workload
from study.protocol.history import confirmed, joint
from study.protocol.selection import State
from study.protocol.verdicts import family
from study.statistics.speed_up import speed_up, units
from study.statistics.verdicts import Verdict
from study.terms import BASELINE, COMBINED, Phase
from vae.errors import UserError
from vae.recipe import Recipe


def combined_choice(state: State) -> list[str]:
    """At most one technique per slot, the best lower limit in examples of each, best first: of those that are faster
    the simultaneous limit, or by method 1 of those above 1 the plain one, which lets one null of forty in.

    Architecture arms train another model and stay out."""
    experiment = state.experiment
    lower = _simultaneous(state) if experiment.guided else _plain(state)
    best: dict[str, tuple[float, str]] = {}
    for arm, low in lower.items():
        technique = experiment.known[arm]
        if not technique.different_model:
            best[technique.slot] = max(best.get(technique.slot, (0.0, "")), (low, arm))
    return [arm for _, arm in sorted(best.values(), reverse=True)]


def _simultaneous(state: State) -> dict[str, float]:
    said = ((arm, found[0]) for arm, found in family(state).items() if found is not None)
    return {arm: judged.simultaneous[0] for arm, judged in said if judged.verdict is Verdict.FASTER}


def _plain(state: State) -> dict[str, float]:
    """Of the arms without a miss; one with a miss has no plain ratio by method 1."""
    baseline = confirmed(state, BASELINE, Phase.CONFIRM)
    lower = {}
    for arm in state.experiment.arms:
        a, b = joint(confirmed(state, arm, Phase.CONFIRM), baseline)
        if not a.runs or not (a.hit.all() and b.hit.all()):
            continue
        blocks = b.blocks if state.experiment.blocks > 1 else None
        low = speed_up(units(b.E, blocks), units(a.E, blocks)).low
        if low > 1.0:  # NaN where one unit gives no interval
            lower[arm] = float(low)
    return lower


def change(experiment: Experiment, workload: Workload, arm: str, won: Recipe) -> dict[str, Any]:
    """The fields in which an arm's tuned recipe differs from the baseline, without the shared dimensions; None for an
    option that the baseline has and it doesn't."""
    shared, _ = experiment.spaces(arm, workload)
    changes = won.changes(experiment.recipe)
    return {field: value for field, value in changes.items() if field != "seed" and field not in shared}


def combined_recipe(baseline: Recipe, changes: Iterable[dict[str, Any]]) -> Recipe:
    """The baseline with all the changes made. Raises UserError."""
    for changed in changes:
        baseline = baseline.replace(**changed)
    return baseline


def combined_space(experiment: Experiment, workload: Workload, arms: Iterable[str], recipe: Recipe) -> Space:
    """What is tuned of the recipe that these techniques make together."""
    space = experiment.shared_space(recipe, workload)
    for arm in arms:
        space = experiment.known[arm].in_place(space)
    return space


def together(
    experiment: Experiment, workload: Workload, arms: Sequence[str], changes: Mapping[str, dict[str, Any]]
) -> list[str]:
    """Those of the techniques, best first, that one recipe can have together, and without any one of them. One that
    doesn't go with the better ones is passed over, as a warm-up that is longer than another's horizon."""

    def is_possible(parts: Sequence[str]) -> bool:
        try:
            recipe = combined_recipe(experiment.recipe, (changes[arm] for arm in parts))
            check_corner(combined_space(experiment, workload, parts, recipe), recipe, COMBINED)
        except UserError:
            return False
        return True

    kept: list[str] = []
    for arm in arms:
        tried = [*kept, arm]
        without_one = ([part for part in tried if part != left_out] for left_out in tried)
        if all(map(is_possible, (tried, *without_one))):
            kept = tried
    return kept
