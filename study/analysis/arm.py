"""One arm's result, typed: counts, speed-ups with intervals and verdicts, and what they rest on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from study.design.experiment import Experiment
from study.protocol.history import Run
from study.statistics.speed_up import Difference, Estimate, simultaneous_interval
from study.statistics.verdicts import Hits, Verdict, clopper_pearson
from study.terms import BASELINE, Outcome
from vae.recipe import Recipe

_NAN = float("nan")


class Kind(StrEnum):
    """What an arm is in the comparison."""

    BASELINE = "baseline"
    TECHNIQUE = "technique"
    REFERENCE = "reference"


@dataclass(frozen=True)
class Measure:
    """An arm beside the baseline in one unit, examples or seconds."""

    estimate: Estimate
    """The speed-up with its 95 % interval; NaN where it isn't measured, or a run is censored."""
    simultaneous: tuple[float, float]
    """The interval that decides: over the whole family of arms."""
    verdict: Verdict
    unreliable: Hits | None = None
    """Whose misses make it unreliable: how many of the arm's seeds, or else of the baseline's, reach the target."""
    p_adjusted: float | None = None
    """By method 2 the one that decides: beyond the margin, adjusted for the family and all looks. By method 1 that of
    no difference at all, after Holm; None for an arm outside the family, and without a p."""
    decides: bool = False
    """By method 2 the simultaneous interval is the one that is shown, for it goes with the verdict."""

    @property
    def shown(self) -> tuple[float, float]:
        """The limits that stand beside the ratio."""
        return self.simultaneous if self.decides else (self.estimate.low, self.estimate.high)

    @property
    def ratio(self) -> float:
        """The speed-up; NaN without one."""
        return self.estimate.ratio

    @property
    def known(self) -> bool:
        """Whether there is a ratio."""
        return math.isfinite(self.estimate.ratio)

    @property
    def words(self) -> str:
        """The verdict, with the seeds that reach the target where some don't: "unreliable (3 of 10)"."""
        return f"{self.verdict} ({self.unreliable})" if self.unreliable is not None else str(self.verdict)


def unknown(reason: str | None = None, n: int = 0) -> Estimate:
    """An estimate of n units without a figure."""
    return Estimate(_NAN, _NAN, _NAN, _NAN, _NAN, _NAN, n, _NAN, reason)


#: What is said of an arm, or of its seconds, before it is measured.
UNMEASURED = Measure(unknown(), (_NAN, _NAN), Verdict.NOT_MEASURED)


def measured(
    estimate: Estimate, family: int, verdict: Verdict, unreliable: Hits | None, *, censored: bool
) -> Measure:
    """A measure; METHOD: no plain ratio once a run is censored."""
    shown = unknown("censored runs: no plain ratio", estimate.n) if censored else estimate
    return Measure(
        shown,
        simultaneous_interval(shown, family),
        verdict,
        unreliable if verdict is Verdict.UNRELIABLE else None,
    )


class Named(Protocol):
    """What has an arm's name."""

    @property
    def arm(self) -> str:
        """Its name."""
        ...


