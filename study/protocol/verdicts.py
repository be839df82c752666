"""What is said of each technique now, by the experiment's method 2: the confirmation runs and the luck of tuning put
before `study.statistics.judgement`. The comparison says it, and the combined arm is chosen by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from study.protocol.guided import Guided
from study.protocol.history import confirmed, joint
from study.protocol.selection import State
from study.statistics.judgement import Judged, Pair, judge_family
from study.statistics.speed_up import Estimate
from study.terms import BASELINE, COMBINED, WITHOUT, Phase

Said = tuple[Judged, Judged | None]
"""Of an arm: (in examples, in seconds)."""


def pair(state: State, arm: str, phase: Phase, throughput: Estimate | None = None) -> Pair | None:
    """An arm beside the baseline in a phase; None before a seed of both has finished."""
    a, b = joint(confirmed(state, arm, phase), confirmed(state, BASELINE, phase))
    if not a.runs:
        return None
    experiment = state.experiment
    tuned = _tuned_as(arm)
    # Several blocks hold the luck of tuning in their spread; with one it is put in.
    one_block = _one_tuning(state, phase)
    found = [state.guided(tuned, block) for block in range(1, experiment.blocks + 1)]
    known = [guided for guided in found if isinstance(guided, Guided)]
    return Pair(
        seeds=np.array(a.index, dtype=np.int64),
        baseline_examples=b.E,
        baseline_hit=b.hit,
        arm_examples=a.E,
        arm_hit=a.hit,
        # The baseline's blocks: a reference arm has one recipe for all seeds, and is paired with each block.
        blocks=None if one_block else b.blocks,
        tuning_variance=variance(state, arm, phase),
        tuned=not known or any(guided.reached for guided in known),
        throughput=throughput,
    )


def variance(state: State, arm: str, phase: Phase = Phase.CONFIRM) -> float:
    """What an arm's E owes to the luck of its tuning in a phase, in ln E; 0 where several blocks hold it."""
    return state.tuning_variance(_tuned_as(arm), 1) if _one_tuning(state, phase) else 0.0


def _tuned_as(arm: str) -> str:
    """Without one of its parts the combined arm keeps what was tuned for the whole."""
    return COMBINED if arm.startswith(WITHOUT) else arm


def _one_tuning(state: State, phase: Phase) -> bool:
    """Whether all seeds of a phase rest on one tuning: the combine block's do, whatever the number of blocks."""
    return state.experiment.blocks == 1 or phase is Phase.COMBINE


def family(state: State, throughput: Mapping[str, Estimate] | None = None) -> dict[str, Said | None]:
    """What is said of every technique, in one family with those that have no finished seed yet (None)."""
    experiment = state.experiment
    timed = throughput or {}
    pairs = [pair(state, arm, Phase.CONFIRM, timed.get(arm)) for arm in experiment.arms]
    return dict(zip(experiment.arms, _said(state, pairs, Phase.CONFIRM), strict=True))


def alone(state: State, arm: str, throughput: Estimate | None = None) -> Said | None:
    """What is said of an arm outside of the family, such as a reference."""
    (said,) = _said(state, [pair(state, arm, Phase.CONFIRM, throughput)], Phase.CONFIRM)
    return said


def combined_family(state: State, arms: Sequence[str]) -> dict[str, Said | None]:
    """What is said of the combine block's arms, a family of its own on seeds of its own."""
    pairs = [pair(state, arm, Phase.COMBINE) for arm in arms]
    return dict(zip(arms, _said(state, pairs, Phase.COMBINE), strict=True))


def _said(state: State, pairs: Sequence[Pair | None], phase: Phase) -> list[Said | None]:
    experiment = state.experiment
    return judge_family(
        pairs,
        baseline_variance=variance(state, BASELINE, phase),
        looks=[*experiment.looks, experiment.seeds],
        margin=experiment.margin,
    )
