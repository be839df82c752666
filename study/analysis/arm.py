"""One arm's result, typed: counts, speed-ups with intervals and verdicts, and what they rest on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd

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
    """Mean validation loss at the end of the confirmation runs."""
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
    throughput: Estimate | None = None
    """Examples per second over the baseline's; None before it is timed."""
    examples_per_second: float | None = None
    cold_start_seconds: float | None = None
    cold: Estimate | None = None
    """Speed-up in seconds with one cold start."""
    tuning_share: float | None = None
    """Of the variance in examples, what the luck of tuning is; None by method 1, whose intervals leave it out."""
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


# The exported tables: the only place where a result is columns.


def to_frame(arms: Sequence[ArmResult]) -> pd.DataFrame:
    """One row an arm, in the order given; a column that no arm has is left out."""
    frame = pd.DataFrame([_columns(arm) for arm in arms])
    for unit, measures in (("", [arm.examples for arm in arms]), ("_seconds", [arm.seconds for arm in arms])):
        if arms:
            frame[f"p_adjusted{unit}"] = [_number(m.p_adjusted if m is not None else None) for m in measures]
    return frame


def combined_frame(arms: Sequence[CombinedArm]) -> pd.DataFrame:
    """One row an arm of the combine block."""
    frame = pd.DataFrame(
        [
            {"arm": arm.arm, "hits": arm.hits, "seeds": arm.seeds}
            | _measure(arm.examples)
            | {"verdict": arm.examples.words}
            for arm in arms
        ]
    )
    if arms:
        frame["p_adjusted"] = [_number(arm.examples.p_adjusted) for arm in arms]
    return frame


def article_frame(arms: Sequence[ArticleArm]) -> pd.DataFrame:
    """One row an arm that has finished confirmation runs."""
    rows = []
    for arm in arms:
        row: dict[str, Any] = {"arm": arm.arm, "loss": arm.loss, "hits": arm.hits, "seeds": arm.seeds}
        if arm.sooner is not None:
            row |= {"examples": arm.mean_examples, "sooner_seconds": _number(arm.sooner_seconds)}
            row |= _ratio("sooner", arm.sooner)
        rows.append(row)
    return pd.DataFrame(rows)


def _columns(arm: ArmResult) -> dict[str, Any]:
    low, high = arm.hit_interval
    row: dict[str, Any] = {
        "arm": arm.arm,
        "family": arm.family,
        "kind": str(arm.kind),
        "different_model": arm.different_model,
        "hits": arm.hits,
        "seeds": arm.seeds,
        "planned_seeds": arm.planned_seeds,
        "examples": _number(arm.mean_examples),
        "epochs": _number(arm.epochs),
        "final_loss": _number(arm.final_loss),
        "diverged": arm.ended.get(Outcome.DIVERGED, 0),
        "collapsed": arm.ended.get(Outcome.COLLAPSED, 0),
        "failed": arm.ended.get(Outcome.FAILED, 0),
        "edges": ", ".join(arm.edges),
        "recipe": arm.recipe.to_json() if arm.recipe is not None else None,
        "params": json.dumps(arm.params) if arm.params is not None else None,
        "resolution": _number(arm.resolution),
        "hit_low": low,
        "hit_high": high,
    }
    if arm.seeds:
        row |= {"par2": arm.par2, "ert": arm.ert}
    if arm.examples is None or not arm.measured:
        return row | {
            "verdict": str(arm.kind if arm.is_baseline else Verdict.NOT_MEASURED),
            "p": np.nan,
            "p_seconds": np.nan,
        }
    row |= _measure(arm.examples) | {"verdict": arm.examples.words}
    row |= _ratio("conditional", arm.conditional) | _ratio("rmst", arm.rmst)
    if arm.test is not None:
        row |= {"test_difference": arm.test.mean, "test_low": arm.test.low, "test_high": arm.test.high}
        row |= {"test_worse": arm.test_worse}
    if arm.throughput is None or arm.seconds is None:
        return row | {"verdict_seconds": str(Verdict.NOT_MEASURED), "p_seconds": np.nan}
    row |= _ratio("throughput", arm.throughput)
    row |= {"examples_per_second": arm.examples_per_second, "timing_pairs": arm.throughput.n}
    row["cold_start_seconds"] = arm.cold_start_seconds
    row |= _measure(arm.seconds, "_seconds") | {"verdict_seconds": arm.seconds.words}
    return row | (_ratio("cold", arm.cold) if arm.cold is not None else {})


def _measure(measure: Measure, unit: str = "") -> dict[str, Any]:
    e, (low, high) = measure.estimate, measure.simultaneous
    return {
        f"speed_up{unit}": e.ratio,
        f"low{unit}": e.low,
        f"high{unit}": e.high,
        f"simultaneous_low{unit}": low,
        f"simultaneous_high{unit}": high,
        f"se{unit}": e.se,
        f"units{unit}": e.n,
        f"p{unit}": e.p,
        f"no_interval{unit}": e.reason,
    }


def _ratio(name: str, e: Estimate | None) -> dict[str, Any]:
    return {} if e is None else {name: e.ratio, f"{name}_low": e.low, f"{name}_high": e.high}


def _number(value: float | None) -> float:
    return _NAN if value is None else value
