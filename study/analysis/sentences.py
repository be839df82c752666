"""The answer in sentences to quote: each with its figures, intervals, seeds and censoring."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from study.analysis.answer import addition, against_article, better_than_combined, fastest, verdicts
from study.analysis.arm import ArmResult, ArticleArm, find
from study.analysis.comparison import Comparison
from study.analysis.findings import Findings, nats
from study.analysis.standing import Standing
from study.analysis.words import changes, ratio, ratio_of, speed_up_of
from study.statistics.family import if_anything, reliable
from study.statistics.verdicts import Verdict
from study.terms import BASELINE, COMBINED, WITHOUT, Phase

#: A change of tenfold and more that is not ruled out: nothing worth the words is.
USEFUL = 9.0


#: What the phases' counts are called.
PHASES = {
    Phase.SEARCH: "search trials",
    Phase.TUNE: "tuning trials",
    Phase.GUIDED: "guided tuning trials",
    Phase.FINAL: "finalists' reruns",
    Phase.CALIBRATION: "calibration runs",
    Phase.CONFIRM: "confirmation runs",
    Phase.COMBINE: "runs of the combined arm and its parts",
}


def first_screen(standing: Standing) -> list[str]:
    """The sentences of the first screen."""
    comparison = standing.comparison
    if comparison is not None and comparison.target is not None:
        return sentences(comparison)
    said = []
    if comparison is not None:
        said.append(no_target(comparison) or "Nothing has been compared yet: the target is not calibrated.")
    best = standing.best_search
    if best is not None:
        changed = changes(best.recipe, standing.experiment.recipe)
        said.append(
            f"The best of {len(standing.searched)} search trials is trial {best.number}: a validation loss of "
            f"{nats(best.best_loss, standing.workload.dimensions)} ({changed})."
        )
    elif standing.experiment.search.trials:
        said.append(_no_best(standing))
    return said or ["No trial has been run yet."]


def no_target(comparison: Comparison) -> str | None:
    """Why nothing will ever be compared; None where it may."""
    return None if comparison.no_target is None else f"Nothing can be compared: {comparison.no_target}."


def _no_best(standing: Standing) -> str:
    found = standing.searched
    if not found:
        return "No search trial has ended yet."
    counted = ", ".join(f"{n} {outcome}" for outcome, n in Counter(run.outcome for run in found).items())
    return f"No search trial has completed ({counted})."


def missing(standing: Standing) -> list[str]:
    """What was planned and has not been run, and may yet be."""
    comparison = standing.comparison
    is_hopeless = comparison is not None and comparison.no_target is not None
    said = [
        f"{done} of {planned} {PHASES[Phase(phase)]} have ended."
        for phase, (done, planned) in standing.planned.items()
        if done < planned and not (is_hopeless and phase != Phase.SEARCH)
    ]
    if said and comparison is not None and comparison.target is None and not is_hopeless:
        said.append("The target is not calibrated yet, so no arm can be tuned or compared.")
    if comparison is not None and comparison.target is not None and not standing.speeds:
        said.append("No arm has been timed yet, so there is nothing in seconds.")
    if said:
        said.append("The command at the end of this page goes on where it stopped.")
    return said


def sentences(comparison: Comparison) -> list[str]:
    """Two or three sentences with figures, intervals, seeds and censoring."""
    if not comparison.measured:
        return ["Nothing has been compared yet."]
    said = [*verdict_sentences(comparison), _together(comparison), _sooner(comparison)]
    return [sentence for sentence in said if sentence is not None]


def verdict_sentences(findings: Findings) -> list[str]:
    """What is said of the family, wherever its curves come from: which arm is the fastest, and how the others fare."""
    return [_best(findings), _counted(findings)]


def _best(findings: Findings) -> str:
    terms, target, best = findings.terms, findings.target, fastest(findings)
    known = [arm for arm in findings.techniques if arm.examples is not None and arm.examples.known]
    one = terms.arms.removesuffix("s")
    if target is not None and findings.techniques and all(map(_misses, findings.techniques)):
        return f"On {terms.on} no {one} reaches {terms.level(target)} often enough for a speed-up."
    if not known or target is None:
        return f"On {terms.on} no {one} has a speed-up to report yet."
    if best is None or best.examples is None or best.compared is None:
        return (
            f"On {terms.on} no {one} is distinguishably faster than {terms.baseline} in reaching "
            f"{terms.level(target)}."
        )
    seconds = ""
    if best.seconds is not None and best.seconds.known:
        seconds = f", and {speed_up_of(best.seconds)} in seconds"
    return (
        f"On {terms.on}, {best.arm} reaches {terms.level(target)} "
        f"{speed_up_of(best.examples)} sooner in {terms.clock} than {terms.baseline}"
        f"{seconds} ({best.compared.n} {terms.seeds}, {best.compared.misses} censored)."
    )


def _misses(arm: ArmResult) -> bool:
    missed = arm.examples is not None and arm.examples.verdict.missed
    return missed and not _for_the_baseline(arm)


def _counted(findings: Findings) -> str:
    counts, terms = verdicts(findings), findings.terms
    faster, open_, slower = counts[Verdict.FASTER], counts[Verdict.UNDECIDED], counts[Verdict.SLOWER]
    pending = counts[Verdict.NOT_MEASURED]
    missed = sum(n for word, n in counts.items() if word.missed)
    unmeasured = f", {pending} {_be(pending)} not measured yet" if pending else ""
    baseline = findings.arms[0]
    is_lost = counts[Verdict.UNRELIABLE_BASELINE] or any(map(_for_the_baseline, findings.techniques))
    is_judged = any(word.judged for word in counts)
    if is_lost or not (is_judged or reliable(np.arange(baseline.seeds) < baseline.hits)):
        return (
            f"The baseline itself reaches the target on {baseline.hits} of {baseline.seeds} seeds only: nothing can be "
            f"compared with it. {terms.way_out}"
        )
    n = len(findings.techniques)
    family = f"{n} {terms.arms if n != 1 else terms.arms.removesuffix('s')}"
    if terms.guided:
        most = max((x for arm in findings.techniques if (x := _less_than(arm)) is not None), default=None)
        ruled_out = f" (if they change anything, by less than {most:.0%})" if most and most < USEFUL else ""
        return (
            f"Of {family} {faster} {_be(faster)} faster in {terms.clock}, "
            f"{slower} slower{unmeasured}, {missed} without a verdict for missing the target, and {open_} not "
            f"distinguishable from the baseline{ruled_out}: {terms.intervals}."
        )
    scope = ", for the tuned recipes" if terms.blocks == 1 else f", {terms.blocks} blocks"
    return (
        f"Of {family} {faster} {_be(faster)} faster in {terms.clock}, "
        f"{open_} not distinguishable from the baseline, {slower} slower{unmeasured}, and {missed} "
        f"{'does' if missed == 1 else 'do'} not reach the target on every seed (margin "
        f"{terms.margin:.0%}, simultaneous 95 % intervals{scope})."
    )


def _for_the_baseline(arm: ArmResult) -> bool:
    """Whether it is the baseline's misses that an arm has no verdict for, as method 1 says it."""
    measure, compared = arm.examples, arm.compared
    return (
        measure is not None
        and measure.verdict is Verdict.UNRELIABLE
        and compared is not None
        and not compared.misses
    )


