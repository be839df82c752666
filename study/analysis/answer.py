"""The answer, typed: which arm is the fastest, how the family fares, whether the parts of the combined arm add up."""

from __future__ import annotations

import math
from collections import Counter
from enum import StrEnum

from study.analysis.arm import ArmResult, ArticleArm, CombinedArm, find
from study.analysis.comparison import Comparison
from study.analysis.findings import Findings
from study.statistics.verdicts import Verdict
from study.terms import BASELINE, COMBINED


def fastest(comparison: Findings, unit: str = "examples") -> ArmResult | None:
    """The fastest of the techniques that are faster, in "examples" or "seconds"; None where none is."""
    measures = {arm.arm: arm.seconds if unit == "seconds" else arm.examples for arm in comparison.techniques}
    faster = {
        arm: measure.ratio
        for arm, measure in measures.items()
        if measure is not None and measure.verdict is Verdict.FASTER and measure.known
    }
    return find(comparison.arms, max(faster, key=faster.__getitem__)) if faster else None


def verdicts(comparison: Findings) -> Counter[Verdict]:
    """How many techniques have which verdict in examples."""
    return Counter(arm.examples.verdict for arm in comparison.techniques if arm.examples is not None)


class Addition(StrEnum):
    """The combined arm's speed-up beside the product of its parts'."""

    LESS = "they gain less than that"
    MORE = "they gain more than that"
    SAME = "not distinguishable from it"
    UNKNOWN = "not enough seeds to judge that"


def addition(comparison: Comparison) -> Addition | None:
    """Whether the combined arm's parts add up; None where that wasn't estimated."""
    e = comparison.addition
    if e is None:
        return None
    if math.isnan(e.low):
        return Addition.UNKNOWN
    if e.high < 1.0:
        return Addition.LESS
    return Addition.MORE if e.low > 1.0 else Addition.SAME


def better_than_combined(comparison: Comparison) -> CombinedArm | None:
    """The fastest of the combine block's arms whose interval lies above the combined arm's; None without one."""
    combined = find(comparison.combined, COMBINED)
    if combined is None:
        return None
    high = combined.examples.shown[1]
    better = [arm for arm in comparison.combined if arm.examples.shown[0] > high]
    return max(better, key=lambda arm: arm.examples.ratio, default=None)


def against_article(comparison: Comparison) -> ArticleArm | None:
    """How much sooner the fastest arm, or else the baseline, has the article's loss; None where it isn't known."""
    best = fastest(comparison)
    arm = find(comparison.article, BASELINE if best is None else best.arm)
    return arm if arm is not None and arm.sooner is not None else None
