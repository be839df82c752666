"""Step 6's choice: which techniques are tried together."""

from __future__ import annotations

from study.protocol.history import State, confirmed, joint
from study.statistics.speed_up import speed_up, units
from study.terms import BASELINE, Phase


def combined_choice(state: State) -> list[str]:
    """At most one technique per slot, the best lower limit in examples of each, above 1.

    Architecture arms train another model and stay out; a censored arm has no plain ratio."""
    experiment = state.experiment
    baseline = confirmed(state, BASELINE, Phase.CONFIRM)
    best: dict[str, tuple[float, str]] = {}
    for arm in experiment.arms:
        technique = experiment.technique(arm)
        if technique is None or technique.different_model:
            continue
        a, b = joint(confirmed(state, arm, Phase.CONFIRM), baseline)
        if not a.runs or not (a.hit.all() and b.hit.all()):
            continue
        at = b.blocks if experiment.blocks > 1 else None
        low = speed_up(units(b.E, at), units(a.E, at)).low
        if low > 1.0:
            best[technique.slot] = max(best.get(technique.slot, (0.0, "")), (low, technique.name))
    return [arm for _, arm in sorted(best.values(), reverse=True)]
