"""Step 6: which techniques are combined, and what each changes of the baseline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from study.design.experiment import Experiment
from study.design.workload import Workload
from study.protocol.history import History, confirmed, joint
from study.statistics.speed_up import speed_up, units
from study.terms import BASELINE, Phase
from vae.recipe import Recipe


def combined_choice(history: History) -> list[str]:
    """At most one technique per slot, the best lower limit in examples of each, above 1, best first.

    An arm with a miss has no plain ratio and is none of them; architecture arms train another model and stay out."""
    experiment = history.experiment
    baseline = confirmed(history, BASELINE, Phase.CONFIRM)
    best: dict[str, tuple[float, str]] = {}
    for arm in experiment.arms:
        technique = experiment.technique(arm)
        if technique is None or technique.different_model:
            continue
        a, b = joint(confirmed(history, arm, Phase.CONFIRM), baseline)
        if not a.runs or not (a.hit.all() and b.hit.all()):
            continue
        blocks = b.blocks if experiment.blocks > 1 else None
        low = speed_up(units(b.E, blocks), units(a.E, blocks)).low
        if low > 1.0:  # NaN where one unit gives no interval
            best[technique.slot] = max(best.get(technique.slot, (0.0, "")), (float(low), technique.name))
    return [arm for _, arm in sorted(best.values(), reverse=True)]


def change(experiment: Experiment, workload: Workload, arm: str, won: Recipe) -> dict[str, Any]:
    """The fields in which an arm's tuned recipe differs from the baseline, without the shared dimensions."""
    shared, _ = experiment.spaces(arm, workload)
    before = experiment.recipe.model_dump()
    return {
        field: value
        for field, value in won.model_dump().items()
        if value != before[field] and field != "seed" and field not in shared
    }


def combined_recipe(baseline: Recipe, changes: Iterable[dict[str, Any]]) -> Recipe:
    """The baseline with all the changes made. Raises UserError."""
    for changed in changes:
        baseline = baseline.replace(**changed)
    return baseline
