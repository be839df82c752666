"""From what has been run to the estimates: every arm beside the baseline, the combined arm, the article's recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from study.analysis.arm import (
    UNMEASURED,
    ArmResult,
    ArticleArm,
    CombinedArm,
    Kind,
    Measure,
    family_of,
    find,
    measured,
)
from study.analysis.findings import Findings, Terms, as_measure, beside, counted, said
from study.design.experiment import Experiment
from study.design.workload import Workload
from study.protocol.guided import Guided
from study.protocol.history import Confirmed, Run, confirmed, joint
from study.protocol.selection import State
from study.protocol.verdicts import Said, alone, combined_family, variance
from study.protocol.verdicts import family as family_verdicts
from study.statistics.calibration import Calibration
from study.statistics.curves import Array, resolution, targets_reached
from study.statistics.family import reliable, with_tuning
from study.statistics.judgement import Pair
from study.statistics.speed_up import (
    Estimate,
    combine_check,
    paired_difference,
    speed_up,
    throughput_factor,
    units,
    with_cold_start,
    with_throughput,
)
from study.statistics.verdicts import Hits, holm, unreliable_hits, verdict
from study.store.records import Timing
from study.terms import ARTICLE, BASELINE, COMBINED, REFERENCE_ARMS, Outcome, Phase


@dataclass(frozen=True)
class Comparison(Findings):
    """All that one experiment's comparison says now, in figures."""

    experiment: Experiment
    workload: Workload
    targets: Sequence[float]
    """Of each block with a split of the data of its own, as far as they are known."""
    calibration: Calibration | None
    no_target: str | None
    """Why there will never be a target; None where there is one or may yet be."""
    combined: Sequence[CombinedArm]
    """The combine block's arms, a family of its own; empty without it."""
    addition: Estimate | None
    """Speed-up of the combined arm over the product of its parts."""
    article: Sequence[ArticleArm]
    """How much sooner each arm has the article's loss."""
    savings: dict[str, float]
    """Shares of training examples saved: `capping` in tuning, `pruning` and patience in search."""


def compare(state: State, timings: Sequence[Timing]) -> Comparison:
    """Estimate every arm of an experiment against its baseline, METHOD step 5, from what has been run."""
    state.curves([run for run in state.runs if run.phase == Phase.CONFIRM and run.outcome is not None])
    arms = _arms(state, timings)
    combined, addition = _combined(state)
    return Comparison(
        terms=Terms.of(state.experiment, state.workload.dimensions),
        experiment=state.experiment,
        workload=state.workload,
        target=state.target,
        targets=[t for b in state.experiment.split_blocks() if (t := state.target_in(b)) is not None],
        calibration=state.calibration,
        no_target=state.no_target,
        arms=arms,
        combined=combined,
        addition=addition,
        article=_article(state, arms),
        savings=_savings(state),
    )


def _arms(state: State, timings: Sequence[Timing]) -> list[ArmResult]:
    experiment = state.experiment
    if not experiment.arms:
        return []
    baseline = confirmed(state, BASELINE, Phase.CONFIRM)
    family = len(experiment.arms)
    techniques = [
        _result(state, arm, confirmed(state, arm, Phase.CONFIRM), baseline, timings, family)
        for arm in experiment.arms
    ]
    if experiment.guided:
        techniques = _judged(state, techniques)
    outside = {arm: confirmed(state, arm, Phase.CONFIRM) for arm in REFERENCE_ARMS}
    references = [
        _result(state, arm, runs, baseline, timings, 1) for arm, runs in outside.items() if runs.runs
    ]
    if experiment.guided:
        references = [with_judgement(arm, alone(state, arm.arm, arm.throughput), state) for arm in references]
    return [
        _result(state, BASELINE, baseline, baseline, timings, family),
        *(techniques if experiment.guided else _with_holm(techniques)),
        *references,
    ]


def _judged(state: State, techniques: Sequence[ArmResult]) -> list[ArmResult]:
    """By method 2 what is said of the family comes from one place; of an arm without finished seeds it is nothing."""
    throughput = {arm.arm: arm.throughput for arm in techniques if arm.throughput is not None}
    judged = family_verdicts(state, throughput)
    return [with_judgement(arm, judged[arm.arm], state) for arm in techniques]


