"""One question to one verdict: may this arm pass?"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from enum import StrEnum

from scipy import special

from study.analysis.arm import ArmResult, Measure, find
from study.analysis.findings import Findings
from study.analysis.words import ratio
from study.statistics.family import look_share
from study.statistics.verdicts import Hits, Verdict
from vae.errors import UserError, did_you_mean

#: The level of a single proposal, two-sided.
LEVEL = 0.05


class Require(StrEnum):
    """What an arm must be."""

    FASTER = "faster"
    NOT_SLOWER = "not-slower"


class Ruling(StrEnum):
    """What the evidence says of that."""

    YES = "yes"
    NO = "no"
    UNDECIDED = "undecided"


#: Verdicts after which an arm is neither faster nor as fast.
_REFUSED = frozenset({Verdict.SLOWER, Verdict.UNRELIABLE, Verdict.NEVER, Verdict.NOT_TUNED})


@dataclass(frozen=True)
class Proposal:
    """An arm, what it must be, and the measure that tells."""

    arm: ArmResult
    require: Require
    unit: str
    """The clock's name, or "seconds"."""
    measure: Measure
    margin: float
    family: int
    """Arms that are judged together."""
    target: float | None
    looks: int = 1
    """Which look at the arms this is."""

    @property
    def hits(self) -> Hits:
        """How many of the seeds that are judged reach the target; of all, before any is."""
        return self.arm.compared or Hits(self.arm.hits, self.arm.seeds)

    @property
    def p(self) -> float:
        """The p of the claim, two-sided and adjusted for the family; 1 where there is none.

        `faster`: beyond the margin, as the verdict has it. `not-slower`: of a ratio at 1 / (1 + margin) or below, twice
        the one-sided p times the family over the share of this look (Bonferroni over both)."""
        e = self.measure.estimate
        if not self.measure.known or e.reason is not None or math.isnan(e.se):
            return 1.0
        if self.require is Require.FASTER:
            p = self.measure.p_adjusted
            return 1.0 if p is None or e.theta <= 0.0 else min(1.0, p)
        if e.se == 0.0:
            return 0.0 if e.theta > -math.log1p(self.margin) else 1.0
        t = (e.theta + math.log1p(self.margin)) / e.se
        return min(1.0, 2.0 * self.family * float(special.stdtr(e.df, -t)) / look_share(self.looks))

    @property
    def evidence(self) -> str:
        """A hash of all that the ruling rests on: the same runs and question have the same."""
        e = self.measure.estimate
        figures = [e.theta, e.se, e.df, *self.measure.simultaneous, self.p, self.margin]
        told = [
            self.arm.arm,
            self.require,
            self.unit,
            self.target,
            self.family,
            *self.hits,
        ]
        text = json.dumps([*told, str(self.measure.verdict), *(float(x).hex() for x in figures)])
        return hashlib.sha256(text.encode()).hexdigest()

    def rule(self, level: float = LEVEL) -> tuple[Ruling, str]:
        """(the ruling at that level, why in one line)."""
        verdict, p = self.measure.verdict, self.p
        if verdict in _REFUSED:
            ruling = Ruling.NO
        elif self.require is Require.FASTER:
            ruling = Ruling.YES if verdict is Verdict.FASTER and p <= level else Ruling.UNDECIDED
        else:
            ruling = Ruling.YES if verdict.judged and p <= level else Ruling.UNDECIDED
        return ruling, self._line(ruling, level)

    def _line(self, ruling: Ruling, level: float) -> str:
        said = {
            Ruling.YES: f"{self.arm.arm} is {self.require.replace('-', ' ')}",
            Ruling.NO: f"{self.arm.arm} is refused as {self.require.replace('-', ' ')}: {self.measure.words}",
            Ruling.UNDECIDED: f"{self.arm.arm} is not shown to be {self.require.replace('-', ' ')}",
        }[ruling]
        if not self.measure.known:
            reach = f"{self.hits} seeds reach it"
            return f"{said} ({self.measure.verdict.sentence}; {reach})."
        low, high = self.measure.simultaneous
        figures = ratio(self.measure.ratio, low, high)
        return (
            f"{said}: {figures} in {self.unit}, {self.hits} seeds, p {p_words(self.p)} at "
            f"level {level:.2g}, margin {self.margin:.0%}."
        )


def p_words(p: float) -> str:
    """A p in short."""
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def proposal(findings: Findings, arm: str, require: str, seconds: bool) -> Proposal:
    """What is to be judged. Raises UserError for an arm that isn't compared, or a requirement that there isn't."""
    if require not in set(Require):
        raise UserError(f"--require {require}: choose {' or '.join(Require)}.")
    compared = [other.arm for other in findings.arms if not other.is_baseline]
    found = find(findings.arms, arm)
    if found is None or found.is_baseline:
        if found is not None:
            raise UserError(f"--arm {arm} is the baseline: it is what the others are compared with.")
        raise UserError(f"--arm {arm} is not compared here. {did_you_mean(arm, compared)}")
    measure = found.seconds if seconds else found.examples
    if measure is None:
        raise UserError(
            f"--arm {arm} has not been measured in {'seconds' if seconds else findings.terms.clock} yet."
        )
    return Proposal(
        arm=found,
        require=Require(require),
        unit="seconds" if seconds else findings.terms.clock,
        measure=measure,
        margin=findings.terms.margin,
        family=max(1, len(findings.techniques)) if found.is_technique else 1,
        target=findings.target,
        looks=findings.terms.looks,
    )
