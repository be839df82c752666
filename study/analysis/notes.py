"""Validity notes: what a careful reader would ask about, each a small function that is silent where all is well."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

from study.analysis.arm import ArmResult
from study.analysis.comparison import Comparison
from study.analysis.findings import Findings
from study.protocol.guided import Guided
from study.protocol.history import Run
from study.protocol.plan import cut_to_fit
from study.protocol.selection import State, reasons
from study.statistics.verdicts import Verdict, smallest_n
from study.terms import BASELINE, SEARCH_BEST, Outcome, Phase

#: A grid cell as wide as this share of the examples to target is told.
COARSE = 0.06

Note = Callable[[Comparison, State], str | None]


def notes(comparison: Comparison, state: State) -> list[str]:
    """The notes, in the order of how much they matter."""
    if not comparison.arms:
        return []
    said = [note(comparison, state) for note in _BEFORE]
    said += [note(arm) for note in _OF_AN_ARM for arm in comparison.arms]
    said += [note(comparison, state) for note in _AFTER]
    return [note for note in said if note is not None]


def _unfinished(comparison: Comparison, state: State) -> str | None:
    lost = {arm: len(blocks) for arm, blocks in _lost(comparison, state).items()}
    seeds = comparison.experiment.seeds // comparison.experiment.blocks
    lacking = [
        arm.arm for arm in comparison.arms if arm.seeds < arm.planned_seeds - seeds * lost.get(arm.arm, 0)
    ]
    return f"Unfinished: {', '.join(lacking)} lack confirmation runs." if lacking else None


def _never_confirmed(comparison: Comparison, state: State) -> str | None:
    """Arms of which nothing is to come, and why."""
    several = comparison.experiment.blocks > 1
    told = []
    for arm, blocks in _lost(comparison, state).items():
        where = f" in block {', '.join(map(str, blocks))}" if several else ""
        runs = [run for block in blocks for run in state.of(arm, Phase.TUNE, block)]
        told.append(f"{arm}{where} ({reasons(runs)})")
    return f"Every tuning trial failed, so nothing is confirmed of: {'; '.join(told)}." if told else None


def _lost(comparison: Comparison, state: State) -> dict[str, list[int]]:
    """Technique -> the blocks in which every tuning trial of it failed, for those that have some."""
    blocks = range(1, comparison.experiment.blocks + 1)
    found = {arm: [b for b in blocks if state.failed(arm, b)] for arm in comparison.experiment.arms}
    return {arm: lost for arm, lost in found.items() if lost}


def _one_block(comparison: Comparison, _: State) -> str | None:
    if comparison.experiment.blocks > 1 or comparison.experiment.guided:
        return None
    return (
        "Every interval is for the tuned recipes (R = 1): the luck of tuning itself is not in it. "
        "--blocks 5 puts it in."
    )


def _by_method(comparison: Comparison, _: State) -> str | None:
    if comparison.experiment.guided:
        return None
    return (
        "Judged by the rules that this experiment was begun with (method 1): the best of K points, verdicts by "
        "simultaneous intervals without the luck of tuning. A comparison under another --name is judged by today's."
    )


def _looks(comparison: Comparison, _: State) -> str | None:
    experiment = comparison.experiment
    if not experiment.guided or not experiment.looks:
        return None
    totals = ", ".join(map(str, [*experiment.looks, experiment.seeds]))
    return f"Seeds were topped up: verdicts could be read at {totals} seeds, and these looks share the error level."


def beside_interval(findings: Findings) -> str | None:
    """Verdicts whose interval seems to say something else: a claim stands where its p is, and is told of."""
    least = 1.0 + findings.terms.margin
    found = []
    for arm in findings.techniques:
        for unit, measure in ((findings.terms.clock, arm.examples), ("seconds", arm.seconds)):
            if measure is None or not measure.decides or not measure.verdict.decided:
                continue
            low, high = measure.shown
            if low <= least if measure.verdict is Verdict.FASTER else high >= 1.0 / least:
                found.append(f"{arm.arm} in {unit}")
    if not found:
        return None
    return (
        f"The interval reaches into the margin where the verdict doesn't: {', '.join(found)}. The p decides, after "
        "Holm and over all looks; the intervals are the wider ones that hold for all arms at once."
    )


def _beside_interval(comparison: Comparison, _: State) -> str | None:
    return beside_interval(comparison)


def _widened(comparison: Comparison, state: State) -> str | None:
    experiment = comparison.experiment
    if not experiment.guided:
        return None
    found = []
    for arm in (BASELINE, *experiment.arms):
        for block in range(1, experiment.blocks + 1):
            guided = state.guided(arm, block)
            found += (
                [f"{arm} ({', '.join(guided.widened)})"]
                if isinstance(guided, Guided) and guided.widened
                else []
            )
    listed = "; ".join(dict.fromkeys(found))
    return f"Ranges widened by a decade, for the best lay on their edge: {listed}." if listed else None


def _plateau(comparison: Comparison, _: State) -> str | None:
    calibration = comparison.calibration
    if calibration is None or comparison.experiment.guided or not calibration.plateau:
        return None
    return (
        f"Target on a plateau: examples to target vary by {calibration.spread:.0%} between calibration seeds "
        f"(slope {calibration.slope:.2f} nats per doubling)."
    )


def _raised(comparison: Comparison, _: State) -> str | None:
    if comparison.calibration is None or not comparison.calibration.raised:
        return None
    if comparison.experiment.guided:
        return "More than one calibration seed missed the median target; it was raised to the second-worst seed's loss."
    return "A calibration seed missed the median target; it was raised to the worst seed's loss."


def _targets(comparison: Comparison, _: State) -> str | None:
    if len(comparison.targets) < 2 or comparison.experiment.target is not None:
        return None
    targets = ", ".join(f"{target:.2f}" for target in comparison.targets)
    return (
        f"Each block has a split of the data of its own and a target on it: {targets} nats. Learning curves and other "
        "targets are on the scale of the first."
    )


def _calibration_diverged(comparison: Comparison, _: State) -> str | None:
    if comparison.calibration is None or not comparison.calibration.diverged:
        return None
    return f"{comparison.calibration.diverged} calibration runs diverged."


def _cut_to_fit(comparison: Comparison, _: State) -> str | None:
    return " ".join(cut_to_fit(comparison.experiment, comparison.workload)) or None


def _search_topped_up(_: Comparison, state: State) -> str | None:
    """Whether the search has found a better recipe than the one that was confirmed as its best."""
    best, confirmed = state.search_winner, state.of(SEARCH_BEST, Phase.CONFIRM)
    if best is None or best.recipe is None or not confirmed:
        return None
    if confirmed[0].assignment.base == best.recipe:
        return None
    return (
        f"search-best was confirmed before the search was topped up: trial {best.number} is better by now. Under "
        "another --name it would be confirmed."
    )


def _undecided(comparison: Comparison) -> list[ArmResult]:
    return [
        arm
        for arm in comparison.techniques
        if arm.examples is not None and arm.examples.verdict is Verdict.UNDECIDED
    ]


def _no_interval(comparison: Comparison, _: State) -> str | None:
    reasons = {
        arm.arm: arm.examples.estimate.reason
        for arm in _undecided(comparison)
        if arm.examples is not None and arm.examples.estimate.reason is not None
    }
    if not reasons:
        return None
    return f"No interval: {'; '.join(sorted(set(filter(None, reasons.values()))))} ({', '.join(reasons)})."


def _too_few_seeds(comparison: Comparison, _: State) -> str | None:
    """Whether the seeds could have decided at all, and how many would."""
    open_arms = [
        (arm.examples.estimate, arm.tuning_share or 0.0) for arm in _undecided(comparison) if arm.examples
    ]
    estimates = [e for e, _ in open_arms if e.reason is None]
    if not estimates:
        return None
    sd = median([e.se * ((1.0 - share) * e.n) ** 0.5 for e, share in open_arms if e.reason is None])
    luck = median([share * e.se**2 for e, share in open_arms if e.reason is None])
    experiment = comparison.experiment
    n = smallest_n(sd, family=len(experiment.arms), margin=experiment.margin, tuning_variance=luck)
    have = int(median([e.n for e in estimates]))
    if n is None or n <= have:
        return None
    unit = "blocks" if experiment.blocks > 1 else "seeds"
    return (
        f"{have} {unit} are few for the arms left open: about {n} would bring the simultaneous interval's "
        f"half-width down to the margin of {experiment.margin:.0%}."
    )


def _never_tuned(comparison: Comparison, state: State) -> str | None:
    """Arms that miss the target and whose tuning met no point that reaches it safely: more points might."""
    experiment = comparison.experiment
    missed = []
    for arm in comparison.techniques:
        if not arm.misses:
            continue
        if experiment.guided:
            missed += [arm.arm] * (arm.examples is not None and arm.examples.verdict is Verdict.NOT_TUNED)
            continue
        winners = [state.winner(arm.arm, block) for block in range(1, experiment.blocks + 1)]
        # The winner has the fewest misses: where it has one, so has every other point.
        tuned: list[list[Run]] = [[best, *(state.finals(best) or [])] for best in winners if best is not None]
        if any(not run.hit for runs in tuned for run in runs):
            missed.append(arm.arm)
    if not missed:
        return None
    on_all = " on each of its seeds" if experiment.has_finalists else ""
    return (
        f"Tuning found no point that reaches the tuning target{on_all} for {', '.join(missed)}: with more than "
        f"K = {experiment.tune_trials} points it might, so their misses are no verdict on the technique."
    )


def _edges(comparison: Comparison, _: State) -> str | None:
    listed = "; ".join(f"{arm.arm} ({', '.join(arm.edges)})" for arm in comparison.arms if arm.edges)
    return f"Winners on an edge of their space, which a wider one might beat: {listed}." if listed else None


def _ended(outcome: Outcome, word: str) -> Note:
    def note(comparison: Comparison, _: State) -> str | None:
        listed = ", ".join(
            f"{arm.arm} {arm.ended[outcome]} of {arm.seeds}"
            for arm in comparison.arms
            if arm.ended.get(outcome)
        )
        return f"Confirmation runs that {word}: {listed}." if listed else None

    return note


def _lost_tuning(_: Comparison, state: State) -> str | None:
    lost = Counter(
        run.arm
        for run in state.runs
        if run.phase in (Phase.TUNE, Phase.GUIDED, Phase.FINAL)
        and run.outcome in (Outcome.DIVERGED, Outcome.FAILED)
    )
    if not lost:
        return None
    listed = ", ".join(f"{arm} {n}" for arm, n in lost.most_common())
    return f"Tuning trials that diverged or failed: {listed}."


def _different_models(comparison: Comparison, _: State) -> str | None:
    different = [arm.arm for arm in comparison.arms if arm.different_model]
    return f"Different model, not only different training: {', '.join(different)}." if different else None


def _noisy_timing(comparison: Comparison, _: State) -> str | None:
    noisy = [
        arm.arm
        for arm in comparison.arms
        if arm.throughput is not None and arm.throughput.high / arm.throughput.low > 1.15
    ]
    return f"Noisy timing, throughput interval wider than 15 %: {', '.join(noisy)}." if noisy else None


def _no_bf16_units(comparison: Comparison, state: State) -> str | None:
    recipe_of = comparison.experiment.base_recipe
    low = [arm.arm for arm in comparison.arms if arm.throughput and recipe_of(arm.arm).precision == "bf16"]
    without = {str(told["bf16"]) for told in (state.versions() if low else ()) if "bf16" in told}
    if not without:
        return None
    return (
        f"Seconds of {', '.join(low)}: {', '.join(without)}. The examples are those of bf16, by rounding and "
        "multiplying in fp32; the seconds say nothing about a machine that has them."
    )


def _no_likelihood(comparison: Comparison, _: State) -> str | None:
    if comparison.experiment.recipe.likelihood != "cross_entropy":
        return None
    return "Cross-entropy on values between 0 and 1 is no likelihood: nats compare recipes here, not with other papers."


def _worse_on_test(arm: ArmResult) -> str | None:
    if arm.test is None or not arm.test_worse:
        return None
    return (
        f"{arm.arm} is worse on the test split at its hit: {arm.test.mean:+.2f} nats "
        f"[{arm.test.low:+.2f}, {arm.test.high:+.2f}] against the baseline."
    )


def _coarse(arm: ArmResult) -> str | None:
    if arm.resolution is None or arm.resolution <= COARSE:
        return None
    if math.isinf(arm.resolution):
        return f"{arm.arm} reaches the target before its first evaluation: its E is an upper bound."
    return f"{arm.arm}: one step is {arm.resolution:.0%} of its examples to target; E is no finer."


_BEFORE: Sequence[Note] = (
    _unfinished,
    _never_confirmed,
    _by_method,
    _one_block,
    _looks,
    _beside_interval,
    _plateau,
    _raised,
    _targets,
    _calibration_diverged,
    _cut_to_fit,
    _search_topped_up,
    _no_interval,
    _too_few_seeds,
    _never_tuned,
    _widened,
    _edges,
    _ended(Outcome.DIVERGED, "diverged"),
    _ended(Outcome.COLLAPSED, "collapsed (KL near 0)"),
    _ended(Outcome.FAILED, "failed"),
    _lost_tuning,
)
_OF_AN_ARM: Sequence[Callable[[ArmResult], str | None]] = (_worse_on_test, _coarse)
_AFTER: Sequence[Note] = (_different_models, _noisy_timing, _no_bf16_units, _no_likelihood)