def with_judgement(arm: ArmResult, judged: Said | None, state: State) -> ArmResult:
    if judged is None:
        return replace(arm, examples=UNMEASURED)
    examples, seconds = judged
    of_arm, of_baseline = variance(state, arm.arm), variance(state, BASELINE)
    cold = arm.cold
    if cold is not None and examples.estimate.reason is None:
        (cold,) = with_tuning([cold], of_baseline, [of_arm])
    return replace(
        said(arm, examples, seconds),
        cold=cold,
        tuning_share=None
        if examples.estimate.reason is not None or state.experiment.blocks > 1
        else (of_arm + of_baseline) / examples.estimate.se**2,
    )


def _with_holm(family: list[ArmResult]) -> list[ArmResult]:
    """The family's arms with their p-values adjusted for one another."""
    examples = _adjusted([arm.examples for arm in family])
    seconds = _adjusted([arm.seconds for arm in family])
    return [replace(arm, examples=e, seconds=s) for arm, e, s in zip(family, examples, seconds, strict=True)]


def _adjusted(family: Sequence[Measure | None]) -> list[Measure | None]:
    adjusted = holm([None if measure is None else measure.estimate.p for measure in family])
    return [
        measure and replace(measure, p_adjusted=None if math.isnan(p) else float(p))
        for measure, p in zip(family, adjusted, strict=True)
    ]


def _result(
    state: State, arm: str, own: Confirmed, baseline: Confirmed, timings: Sequence[Timing], family: int
) -> ArmResult:
    """One arm: counts, speed-ups with intervals and verdicts, and what they rest on."""
    experiment, tau = state.experiment, state.workload.tau
    technique = experiment.technique(arm)
    kind = Kind.BASELINE if arm == BASELINE else Kind.TECHNIQUE if technique else Kind.REFERENCE
    outcomes = [run.outcome for run in own.runs]
    # Where runs end at the target those that go on to tau are a loss's only sample that luck didn't choose.
    losses = [run.valid_loss for run in own.runs if run.index < experiment.run_to_tau]
    result = ArmResult(
        arm=arm,
        family=family_of(experiment, arm),
        kind=kind,
        hits=0,
        seeds=0,
        planned_seeds=experiment.reference_seeds if kind is Kind.REFERENCE else experiment.seeds,
        different_model=bool(technique and technique.different_model),
        final_loss=float(np.nanmean(losses)) if any(map(math.isfinite, losses)) else None,
        best_run=_best(own.runs),
        ended={bad: outcomes.count(bad) for bad in (Outcome.DIVERGED, Outcome.COLLAPSED, Outcome.FAILED)},
        edges=_edges(state, arm),
        recipe=own.runs[0].recipe if own.runs else None,
        params=own.runs[0].params if own.runs else None,
        resolution=_resolution(state, own),
    )
    result = counted(result, own.E, own.hit, tau)
    if result.mean_examples is not None:
        result = replace(result, epochs=result.mean_examples / (tau / experiment.budget))
    if arm == BASELINE:
        return result
    return _beside(result, state, own, baseline, [timing for timing in timings if timing.arm == arm], family)


def _beside(
    result: ArmResult,
    state: State,
    own: Confirmed,
    baseline: Confirmed,
    timings: Sequence[Timing],
    family: int,
) -> ArmResult:
    """The arm's result with all that sets it beside the baseline, on the seeds that both have finished."""
    a, b = joint(own, baseline)
    if not a.runs:
        return replace(result, examples=UNMEASURED)
    margin, tau = state.experiment.margin, float(state.workload.tau)
    # The baseline's blocks: a reference arm has one recipe for all seeds, and is paired with each block.
    at = b.blocks if state.experiment.blocks > 1 else None
    unreliable = unreliable_hits(a.hit, b.hit)
    censored = unreliable is not None

    def measure(e: Estimate) -> Measure:
        word = verdict(e, a.hit, b.hit, family=family, margin=margin)
        return measured(e, family, word, unreliable, censored=censored)

    E = speed_up(units(b.E, at), units(a.E, at))
    result = replace(
        beside(result, Pair(np.array(a.index), b.E, b.hit, a.E, a.hit, at), tau),
        examples=measure(E),
        seconds=UNMEASURED,
        test=paired_difference(b.test, a.test),
    )
    if not timings:
        return result
    own_speed = np.array([timing.examples_per_second for timing in timings])
    base_speed = np.array([timing.baseline_examples_per_second for timing in timings])
    r = throughput_factor(own_speed, base_speed)
    cold_starts = [timing.cold_start_seconds for timing in timings if timing.cold_start_seconds is not None]
    cold_start = float(np.median(cold_starts)) if cold_starts else math.nan
    cold = None
    if not censored:
        cold = with_cold_start(units(b.E, at), units(a.E, at), base_speed, own_speed, 0.0, cold_start)
    return replace(
        result,
        seconds=measure(with_throughput(E, r.theta, r.se, r.df)),
        throughput=r,
        examples_per_second=float(np.median(own_speed)),
        cold_start_seconds=cold_start,
        cold=cold,
    )


