"""How many trials an experiment will take, before anything has been run."""

from __future__ import annotations

from study.design.experiment import Experiment
from study.design.phases import CALIBRATION_SEEDS
from study.design.techniques import DEFAULT_ARMS
from study.design.workload import Workload
from study.terms import ARTICLE, BASELINE, Phase
from vae.errors import UserError
from vae.recipe import Recipe

#: Recipe of the source article, whatever the baseline is: Adam at 1e-4, constant, batches of 256.
ARTICLE_RECIPE = {"optimizer": "adam", "lr": 1e-4, "lr_schedule": "constant", "warmup": 0.0}
ARTICLE_BATCH = 256


def describe_plan(experiment: Experiment) -> dict[str, int]:
    """How many trials each phase will run. What depends on what is found isn't counted: the combined arm's, and
    reruns of baseline points that are among the best by score but not by final loss."""
    plan = {str(Phase.SEARCH): experiment.search.trials}
    if not experiment.arms:
        return plan
    arms = (BASELINE, *experiment.arms)
    reference_arms = 2 if experiment.search.trials else 1
    plan[Phase.TUNE] = experiment.blocks * sum(map(experiment.points, arms))
    plan[Phase.GUIDED] = experiment.blocks * sum(experiment.guided_points(arm) for arm in arms)
    plan[Phase.FINAL] = experiment.blocks * (experiment.tune_seeds - 1) * sum(map(experiment.finalists, arms))
    calibrated = len(experiment.split_blocks()) if experiment.target is None else 0
    plan[Phase.CALIBRATION] = calibrated * CALIBRATION_SEEDS
    plan[Phase.CONFIRM] = len(arms) * experiment.seeds + reference_arms * experiment.reference_seeds
    return plan


def article_recipe(experiment: Experiment, workload: Workload) -> Recipe:
    """The source article's recipe on this workload: its batch is the data where that is smaller."""
    return experiment.recipe.replace(**ARTICLE_RECIPE, batch_size=min(ARTICLE_BATCH, workload.n_train))


def cut_to_fit(experiment: Experiment, workload: Workload) -> list[str]:
    """What is changed or left out because a batch would be larger than the data: sentences for whoever plans."""
    if not experiment.arms:
        return []
    n = workload.n_train
    said = []
    if n < ARTICLE_BATCH:
        said.append(
            f"{ARTICLE}: its batches of {ARTICLE_BATCH} are more than the {n} training examples: trained with {n}."
        )
    left_out = [arm for arm in DEFAULT_ARMS if arm not in experiment.arms]
    reasons = {arm: reason for arm in left_out if (reason := _reason(experiment, arm, n)) is not None}
    # Only where the default arms were asked for: all of them that fit are there.
    if len(reasons) == len(left_out):
        said += [f"{arm}: {reason}: left out." for arm, reason in reasons.items()]
    return said


def _reason(experiment: Experiment, arm: str, n_train: int) -> str | None:
    """Why a technique can't be an arm here; None where it can."""
    try:
        batch = experiment.base_recipe(arm).batch(n_train)
    except UserError:
        return "what it changes this baseline doesn't have"
    return (
        None if batch <= n_train else f"its batches of {batch} are more than the {n_train} training examples"
    )
