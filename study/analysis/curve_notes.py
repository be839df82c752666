"""What a careful reader would ask about an answer from curves: small functions, silent where all is well."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from study.analysis.notes import COARSE, beside_interval
from study.statistics.verdicts import Verdict
from study.terms import Outcome

if TYPE_CHECKING:
    from study.analysis.from_curves import FromCurves  # pandas, which notes do without


def curve_notes(found: FromCurves) -> list[str]:
    """The notes, in the order of how much they matter."""
    said = [note(found) for note in _NOTES]
    return [*(note for note in said if note is not None), *found.curves.notes]


def _luck(found: FromCurves) -> str | None:
    if found.tuned:
        return None
    return (
        "Intervals hold the luck of the seeds, not that of tuning: how well each arm was tuned isn't in its curves, "
        "and two tunings of one recipe differ too."
    )


def _unpaired(found: FromCurves) -> str | None:
    if found.paired:
        return None
    return (
        "Runs aren't paired: ratios are of geometric means, their intervals Welch's on the logs, which are wider than "
        "those of pairs where seeds matter."
    )


def _left_out(found: FromCurves) -> str | None:
    if not found.paired:
        return None
    baseline = len(found.reached[found.baseline].runs)
    parts = []
    for arm, (before, after) in found.pairs.items():
        lone = len(found.reached[arm].runs) - len(after.runs)
        if lone or baseline > len(before.runs):
            parts.append(f"{arm} {lone}, and {baseline - len(before.runs)} of the baseline's")
    return (
        f"Runs without a partner of the same seed are left out of the ratio: {'; '.join(parts)}."
        if parts
        else None
    )


def _no_interval(found: FromCurves) -> str | None:
    reasons = {
        arm.arm: arm.examples.estimate.reason
        for arm in found.comparison.techniques
        if arm.examples is not None and arm.examples.known and arm.examples.estimate.reason is not None
    }
    if not reasons:
        return None
    return f"No interval: {'; '.join(sorted(set(filter(None, reasons.values()))))} ({', '.join(reasons)})."


def _target_from_runs(found: FromCurves) -> str | None:
    share = found.question.target_at
    if share is None:
        return None
    return (
        f"The target is the median of {found.baseline} at {share:.0%} of the budget, from the runs that are judged: a "
        "target that was fixed before them (--target) owes nothing to their luck."
    )


def _censored(found: FromCurves) -> str | None:
    at = found.question.censored_at
    if at is None:
        return None
    return f"Every run is judged by what it reached until {at:g} {found.curves.clock} (--censored-at)."


def _ended(outcome: Outcome, word: str) -> Callable[[FromCurves], str | None]:
    def note(found: FromCurves) -> str | None:
        listed = ", ".join(
            f"{arm.arm} {arm.ended[outcome]} of {arm.seeds}"
            for arm in found.comparison.arms
            if arm.ended.get(outcome)
        )
        return f"Runs that {word}, misses unless they had the target before: {listed}." if listed else None

    return note


def _misses(found: FromCurves) -> str | None:
    counted = [
        f"{arm.arm} {arm.hits}/{arm.seeds}"
        for arm in found.comparison.arms
        if arm.misses and arm.hits >= 0.9 * arm.seeds
    ]
    if not counted:
        return None
    return f"Misses count as {found.tau:g} {found.curves.clock}, up to one run in ten: {', '.join(counted)}."


def _lasting(found: FromCurves) -> str | None:
    """Whether a verdict hangs on the first hit: by a hit that lasts it has no ratio, or lies on the other side."""
    verdicts = {
        arm.arm: arm.examples
        for arm in found.comparison.techniques
        if arm.examples and arm.examples.verdict.decided
    }
    doubtful = []
    for row in found.sensitivities:
        measure = verdicts.get(row.arm)
        if measure is None or not row.reading.startswith("sustained"):
            continue
        is_faster = measure.verdict is Verdict.FASTER
        if math.isnan(row.estimate.ratio) or (row.estimate.ratio > 1.0) is not is_faster:
            doubtful.append(row.arm)
    if not doubtful:
        return None
    return f"The verdict hangs on the first hit: by one that lasts three evaluations it goes for {', '.join(doubtful)}."


def _at_first(found: FromCurves) -> str | None:
    listed = [
        arm.arm for arm in found.comparison.arms if arm.resolution is not None and math.isinf(arm.resolution)
    ]
    if not listed:
        return None
    return (
        f"The target is reached at the first evaluation in some run of {', '.join(listed)}: an upper bound."
    )


def _coarse(found: FromCurves) -> str | None:
    listed = [
        f"{arm.arm} {arm.resolution:.0%}"
        for arm in found.comparison.arms
        if arm.resolution is not None and COARSE < arm.resolution < math.inf
    ]
    if not listed:
        return None
    return (
        f"Evaluations are coarse: the widest cell round a hit, in {found.curves.clock} to it, is {', '.join(listed)}. "
        "Within it the time to the target is interpolated, linear in the logarithm of the clock."
    )


_NOTES: Sequence[Callable[[FromCurves], str | None]] = (
    _luck,
    _unpaired,
    _left_out,
    _no_interval,
    lambda found: beside_interval(found.comparison),
    _target_from_runs,
    _censored,
    _misses,
    _ended(Outcome.DIVERGED, "diverged"),
    _ended(Outcome.FAILED, "failed"),
    _lasting,
    _at_first,
    _coarse,
)
