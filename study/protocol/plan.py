"""How many trials an experiment will take, before anything has been run."""

from __future__ import annotations

from study.design.experiment import Experiment
from study.design.phases import CALIBRATION_SEEDS
from study.terms import BASELINE, Phase


def describe_plan(experiment: Experiment) -> dict[str, int]:
    """How many trials each phase will run. What depends on what is found isn't counted: the combined arm's, and
    reruns of baseline points that are among the best by score but not by final loss."""
    plan = {str(Phase.SEARCH): experiment.search.trials}
    if not experiment.arms:
        return plan
    arms = (BASELINE, *experiment.arms)
    reference_arms = 2 if experiment.search.trials else 1
    plan[Phase.TUNE] = experiment.blocks * sum(map(experiment.points, arms))
    plan[Phase.FINAL] = experiment.blocks * (experiment.tune_seeds - 1) * sum(map(experiment.finalists, arms))
    plan[Phase.CALIBRATION] = CALIBRATION_SEEDS if experiment.target is None else 0
    plan[Phase.CONFIRM] = (len(arms) + reference_arms) * experiment.seeds
    return plan
