"""How often a protocol errs where nothing is there: verdicts on families of arms that are the baseline again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from study.statistics.verdicts import Rate, Verdict, rate


@dataclass(frozen=True)
class NullShares:
    """Shares over families of null arms. The unit of a family-wise share is a family: its arms share a baseline and
    its confirmation seeds, so shares over arms have an interval that is a little too narrow."""

    families: Rate
    """Families with at least one false verdict, of all."""
    families_judged: Rate
    """The same, of those in which any arm was judged."""
    arms: Rate
    """Arms with a false verdict, of all."""
    arms_judged: Rate
    """The same, of those that were judged."""
    unjudged: Rate
    """Arms without a verdict (unreliable, not tuned, never there), of all."""


def null_shares(families: Sequence[Sequence[Verdict]], level: float = 0.95) -> NullShares:
    """Shares of what was said of null arms, one sequence a family; each FASTER or SLOWER is false."""
    arms = [word for family in families for word in family]
    false = sum(word.decided for word in arms)
    judged = sum(word.judged for word in arms)
    wrong = sum(any(word.decided for word in family) for family in families)
    return NullShares(
        families=rate(wrong, len(families), level),
        families_judged=rate(wrong, sum(any(word.judged for word in family) for family in families), level),
        arms=rate(false, len(arms), level),
        arms_judged=rate(false, judged, level),
        unjudged=rate(len(arms) - judged, len(arms), level),
    )
