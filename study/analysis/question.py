"""What is asked of learning curves: which arm they are compared with, and what is to be reached."""

from __future__ import annotations

import math
from dataclasses import dataclass

from study.statistics.family import MARGIN
from vae.errors import UserError


@dataclass(frozen=True)
class Question:
    """What is asked of curves: against which arm, and to which value. Raises UserError for what makes no sense."""

    baseline: str
    target: float | None = None
    """The value to reach, as it was recorded."""
    target_at: float | None = None
    """Or the share of the budget at which the baseline's median is the target."""
    margin: float = MARGIN
    censored_at: float | None = None
    """The clock at which every run is taken to have ended."""
    unpaired: bool = False

    def __post_init__(self) -> None:
        if self.target is not None and self.target_at is not None:
            raise UserError("--target and --target-at say the same thing twice: give one.")
        if self.target is not None and not math.isfinite(self.target):
            raise UserError(f"--target {self.target:g}: give a finite value.")
        if self.target_at is not None and not 0.0 < self.target_at < 1.0:
            raise UserError(f"--target-at {self.target_at:g}: a share of the budget lies between 0 and 1.")
        if not 0.0 <= self.margin < 1.0:
            raise UserError(f"--margin {self.margin:g}: a margin is at least 0 and below 1; 0.02 is 2 %.")
        if self.censored_at is not None and not (math.isfinite(self.censored_at) and self.censored_at > 0.0):
            raise UserError(f"--censored-at {self.censored_at:g}: give a clock above 0.")