def _best(runs: Sequence[Run]) -> Run | None:
    """The run with the lowest loss, the first of equals."""
    return min(
        (run for run in runs if math.isfinite(run.best_loss)), key=lambda run: run.best_loss, default=None
    )


def _resolution(state: State, own: Confirmed) -> float | None:
    """How wide, relatively, the grid cell of the arm's hit is: 0.03, or one step where that is longer."""
    hits = [(run, E) for run, E, hit in zip(own.runs, own.E, own.hit, strict=True) if hit]
    if not hits:
        return None
    (curve,) = state.curves([hits[0][0]])
    return resolution(curve.examples, float(hits[0][1]))


def _edges(state: State, arm: str) -> tuple[str, ...]:
    """Tuned fields whose winning value lies at an end of its range: "lr high" and the like."""
    experiment = state.experiment
    technique = experiment.technique(arm)
    found: list[str] = []
    if arm != BASELINE and technique is None:
        return ()
    shared, own = experiment.spaces(arm, state.workload)
    for block in range(1, experiment.blocks + 1):
        if experiment.guided:
            guided = state.guided(arm, block)
            found += guided.edges if isinstance(guided, Guided) else ()
            continue
        best = state.winner(arm, block)
        for name, dimension in (shared | own).items():
            edge = dimension.edge(best.params[name]) if best is not None and name in best.params else None
            if edge:
                found.append(f"{name} {edge}")
    return tuple(dict.fromkeys(found))


def _combined(state: State) -> tuple[list[CombinedArm], Estimate | None]:
    """Step 6 from the combine block alone: each arm's speed-up, and whether the parts add up."""
    experiment = state.experiment
    names = list(dict.fromkeys(run.arm for run in state.runs if run.phase == Phase.COMBINE))
    if COMBINED not in names:
        return [], None
    runs = {arm: confirmed(state, arm, Phase.COMBINE) for arm in names}
    shared = sorted(set.intersection(*(set(run.index) for run in runs.values())))
    if not shared:
        return [], None
    at = {arm: [run.index.index(i) for i in shared] for arm, run in runs.items()}
    E = {arm: runs[arm].E[at[arm]] for arm in names}
    hit = {arm: runs[arm].hit[at[arm]] for arm in names}
    singles = [arm for arm in names if arm in experiment.arms]
    if experiment.guided:
        return _combined_guided(state, names, singles, E, hit)
    family = len(names) - 1
    measures = []
    members = [arm for arm in names if arm != BASELINE]
    for arm in members:
        e = speed_up(E[BASELINE], E[arm])
        word = verdict(e, hit[arm], hit[BASELINE], family=family, margin=experiment.margin)
        unreliable = unreliable_hits(hit[arm], hit[BASELINE])
        measures.append(measured(e, family, word, unreliable, censored=unreliable is not None))
    arms = [
        CombinedArm(arm, int(hit[arm].sum()), len(shared), measure)
        for arm, measure in zip(members, _adjusted(measures), strict=True)
        if measure is not None
    ]
    if not all(hit[arm].all() for arm in (BASELINE, COMBINED, *singles)):
        return arms, None
    return arms, combine_check(E[BASELINE], [E[arm] for arm in singles], E[COMBINED])


