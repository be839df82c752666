"""Judging learning curves: time to target of each arm beside a baseline, by the rules of `compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from study.analysis.arm import UNMEASURED, ArmResult, Kind, find
from study.analysis.comparison import Comparison, with_judgement
from study.analysis.curve_refusals import refuse_cut, require_baseline, require_shapes
from study.analysis.findings import Findings, Terms, beside, counted, said
from study.analysis.from_curves import FromCurves, Reached, block_labels
from study.analysis.question import Question
from study.analysis.standing import Standing
from study.curves.recorded import Curves, Ended, Recorded
from study.curves.stored import label
from study.protocol.history import Run, confirmed, joint
from study.protocol.selection import State
from study.protocol.verdicts import pair as own_pair
from study.protocol.verdicts import variance
from study.statistics.curves import resolution, targets_reached
from study.statistics.judgement import Judged, Pair, judge_family
from study.statistics.survival import censored
from study.terms import BASELINE, REFERENCE_ARMS, Outcome, Phase
from vae.errors import UserError


def analyse(curves: Curves, question: Question, name: str, standing: Standing | None = None) -> FromCurves:
    """Judge every arm of the curves against the baseline. With the `standing` of our own database that the curves were
    read from, the luck of tuning, the seconds and the looks that it knows of are in the answer.

    Raises UserError for curves that can't say it: an arm that isn't there, a run that was stopped early, no seed in
    common, fewer than three evaluations."""
    # By the method before there is no tuning variance: its curves are as those from elsewhere.
    own = standing.comparison if standing is not None and standing.experiment.guided else None
    if standing is not None:
        curves = on_one_scale(curves, standing.state)
    baseline = require_baseline(question.baseline, curves.arms)
    others = [arm for arm in curves.arms if arm != baseline]
    if not others:
        raise UserError(f"There is but one arm, {baseline}: nothing to compare it with.")
    if standing is not None and baseline != BASELINE:
        raise UserError(f"--baseline {baseline}: an experiment's arms were tuned against its own baseline.")
    if standing is None:
        require_shapes(curves)
    tau = _budget(curves, question, standing)
    of_database = None if standing is None or standing.comparison is None else standing.comparison.target
    target = _target(curves, question, baseline, tau, of_database)
    reached = {arm: _reached(curves.of(arm), target, tau, question, curves) for arm in (baseline, *others)}
    refuse_cut(reached, tau, curves)
    paired = curves.paired and not question.unpaired
    family = [arm for arm in others if own is None or arm not in REFERENCE_ARMS]
    pairs = {arm: _partners(reached[baseline], reached[arm], arm, baseline, paired) for arm in others}
    if standing is not None and own is not None:
        arms = _judged_own(standing, own, reached, question, tau)
    else:
        arms = _judged(reached, pairs, baseline, family, paired, question.margin, tau)
    guided = standing is not None and standing.experiment.guided
    return FromCurves(
        name=name,
        curves=curves,
        question=question,
        comparison=Findings(
            _terms(curves, question, name, baseline, paired, standing), curves.shown(target), arms
        ),
        tau=tau,
        baseline=baseline,
        paired=paired,
        reached=reached,
        pairs=pairs,
        of_database=None if standing is None else standing.speeds,
        tuned=guided,
    )


def on_one_scale(curves: Curves, state: State) -> Curves:
    """Every block's curves beside the first's, without what its split of the data is harder: one target for all."""
    above = {run.block: state.above_first(run.block) for run in curves}
    if not any(above.values()):
        return curves
    runs = [replace(run, value=run.value - above[run.block]) for run in curves]
    words = "Blocks have splits of the data of their own: losses and targets are on the scale of the first."
    return replace(curves, runs=runs, notes=[*curves.notes, words])


def _budget(curves: Curves, question: Question, standing: Standing | None) -> float:
    if question.censored_at is not None:
        return question.censored_at
    if standing is not None:
        return float(standing.workload.tau)
    return max(run.end for run in curves)


def _target(
    curves: Curves, question: Question, baseline: str, tau: float, of_database: float | None
) -> float:
    """The target as the curves hold it."""
    if question.target is not None:
        return curves.shown(question.target)
    if question.target_at is not None:
        healthy = [run.curve for run in curves.of(baseline) if not run.curve.diverged]
        values = np.array([curve.best(question.target_at * tau) for curve in healthy])
        values = values[np.isfinite(values)]
        if not values.size:
            first = min((float(run.clock[0]) for run in curves.of(baseline) if len(run)), default=tau)
            raise UserError(
                f"--target-at {question.target_at:g}: {baseline} has no evaluation by then; the first is at "
                f"{first / tau:.3g} of the budget."
            )
        return float(np.median(values))
    if of_database is not None:
        return of_database
    raise UserError("What is to be reached? Give --target, or --target-at as a share of the budget.")


def _reached(
    runs: Sequence[Recorded], target: float, tau: float, question: Question, curves: Curves
) -> Reached:
    E, hit = targets_reached([run.curve for run in runs], target)
    if question.censored_at is not None:
        hit = hit & (np.nan_to_num(E, nan=np.inf) <= tau)
    missed = [run for run, found in zip(runs, hit, strict=True) if not found]
    cut = [run for run in missed if run.ended is Ended.HIT and run.end < tau]
    if cut:
        run = cut[0]
        raise UserError(
            f"{run.arm}, {run.label} was stopped at a value of {curves.shown(run.curve.best()):.6g}, before the target "
            f"of {curves.shown(target):.6g} ({len(cut)} of its arm's runs): choose a target that all reach before they "
            "are stopped."
        )
    return Reached(runs, censored(E, hit, tau), hit)


def _partners(baseline: Reached, own: Reached, arm: str, name: str, paired: bool) -> tuple[Reached, Reached]:
    """The runs of both that are compared: those of the seeds in common, or all."""
    if not paired:
        return baseline, own
    known = {run.label: i for i, run in enumerate(baseline.runs)}
    mine = [i for i, run in enumerate(own.runs) if run.label in known]
    if not mine:
        raise UserError(
            f"{arm} and {name} have no seed in common ({_few(own)}; {_few(baseline)}): --unpaired compares them "
            "without pairs."
        )
    return baseline.at([known[own.runs[i].label] for i in mine]), own.at(mine)


def _few(reached: Reached) -> str:
    labels = [run.label for run in reached.runs]
    return ", ".join(labels[:3]) + (", ..." if len(labels) > 3 else "")


def _judged(
    reached: Mapping[str, Reached],
    pairs: Mapping[str, tuple[Reached, Reached]],
    baseline: str,
    family: Sequence[str],
    paired: bool,
    margin: float,
    tau: float,
) -> list[ArmResult]:
    """Curves from elsewhere: the luck of the seeds, seconds as they were recorded."""
    in_clock = [_pair(*pairs[arm], paired) for arm in family]
    in_seconds = [_in_seconds(*pairs[arm], paired) for arm in family]
    looks = [max(len(pair.seeds) for pair in in_clock)]
    judged = judge_family(in_clock, baseline_variance=0.0, looks=looks, margin=margin)
    seconds = judge_family(in_seconds, baseline_variance=0.0, looks=looks, margin=margin)
    arms = [_counted(baseline, Kind.BASELINE, reached[baseline], tau)]
    for arm, pair, one, other in zip(family, in_clock, judged, seconds, strict=True):
        result = beside(_counted(arm, Kind.TECHNIQUE, reached[arm], tau), pair, tau)
        assert one is not None
        arms.append(said(result, one[0], None if other is None else other[0]))
    return arms


def _judged_own(
    standing: Standing, own: Comparison, reached: Mapping[str, Reached], question: Question, tau: float
) -> list[ArmResult]:
    """Curves of our own database: with the luck of tuning, the looks and the throughput that it knows."""
    state = standing.state
    family = standing.experiment.arms
    found: dict[str, Pair | None] = {}
    for arm in reached:
        result = find(own.arms, arm)
        told = None if arm == BASELINE else own_pair(state, arm, Phase.CONFIRM)
        if told is None or result is None:
            continue
        a, b = joint(confirmed(state, arm, Phase.CONFIRM), confirmed(state, BASELINE, Phase.CONFIRM))
        before, after = _of_runs(reached[BASELINE], b.runs), _of_runs(reached[arm], a.runs)
        found[arm] = replace(
            told,
            baseline_examples=before.E,
            baseline_hit=before.hit,
            arm_examples=after.E,
            arm_hit=after.hit,
            throughput=result.throughput,
        )

    def judge(members: Sequence[str]) -> list[tuple[Judged, Judged | None] | None]:
        return judge_family(
            [found.get(arm) for arm in members],
            baseline_variance=variance(state, BASELINE),
            looks=[*standing.experiment.looks, standing.experiment.seeds],
            margin=question.margin,
        )

    judged = dict(zip(family, judge(family), strict=True))
    judged |= {arm: judge([arm])[0] for arm in reached if arm in REFERENCE_ARMS}
    arms = []
    for known in own.arms:
        if known.arm not in reached:  # not run yet: it counts in the family
            arms.append(known)
            continue
        # What the database says of an arm beside its curves stays; what was at its own target doesn't.
        bare = replace(known, test=None, cold=None, tuning_share=None)
        result = _counted_as(bare, reached[known.arm], tau)
        if result.mean_examples is not None:
            result = replace(
                result, epochs=result.mean_examples / (standing.workload.tau / standing.experiment.budget)
            )
        pair = found.get(known.arm)
        if known.is_baseline:
            arms.append(result)
        elif pair is None:
            arms.append(replace(result, examples=UNMEASURED))
        else:
            arms.append(with_judgement(beside(result, pair, tau), judged.get(known.arm), state))
    return arms


def _of_runs(reached: Reached, runs: Sequence[Run]) -> Reached:
    """What was read of these runs, in their order."""
    at = {run.label: i for i, run in enumerate(reached.runs)}
    seeds = [None if run.recipe is None else run.recipe.seed for run in runs]
    labels = [label(seed, run.block, run.number) for seed, run in zip(seeds, runs, strict=True)]
    return reached.at([at[of_run] for of_run in labels])


def _pair(before: Reached, after: Reached, paired: bool) -> Pair:
    return Pair(_order(after), before.E, before.hit, after.E, after.hit, block_labels(before), paired=paired)


def _order(reached: Reached) -> npt.NDArray[np.int64]:
    return np.arange(len(reached.runs))


def _in_seconds(before: Reached, after: Reached, paired: bool) -> Pair | None:
    """The same in seconds, where all runs of both have some."""
    B, A = before.seconds(), after.seconds()
    if B is None or A is None:
        return None
    return Pair(_order(after), B, before.hit, A, after.hit, block_labels(before), paired=paired)


def _counted(arm: str, kind: Kind, reached: Reached, tau: float) -> ArmResult:
    family = str(kind) if kind is Kind.BASELINE else "arm"
    empty = ArmResult(arm, family, kind, hits=0, seeds=0, planned_seeds=len(reached.runs))
    return _counted_as(empty, reached, tau)


def _counted_as(result: ArmResult, reached: Reached, tau: float) -> ArmResult:
    ended = [run.ended for run in reached.runs]
    return replace(
        counted(result, reached.E, reached.hit, tau),
        ended={
            Outcome.DIVERGED: ended.count(Ended.DIVERGED),
            Outcome.FAILED: ended.count(Ended.FAILED),
        },
        resolution=_widest(reached),
    )


def _widest(reached: Reached) -> float | None:
    """How wide, relatively, the widest cell between two evaluations at a hit is; None without a hit."""
    cells = [
        resolution(run.clock, float(E))
        for run, E, hit in zip(reached.runs, reached.E, reached.hit, strict=True)
        if hit
    ]
    return max(cells) if cells else None


def _terms(
    curves: Curves,
    question: Question,
    name: str,
    baseline: str,
    paired: bool,
    standing: Standing | None,
) -> Terms:
    if standing is not None:
        margin = f"margin {question.margin:.0%}"
        luck = "the luck of tuning included, " if standing.experiment.guided else ""
        return replace(
            Terms.of(standing.experiment, standing.workload.dimensions),
            margin=question.margin,
            guided=True,
            intervals=f"simultaneous 95 % intervals, {luck}{margin}",
            paired=paired,
        )
    return Terms(
        on=name,
        margin=question.margin,
        intervals=f"simultaneous 95 % intervals, the luck of seeds alone, margin {question.margin:.0%}",
        baseline=baseline,
        arms="arms",
        paired=paired,
        clock=curves.clock,
        value=curves.value,
        maximise=curves.maximise,
        unit="",
        way_out="An easier --target would help.",
        tuned=False,
    )
