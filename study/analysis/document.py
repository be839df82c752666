"""The answer for machines: one documented, versioned JSON document; its schema is `schema.json` beside this file.

A number that isn't there is null, never NaN. Within a version fields are only added.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, RootModel

from study.analysis.arm import ArmResult, sorted_arms
from study.analysis.arm import Measure as Measured
from study.analysis.curve_notes import curve_notes
from study.analysis.findings import Findings, Terms, bits
from study.analysis.notes import notes
from study.analysis.sentences import first_screen, verdict_sentences
from study.analysis.standing import Standing
from study.curves.recorded import described
from study.store.url import shown

if TYPE_CHECKING:  # who makes a document of these has loaded them: pandas, scipy.stats
    from study.analysis.from_curves import FromCurves
    from study.analysis.replayed import Replayed
    from study.replay.score import Score

SCHEMA = Path(__file__).with_name("schema.json")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


#: A number, or null where there is none.
Number = Annotated[float | None, BeforeValidator(_finite)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Provenance(_Part):
    """What wrote the document, and from what."""

    program: str = "vae-study"
    version: str
    sources: list[str]
    """Where it was read from, without a password."""
    versions: list[dict[str, Any]] = []
    """What the trials recorded of their libraries and machines, each once."""


class Workload(_Part):
    """What all arms share."""

    data: str
    clock: str
    """What is counted: examples, steps, epochs, ..."""
    value: str
    unit: str
    """The value's; "" where it isn't known."""
    higher_is_better: bool
    budget: Number
    """On the clock: what a miss counts as."""
    margin: float
    """A ratio within this of 1 is no verdict."""
    paired: bool


class Measure(_Part):
    """An arm beside the baseline: a speed-up above 1 is faster."""

    speed_up: Number
    low: Number
    """Of its own 95 % interval."""
    high: Number
    simultaneous_low: Number
    """Of the interval over the whole family, which decides."""
    simultaneous_high: Number
    standard_error: Number
    """Of ln(speed_up)."""
    units: int
    p_adjusted: Number
    verdict: str
    no_interval: str | None
    """Why there is none."""


class Arm(_Part):
    """One arm."""

    arm: str
    family: str
    kind: Literal["baseline", "technique", "reference"]
    hits: int
    """Seeds that reach the target."""
    seeds: int
    clock_to_target: Number
    """Mean over seeds, misses at the budget."""
    final_loss: Number = None
    """Mean over seeds at the end of the runs, in the workload's unit."""
    final_bits_per_dimension: Number = None
    """The same; null where a loss is not the length of a code."""
    on_clock: Measure | None
    """None for the baseline."""
    in_seconds: Measure | None


class Comparison(_Part):
    """What show, run, search, compare and analyse say; no arms where nothing is compared."""

    schema_version: Literal[1] = 1
    kind: Literal["comparison"] = "comparison"
    name: str
    workload: Workload
    target: Number
    """The value to reach; null before it is calibrated."""
    target_bits_per_dimension: Number = None
    """The same; null where a loss is not the length of a code."""
    arms: list[Arm]
    """The baseline first, then by speed-up."""
    sentences: list[str]
    notes: list[str]
    """What to mind about it, the weightiest first."""
    provenance: Provenance


class Policy(_Part):
    """One way of stopping early with some number of simulated workers."""

    policy: str
    looks: str
    use: str
    workers: int
    share: float
    """Of all examples (steps, epochs), what was used."""
    seconds_share: float
    makespan: float
    regret: Number
    """Median over orders; on the clock for capping; null where nothing was found."""
    regret_p90: Number
    regret_p90_low: Number
    regret_p90_high: Number
    best_cut: float
    """Share of orders in which the best run was ended early and what was found is worse."""
    best_cut_low: float
    best_cut_high: float


class Look(_Part):
    """How well an early look foretells the end."""

    share: float
    clock: float
    rank_correlation: Number
    best_rank: int


class Replay(_Part):
    """What replay says."""

    schema_version: Literal[1] = 1
    kind: Literal["replay"] = "replay"
    name: str
    clock: str
    runs: int
    orders: int
    seed: int
    best: Number
    median: Number
    recommended: str
    """A policy, for the first number of workers."""
    policies: list[Policy]
    looks: list[Look]
    sentences: list[str]
    notes: list[str]
    provenance: Provenance


class Experiments(_Part):
    """What show says of a database with several experiments, or none."""

    schema_version: Literal[1] = 1
    kind: Literal["experiments"] = "experiments"
    names: list[str]
    provenance: Provenance


class Document(RootModel[Annotated[Comparison | Replay | Experiments, Field(discriminator="kind")]]):
    """Any of them, told apart by `kind`."""