def _less_than(arm: ArmResult) -> float | None:
    """By how much an arm that isn't distinguishable changes the examples at most, as a share; None for others."""
    measure = arm.examples
    if measure is None or measure.verdict is not Verdict.UNDECIDED or math.isnan(measure.simultaneous[0]):
        return None
    return if_anything(*measure.simultaneous)


def _together(comparison: Comparison) -> str | None:
    """Whether the combined arm's parts add up, and whether one of them is better left out."""
    combined, e, judged = find(comparison.combined, COMBINED), comparison.addition, addition(comparison)
    if combined is None or not combined.examples.known or e is None or judged is None:
        return None
    parts = [arm.arm for arm in comparison.combined if not arm.arm.startswith(COMBINED)]
    said = (
        f"Together {', '.join(parts[:-1])} and {parts[-1]} are {speed_up_of(combined.examples)} as fast in "
        f"examples ({combined.seeds} fresh seeds, {combined.seeds - combined.hits} censored), "
        f"{ratio_of(e)} of the product of their own speed-ups: {judged}"
    )
    better = better_than_combined(comparison)
    if better is not None:
        left_out = better.arm.removeprefix(WITHOUT)
        how = "Without" if left_out != better.arm else "Alone"
        said += f". {how} {left_out} it is {speed_up_of(better.examples)}"
    return f"{said}."


def _sooner(comparison: Comparison) -> str | None:
    """How much sooner the best arm has the article's loss; the baseline where no arm stands out."""
    arm = against_article(comparison)
    if arm is None or arm.sooner is None:
        return None
    e, seconds = arm.sooner, arm.sooner_seconds
    time = "" if seconds is None or math.isnan(seconds) else f" and 1/{seconds:.1f} of the time"
    interval = "" if math.isnan(e.low) else f" [1/{e.low:.1f}, 1/{e.high:.1f}]"
    most = "at most " if arm.is_floor else ""
    floor = f"; {arm.first} had it at the first evaluation" if arm.is_floor else ""
    who = "the tuned baseline" if arm.arm == BASELINE else arm.arm
    return (
        f"The loss that the article's recipe has after {epochs(comparison.experiment.budget)} ({arm.loss:.2f} "
        f"nats) is reached by {who} in {most}1/{e.ratio:.1f}{interval} of the examples{time} "
        f"({arm.seeds} seeds, 0 censored{floor})."
    )


def sooner_words(arm: ArticleArm) -> str:
    """How much sooner an arm has the article's loss; "at least" where some seed had it at its first evaluation."""
    if arm.sooner is None or math.isnan(arm.sooner.ratio):
        return ratio_of(arm.sooner)
    e = arm.sooner
    if not arm.is_floor:
        return ratio_of(e)
    return f"at least {ratio(e.ratio, e.low, e.high).removesuffix(' [no interval]')}"


def epochs(budget: float) -> str:
    """ "1 epoch", "8 epochs"."""
    return f"{budget:g} epoch{'' if budget == 1 else 's'}"


def _be(n: int) -> str:
    return "is" if n == 1 else "are"