def _combined_guided(
    state: State,
    names: Sequence[str],
    singles: Sequence[str],
    E: Mapping[str, Array],
    hit: Mapping[str, npt.NDArray[np.bool_]],
) -> tuple[list[CombinedArm], Estimate | None]:
    members = [arm for arm in names if arm != BASELINE]
    arms = []
    for arm, judged in combined_family(state, members).items():
        if judged is not None:
            k, n = int(hit[arm].sum()), len(hit[arm])
            arms.append(CombinedArm(arm, k, n, as_measure(judged[0], Hits(k, n))))
    if not all(reliable(hit[arm]) for arm in (BASELINE, COMBINED, *singles)):
        return arms, None
    check = combine_check(E[BASELINE], [E[arm] for arm in singles], E[COMBINED])
    # The baseline stands in the contrast once less than there are singles, and so does its luck.
    luck = [state.tuning_variance(arm, 1) for arm in (COMBINED, *singles)]
    (check,) = with_tuning([check], (len(singles) - 1) ** 2 * state.tuning_variance(BASELINE, 1), [sum(luck)])
    return arms, check


def _article(state: State, arms: Sequence[ArmResult]) -> list[ArticleArm]:
    """Per arm, examples to the loss that the article's recipe has at tau, and how much sooner that is.

    The target is the article runs' median loss at tau, taken as known: its own examples are tau. Empty where one
    was stopped at the target, for then its loss at tau isn't known; where all missed it, every other curve goes
    on at least to the article's loss or to tau."""
    experiment, tau = state.experiment, state.workload.tau
    to_tau = experiment.run_to_tau or experiment.seeds
    article = [run for run in state.of(ARTICLE, Phase.CONFIRM) if run.index < to_tau]
    runs = [run for run in article if run.outcome == Outcome.COMPLETED]
    if not runs or any(run.outcome == Outcome.HIT for run in article):
        return []
    loss = float(np.median([run.valid_loss - state.above_first(run.block) for run in runs]))
    article_speed = _speed(find(arms, ARTICLE))
    found = []
    for result in arms:
        own = [run for run in state.of(result.arm, Phase.CONFIRM) if run.outcome is not None]
        target = state.target
        if target is not None and loss < target:
            own = [run for run in own if run.index < to_tau]
        if not own or result.arm == ARTICLE:
            continue
        curves = state.comparable(own)
        E, hit = targets_reached(curves, loss)
        row = ArticleArm(result.arm, loss, int(hit.sum()), len(own))
        if hit.all():
            tuned = experiment.blocks > 1 and result.arm not in REFERENCE_ARMS
            at = np.array([run.block for run in own]) if tuned else None
            sooner = speed_up(units(np.full(len(E), float(tau)), at), units(E, at))
            if experiment.guided and not tuned:
                (sooner,) = with_tuning([sooner], 0.0, [state.tuning_variance(result.arm, 1)])
            row = replace(
                row,
                first=sum(e <= curve.examples[0] for e, curve in zip(E, curves, strict=True)),
                mean_examples=float(E.mean()),
                sooner=sooner,
                sooner_seconds=sooner.ratio * _speed(result) / article_speed,
            )
        found.append(row)
    return found


def _speed(arm: ArmResult | None) -> float:
    """Throughput of an arm over the baseline; 1 for the baseline, NaN where it wasn't timed."""
    if arm is not None and arm.is_baseline:
        return 1.0
    return float("nan") if arm is None or arm.throughput is None else arm.throughput.ratio


def _savings(state: State) -> dict[str, float]:
    savings = {}
    ended = [run for run in state.runs if could_be_stopped(run)]
    capped = [run for run in ended if run.assignment.capped]
    searched = [run for run in ended if run.phase == Phase.SEARCH]
    for key, runs in (("capping", capped), ("pruning", searched)):
        if runs:
            savings[key] = 1.0 - share_used(state, runs)
    return savings


def could_be_stopped(run: Run) -> bool:
    """Whether a run has ended and a rule could have ended it: what broke down by itself spared nobody anything."""
    return run.outcome is not None and run.outcome not in (Outcome.DIVERGED, Outcome.FAILED)


def share_used(state: State, runs: Sequence[Run]) -> float:
    """Which share of the examples that these runs would have taken to tau they took."""
    spent = float(np.nansum([run.examples for run in runs]))
    return min(1.0, spent / (state.workload.tau * len(runs)))
