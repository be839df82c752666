"""What is looked at, and what one finding says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from study.store.store import Store

#: Names listed in one finding.
_LISTED = 3


class Check(StrEnum):
    """What is looked at, in this order."""

    INTEGRITY = "integrity"
    TABLES = "tables"
    EXPERIMENTS = "experiments"
    TRIALS = "trials"
    CURVES = "curves"
    ARTIFACTS = "artifacts"
    LEFTOVERS = "leftovers"
    VERSIONS = "versions"
    CLOCKS = "clocks"


@dataclass(frozen=True)
class Finding:
    """One thing that was found. `mend` repairs it; None: `way_out` says what a person can do."""

    check: Check
    what: str
    way_out: str
    mend: Callable[[Store], object] | None = None
    is_note: bool = False
    """Worth knowing, and nothing is wrong."""


def listed(words: Iterable[str]) -> str:
    """The first few of them, and how many more there are."""
    counted = list(Counter(words))
    more = len(counted) - _LISTED
    return "; ".join(counted[:_LISTED]) + (f"; and {more} more" if more > 0 else "")
