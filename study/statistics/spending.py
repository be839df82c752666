"""The error level of a stream of proposals, each judged when it comes and not knowing how many will follow."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.special import zeta

#: The chance that any proposal of the whole stream, however long, is wrongly let through.
ALPHA = 0.05
#: The shares gamma_i = i ** -DECAY / zeta(DECAY) fall slowly and sum to 1.
DECAY = 1.6
_SUM = float(zeta(DECAY))


def next_level(passed: Sequence[bool], alpha: float = ALPHA) -> float:
    """The level of the next proposal, given whether each one before it was let through.

    The online fallback procedure (Tian & Ramdas 2021, "Online control of the familywise error rate", Stat. Methods
    Med. Res. 30):
    alpha_i = alpha gamma_i + R_(i-1) alpha_(i-1): every proposal costs its share, and one that is let through hands its
    level on. The familywise error rate is at most alpha whatever the dependence between the p-values."""
    level, before = 0.0, False
    for i, now in enumerate([*passed, False], start=1):
        level = alpha * i**-DECAY / _SUM + (level if before else 0.0)
        before = now
    return level
