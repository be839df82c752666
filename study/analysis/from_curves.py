"""An answer from learning curves alone: what they say, and the frames behind its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis import frames
from study.analysis.arm import Kind, find
from study.analysis.findings import Findings
from study.analysis.question import Question
from study.curves.recorded import Curves, Ended, Recorded
from study.statistics.curves import Array, Hits, mean_to_target, sustained_to_target
from study.statistics.family import reliable
from study.statistics.judgement import no_ratio
from study.statistics.speed_up import Estimate, speed_up, units, unpaired_speed_up
from study.statistics.survival import censored

#: Shares of the budget at which the speed-up to the loss that the baseline has by then is told.
BUDGETS = (0.125, 0.25, 0.5, 0.75, 1.0)
#: Evaluations in a row that a sustained hit takes.
SUSTAINED = 3


@dataclass(frozen=True, eq=False)
class Reached:
    """What an arm's runs took to the target; arrays are (S,)."""

    runs: Sequence[Recorded]
    E: Array
    """On the curves' clock; tau on a miss."""
    hit: Hits

    def seconds(self) -> Array | None:
        """Seconds to the target, of the whole budget on a miss; None where some run has none."""
        found = np.array([run.seconds_at(float(E)) for run, E in zip(self.runs, self.E, strict=True)])
        return found if found.size and np.isfinite(found).all() and (found > 0.0).all() else None

    def at(self, rows: Sequence[int]) -> Reached:
        """These runs of it, in that order."""
        index = np.array(rows, dtype=np.int64)
        return Reached([self.runs[i] for i in rows], self.E[index], self.hit[index])


@dataclass(frozen=True)
class Sensitivity:
    """The speed-up of an arm by another reading of its curves."""

    arm: str
    reading: str
    hits: int
    seeds: int
    estimate: Estimate


