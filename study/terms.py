"""The study's words, one name at every stop: phases, outcomes, arms with a role, and the names of Optuna's studies.

Imports nothing of ours, so that every package can say them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

BASELINE = "baseline"
SEARCH = "search"
"""The arm of the joint search, in which Optuna samples everything together."""
COMBINED = "combined"
"""The best technique of each slot together."""
WITHOUT = "combined-without-"
"""What the name of a leave-one-out of the combined arm begins with."""
ARTICLE = "article"
SEARCH_BEST = "search-best"
REFERENCE_ARMS = (ARTICLE, SEARCH_BEST)
"""Arms outside the family, untuned here: the source article's recipe and the joint search's best."""

STORAGE_VARIABLE = "VAE_STUDY_STORAGE"
"""Environment: the database's URL. Unlike a command line it can't be read by other users of the machine."""


class Phase(StrEnum):
    """What a trial is run for."""

    SEARCH = "search"
    TUNE = "tune"
    GUIDED = "guided"
    FINAL = "final"
    CALIBRATION = "calibration"
    CONFIRM = "confirm"
    COMBINE = "combine"


class Outcome(StrEnum):
    """How a trial ended."""

    COMPLETED = "completed"
    HIT = "hit"
    STOPPED = "stopped"
    MEASURED = "measured"
    PRUNED = "pruned"
    CAPPED = "capped"
    DIVERGED = "diverged"
    COLLAPSED = "collapsed"
    FAILED = "failed"

    @property
    def sentence(self) -> str:
        """What it means, for a reader."""
        return _SENTENCES[self]

    @property
    def ran_to_tau(self) -> bool:
        """Whether the trial's last loss is its loss at tau."""
        return self in (Outcome.COMPLETED, Outcome.COLLAPSED)


_SENTENCES = {
    Outcome.COMPLETED: "trained to its budget",
    Outcome.HIT: "stopped at the target",
    Outcome.STOPPED: "stopped by patience",
    Outcome.MEASURED: "trained to the examples at which its guided round is compared",
    Outcome.PRUNED: "cut by the pruner",
    Outcome.CAPPED: "cut by capping: it could not win its arm any more",
    Outcome.DIVERGED: "the loss became infinite or not a number",
    Outcome.COLLAPSED: "trained to its budget with a KL near 0: the latents say nothing",
    Outcome.FAILED: "ended by an error",
}


@dataclass(frozen=True)
class StudyName:
    """The name of an Optuna study: `NAME/ARM`, or `NAME/ARM/BLOCK` from the second block on."""

    experiment: str
    arm: str
    block: int = 1

    def __str__(self) -> str:
        name = f"{self.experiment}/{self.arm}"
        return name if self.block == 1 else f"{name}/{self.block}"

    @classmethod
    def parse(cls, text: str) -> StudyName | None:
        """The parts of a study's name; None for a name that isn't one of ours."""
        experiment, _, rest = text.partition("/")
        arm, _, block = rest.partition("/")
        if (
            not experiment
            or not arm
            or (block and not (block.isascii() and block.isdigit() and int(block) > 1))
        ):
            return None
        return cls(experiment, arm, int(block) if block else 1)