@dataclass(frozen=True)
class ArmResult:
    """All that is said of one arm."""

    arm: str
    family: str
    """The technique's; else the kind."""
    kind: Kind
    hits: int
    """Seeds that reach the target."""
    seeds: int
    """Confirmation runs that have ended."""
    planned_seeds: int
    different_model: bool = False
    mean_examples: float | None = None
    """Examples to the target, misses at tau; None where no seed reaches it."""
    epochs: float | None = None
    """The same in epochs."""
    final_loss: float | None = None
    """Mean validation loss at the end of the confirmation runs that go on to tau; None where none does."""
    best_run: Run | None = None
    """The confirmation run with the lowest loss: its model is the one that is kept."""
    ended: Mapping[Outcome, int] = field(default_factory=dict)
    """Confirmation runs that went wrong, by how."""
    edges: tuple[str, ...] = ()
    """Tuned fields whose winning value lies at an end of its range: "lr high" and the like."""
    recipe: Recipe | None = None
    """What was confirmed, with the first block's first seed."""
    params: Mapping[str, Any] | None = None
    """Its tuned values."""
    compared: Hits | None = None
    """Its hits on the seeds that stand beside the baseline's: fewer than all where the baseline lacks a seed."""
    resolution: float | None = None
    """Relative width of the grid cell of the hit; infinite where the first evaluation hits; None without one."""
    par2: float | None = None
    ert: float | None = None
    examples: Measure | None = None
    """None for the baseline."""
    seconds: Measure | None = None
    """None for the baseline, and before the arm has finished confirmation runs."""
    conditional: Estimate | None = None
    """Ratio on the seeds that both reach the target on."""
    rmst: Estimate | None = None
    """Ratio with misses truncated at tau."""
    at_most: float | None = None
    """No speed-up in examples above this: the upper 95 % limit of `rmst`, for a miss takes tau at least, and so many
    examples. None where the baseline has misses too, and without an interval."""
    throughput: Estimate | None = None
    """Examples per second over the baseline's; None before it is timed."""
    examples_per_second: float | None = None
    cold_start_seconds: float | None = None
    cold: Estimate | None = None
    """Speed-up in seconds with one cold start."""
    tuning_share: float | None = None
    """Of the variance in examples, what the luck of tuning is; None by method 1, whose intervals leave it out, and
    where the spread of several blocks holds it."""
    test: Difference | None = None
    """Test loss at the hit against the baseline's, nats; above 0 is worse."""

    @property
    def is_baseline(self) -> bool:
        """Whether all else is measured against it."""
        return self.kind is Kind.BASELINE

    @property
    def is_technique(self) -> bool:
        """Whether it belongs to the family of arms that is judged together."""
        return self.kind is Kind.TECHNIQUE

    @property
    def measured(self) -> bool:
        """Whether it has been set beside the baseline."""
        return self.examples is not None and self.examples.verdict is not Verdict.NOT_MEASURED

    @property
    def timed(self) -> bool:
        """Whether its seconds have been set beside the baseline's."""
        return self.seconds is not None and self.seconds.verdict is not Verdict.NOT_MEASURED

    @property
    def p_adjusted(self) -> float | None:
        """The p in examples, adjusted for the family; None for an arm outside it, and without a p."""
        return None if self.examples is None else self.examples.p_adjusted

    @property
    def misses(self) -> int:
        """Seeds that don't reach the target."""
        return self.seeds - self.hits

    @property
    def hit_interval(self) -> tuple[float, float]:
        """Exact 95 % interval of the share of seeds that reach the target; (0, 1) without a run."""
        return clopper_pearson(self.hits, self.seeds)

    @property
    def test_worse(self) -> bool:
        """Whether it is worse than the baseline on the test split at its hit, beyond chance."""
        return self.test is not None and self.test.low > 0


@dataclass(frozen=True)
class CombinedArm:
    """An arm of the combine block, a family of its own."""

    arm: str
    hits: int
    seeds: int
    examples: Measure


@dataclass(frozen=True)
class ArticleArm:
    """How much sooner an arm has the loss that the article's recipe ends with."""

    arm: str
    loss: float
    """The article's, nats."""
    hits: int
    seeds: int
    first: int = 0
    """Seeds that have that loss at their first evaluation already: for them "sooner" is a floor."""
    mean_examples: float | None = None
    """None where some seed never has it."""
    sooner: Estimate | None = None
    sooner_seconds: float | None = None

    @property
    def is_floor(self) -> bool:
        """Whether it is at least that much sooner: some seed was there before anyone looked."""
        return self.first > 0


def family_of(experiment: Experiment, arm: str) -> str:
    """The technique's family; "baseline" or "reference" for what is no technique."""
    technique = experiment.technique(arm)
    if technique is not None:
        return technique.family
    return str(Kind.BASELINE if arm == BASELINE else Kind.REFERENCE)


A = TypeVar("A", bound=Named)


def find(arms: Iterable[A], name: str) -> A | None:
    """The arm of that name; None without one."""
    return next((arm for arm in arms if arm.arm == name), None)


def sorted_arms(arms: Iterable[ArmResult]) -> list[ArmResult]:
    """Techniques by speed-up, the baseline above, arms without a ratio and the references below."""

    def key(arm: ArmResult) -> tuple[int, float, str]:
        known = arm.examples is not None and arm.examples.known
        order = {Kind.BASELINE: 0, Kind.TECHNIQUE: 1 if known else 2, Kind.REFERENCE: 3}[arm.kind]
        return order, -arm.examples.ratio if known and arm.examples is not None else 0.0, arm.arm

    return sorted(arms, key=key)
