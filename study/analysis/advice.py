"""What to use: the recipes that are offered, why, and the commands for them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import StrEnum

from study.analysis.answer import fastest
from study.analysis.arm import find
from study.analysis.comparison import Comparison
from study.analysis.findings import nats
from study.analysis.standing import Standing
from study.analysis.words import speed_up_of
from study.protocol.history import Run
from study.terms import BASELINE, Outcome
from vae.recipe import Recipe


class Use(StrEnum):
    """Why a recipe is offered, by the name that its file ends with."""

    FASTEST = "fastest"
    BEST = "best"
    BASELINE = "baseline"

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        return _USES[self]


_USES = {
    Use.FASTEST: "the fastest",
    Use.BEST: "the lowest loss",
    Use.BASELINE: "the tuned baseline",
}


@dataclass(frozen=True)
class Offer:
    """A recipe to use, and the run whose model is kept for it."""

    use: Use
    arm: str
    recipe: Recipe
    run: Run | None
    because: str


def offers(standing: Standing) -> list[Offer]:
    """What may be used: the fastest confirmed recipe, the one with the lowest loss, the tuned baseline.

    The lowest loss is that of an arm over its confirmation runs; where there are none, or all ended at the
    target, the search's best trial stands in for it."""
    comparison = standing.comparison
    found = [] if comparison is None else [_fastest_offer(comparison)]
    found.append(_best_offer(standing))
    if comparison is not None:
        baseline = find(comparison.arms, BASELINE)
        if baseline is not None and baseline.recipe is not None:
            because = f"target reached on {baseline.hits} of {baseline.seeds} seeds"
            found.append(Offer(Use.BASELINE, BASELINE, baseline.recipe, baseline.best_run, because))
    return [offer for offer in found if offer is not None]


def _fastest_offer(comparison: Comparison) -> Offer | None:
    """By seconds where arms were timed, else by examples; the baseline where no technique is faster."""
    unit = "seconds" if comparison.timed else "examples"
    arm = fastest(comparison, unit)
    measure = None if arm is None else arm.seconds if comparison.timed else arm.examples
    because = f"no technique is distinguishably faster in {unit}"
    if measure is None:
        arm = find(comparison.arms, BASELINE)
    else:
        because = f"{speed_up_of(measure)} as fast in {unit}"
    if arm is None or arm.recipe is None:
        return None
    return Offer(Use.FASTEST, arm.arm, arm.recipe, arm.best_run, because)


def _best_offer(standing: Standing) -> Offer | None:
    comparison = standing.comparison
    arms = [] if comparison is None or not standing.experiment.run_to_tau else comparison.arms
    to_tau = [
        (arm.final_loss, arm)
        for arm in arms
        if arm.final_loss is not None
        and not arm.ended.get(Outcome.DIVERGED)
        and not arm.ended.get(Outcome.FAILED)
    ]
    if to_tau:
        loss, arm = min(to_tau, key=lambda pair: pair[0])
        if arm.recipe is None:
            return None
        runs = min(arm.seeds, standing.experiment.run_to_tau)
        because = f"{nats(loss, standing.workload.dimensions)}, the mean of {runs} confirmation runs"
        return Offer(Use.BEST, arm.arm, arm.recipe, arm.best_run, because)
    best = standing.best_search
    if best is None or best.recipe is None:
        return None
    told = nats(best.best_loss, standing.workload.dimensions)
    because = f"{told}, once: no other seed has confirmed it"
    return Offer(Use.BEST, f"search trial {best.number}", best.recipe, best, because)


@dataclass(frozen=True)
class Advice:
    """What to use: a sentence, and commands to copy, a line each."""

    sentence: str
    commands: tuple[str, ...]


def advice(standing: Standing) -> Advice | None:
    """What to use, with the commands to copy; None before there is a recipe to offer."""
    offered = offers(standing)
    if not offered:
        return None
    first, *others = offered
    rest = "".join(f"; {offer.use.words}: {offer.arm} ({offer.because})" for offer in others)
    recipe = f"export/{standing.name}-{first.use}.toml"
    data = " ".join(standing.experiment.data.split())  # a command is one line
    experiment = standing.experiment
    seed = f" --seed {experiment.seed}" if experiment.seed else ""
    return Advice(
        f"Use {first.arm}, {first.use.words} ({first.because}){rest}. The recipes and how to train one:",
        (
            f"python -m study export --name {shlex.quote(standing.name)}",
            f"python -m vae train --data {shlex.quote(data)} --budget {experiment.budget:g}{seed} "
            f"--recipe {shlex.quote(recipe)} --out model.safetensors",
        ),
    )