@dataclass(frozen=True)
class FromCurves:
    """What curves say, and the frames behind its figures; see `study.analysis.frames`."""

    name: str
    curves: Curves
    question: Question
    comparison: Findings
    tau: float
    """The budget on the curves' clock: what a miss counts as."""
    baseline: str
    paired: bool
    reached: Mapping[str, Reached] = field(repr=False)
    pairs: Mapping[str, tuple[Reached, Reached]] = field(repr=False)
    """arm -> (the baseline's runs, its own) that are compared, the same seeds in the same order where paired."""
    of_database: Mapping[str, float] | None = None
    """Examples per second of the arms, as our own database has them; None for curves from elsewhere."""
    tuned: bool = False
    """Whether the luck of tuning is in the intervals."""

    def family(self, arm: str) -> str:
        """The arm's family, which has its mark in figures."""
        found = find(self.comparison.arms, arm)
        return str(Kind.REFERENCE) if found is None else found.family

    @property
    def target(self) -> float:
        """As the curves hold it: lower is better."""
        assert self.comparison.target is not None
        return self.curves.shown(self.comparison.target)

    @cached_property
    def speeds(self) -> Mapping[str, float]:
        """Clock per second of each arm whose runs have seconds: the median over its runs."""
        if self.of_database is not None:
            return self.of_database
        found = {}
        for arm, reached in self.reached.items():
            rates = [run.end / run.seconds_at(run.end) for run in reached.runs if len(run)]
            if rates and all(map(math.isfinite, rates)):
                found[arm] = float(np.median(rates))
        return found

    @cached_property
    def bands(self) -> pd.DataFrame:
        """Learning curves: median and middle 80 % over seeds."""
        recorded = {arm: [r.curve for r in reached.runs if len(r)] for arm, reached in self.reached.items()}
        return frames.bands(recorded, self.speeds)

    @cached_property
    def seeds(self) -> pd.DataFrame:
        """One row a run: arm, block, seed, outcome, hit, examples, seconds, best_loss, recipe ("")."""
        rows = [
            {
                "arm": arm,
                "block": run.block,
                "seed": run.label,
                "outcome": str(run.ended),
                "hit": bool(hit),
                "examples": float(E),
                "seconds": float(E) / self.speeds.get(arm, math.nan),
                "best_loss": run.curve.best(),
                "recipe": "",
            }
            for arm, reached in self.reached.items()
            for run, E, hit in zip(reached.runs, reached.E, reached.hit, strict=True)
        ]
        return pd.DataFrame(rows)

    @cached_property
    def survival(self) -> pd.DataFrame:
        """Kaplan-Meier curves."""
        return frames.survival(self.seeds)

    @cached_property
    def by_target(self) -> pd.DataFrame:
        """The speed-ups at other targets."""
        baseline = [run.curve for run in self.reached[self.baseline].runs]
        frame = frames.by_target(
            baseline, self._curve_pairs, self.tau, paired=self.paired, lowest=self._lowest, until=self._until
        )
        return frame.assign(target=[self.curves.shown(value) for value in frame["target"]])

    @cached_property
    def by_budget(self) -> pd.DataFrame:
        """The speed-up to the value that every run of the baseline has by a share of the budget. Columns budget (on the
        clock), target (as recorded), arm, speed_up, low, high, baseline_hits, arm_hits, seeds."""
        baseline = [run.curve for run in self.reached[self.baseline].runs if not run.curve.diverged]
        parts = []
        for share in BUDGETS:
            values = [curve.best(share * self.tau) for curve in baseline]
            if values and np.isfinite(values).all():
                level = max(*values, self._lowest)
                frame = frames.at_targets(self._curve_pairs, [level], paired=self.paired, until=self._until)
                frame.insert(0, "budget", share * self.tau)
                frame["target"] = self.curves.shown(level)
                parts.append(frame)
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["budget"])

    @cached_property
    def sensitivities(self) -> list[Sensitivity]:
        """Each arm by a hit that lasts, and by its mean curve; 95 % intervals of the seeds alone. Where runs end at
        their target no mean curve goes on to it."""
        found = []
        for arm, (before, after) in self.pairs.items():
            B, A = (
                [sustained_to_target(r.curve, self.target, SUSTAINED) for r in own.runs]
                for own in (before, after)
            )
            both = [np.array([hit and e <= self._until for e, hit in pairs], dtype=bool) for pairs in (B, A)]
            estimate = no_ratio("too many seeds miss the target: no ratio")
            if all(reliable(hit) for hit in both):
                E = [
                    censored([e for e, _ in pairs], hit, self.tau)
                    for pairs, hit in zip((B, A), both, strict=True)
                ]
                at = self._blocks(before)
                estimate = (
                    speed_up(units(E[0], at), units(E[1], at))
                    if self.paired
                    else unpaired_speed_up(E[0], E[1])
                )
            reading = f"sustained hit: {SUSTAINED} evaluations in a row"
            found.append(Sensitivity(arm, reading, int(both[1].sum()), len(A), estimate))
            if self._is_stopped:
                continue
            means = [mean_to_target([run.curve for run in own.runs], self.target) for own in (before, after)]
            means = [at if at <= self._until else math.nan for at in means]
            ratio = means[0] / means[1]
            point = replace(no_ratio("one curve: no interval", 1), ratio=ratio, theta=math.log(ratio))
            found.append(
                Sensitivity(arm, "crossing of the mean curve", int(math.isfinite(means[1])), 1, point)
            )
        return found

    @cached_property
    def _is_stopped(self) -> bool:
        """Whether any run ended at its target."""
        return any(run.ended is Ended.HIT for reached in self.reached.values() for run in reached.runs)

    @property
    def _lowest(self) -> float:
        """Below this value some run was not let go on."""
        return self.target if self._is_stopped else -math.inf

    @property
    def _until(self) -> float:
        """The clock after which nothing counts."""
        return math.inf if self.question.censored_at is None else self.question.censored_at

    @property
    def _curve_pairs(self) -> dict[str, frames.Paired]:
        return {
            arm: ([r.curve for r in before.runs], [r.curve for r in after.runs], self._blocks(before))
            for arm, (before, after) in self.pairs.items()
        }

    def _blocks(self, reached: Reached) -> list[int] | None:
        labels = block_labels(reached)
        return None if labels is None else labels.tolist()


def block_labels(reached: Reached) -> npt.NDArray[np.int64] | None:
    """(S,) the runs' blocks; None where there is but one."""
    blocks = np.array([run.block for run in reached.runs])
    return blocks if (blocks > 1).any() else None