def of_standing(standing: Standing) -> Comparison:
    """The document of an experiment of ours."""
    comparison, experiment = standing.comparison, standing.experiment
    terms = Terms.of(experiment, standing.workload.dimensions)
    target = None if comparison is None else comparison.target
    return Comparison(
        name=standing.name,
        workload=_workload(terms, standing.workload.tau),
        target=target,
        target_bits_per_dimension=bits(target, terms.dimensions),
        arms=[] if comparison is None else _arms(comparison),
        sentences=first_screen(standing),
        notes=[] if comparison is None else list(notes(comparison, standing.state)),
        provenance=Provenance(
            version=_version(), sources=[shown(standing.store.url)], versions=standing.state.versions()
        ),
    )


def of_curves(found: FromCurves) -> Comparison:
    """The document of an answer from curves."""
    return Comparison(
        name=found.name,
        workload=_workload(found.comparison.terms, found.tau),
        target=found.comparison.target,
        target_bits_per_dimension=bits(found.comparison.target, found.comparison.terms.dimensions),
        arms=_arms(found.comparison),
        sentences=list(verdict_sentences(found.comparison)),
        notes=list(curve_notes(found)),
        provenance=Provenance(version=_version(), sources=described(found.curves)),
    )


def of_replay(found: Replayed) -> Replay:
    """The document of a replay."""
    from study.analysis.replayed import notes as replay_notes
    from study.analysis.replayed import sentences as replay_sentences

    tapes = found.tapes
    return Replay(
        name=found.recording.name,
        clock=tapes.clock,
        runs=len(tapes.runs),
        orders=found.chosen.orders,
        seed=found.settings.seed,
        best=tapes.shown(float(tapes.finals[tapes.best])),
        median=tapes.shown(tapes.median),
        recommended=found.chosen.policy.name,
        policies=[_policy(s) for s in found.scores],
        looks=[
            Look(share=e.share, clock=e.clock, rank_correlation=e.rank_correlation, best_rank=e.best_rank)
            for e in found.looks
        ],
        sentences=replay_sentences(found),
        notes=replay_notes(found),
        provenance=Provenance(version=_version(), sources=described(found.recording.curves)),
    )


def of_names(names: Sequence[str], url: str) -> Experiments:
    """The document of a database's experiments."""
    return Experiments(names=list(names), provenance=Provenance(version=_version(), sources=[shown(url)]))


def schema() -> str:
    """The JSON Schema of a document, as `schema.json` has it."""
    return json.dumps(Document.model_json_schema(mode="serialization"), indent=1, sort_keys=True) + "\n"


def _workload(terms: Terms, budget: float) -> Workload:
    return Workload(
        data=terms.on,
        clock=terms.clock,
        value=terms.value,
        unit=terms.unit,
        higher_is_better=terms.maximise,
        budget=float(budget),
        margin=terms.margin,
        paired=terms.paired,
    )


def _arms(findings: Findings) -> list[Arm]:
    return [_arm(arm, findings.terms.dimensions) for arm in sorted_arms(findings.arms)]


def _arm(arm: ArmResult, dimensions: int | None) -> Arm:
    return Arm(
        arm=arm.arm,
        family=arm.family,
        kind=arm.kind.value,
        hits=arm.hits,
        seeds=arm.seeds,
        clock_to_target=arm.mean_examples,
        final_loss=arm.final_loss,
        final_bits_per_dimension=bits(arm.final_loss, dimensions),
        on_clock=_measure(arm.examples),
        in_seconds=_measure(arm.seconds),
    )


def _measure(measure: Measured | None) -> Measure | None:
    if measure is None:
        return None
    e, (low, high) = measure.estimate, measure.simultaneous
    return Measure(
        speed_up=e.ratio,
        low=e.low,
        high=e.high,
        simultaneous_low=low,
        simultaneous_high=high,
        standard_error=e.se,
        units=e.n,
        p_adjusted=measure.p_adjusted,
        verdict=str(measure.verdict),
        no_interval=e.reason,
    )


def _policy(s: Score) -> Policy:
    return Policy(
        policy=s.policy.name,
        looks=str(s.policy.kind),
        use=s.policy.use,
        workers=s.workers,
        share=s.share,
        seconds_share=s.seconds_share,
        makespan=s.makespan,
        regret=s.regret,
        regret_p90=s.regret_p90,
        regret_p90_low=s.regret_p90_interval[0],
        regret_p90_high=s.regret_p90_interval[1],
        best_cut=s.best_cut,
        best_cut_low=s.best_cut_interval[0],
        best_cut_high=s.best_cut_interval[1],
    )


def _version() -> str:
    try:
        return version("vae-study")
    except PackageNotFoundError:  # run from a folder, not installed
        return ""
