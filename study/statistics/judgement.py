"""The verdicts of a family by METHOD step 5: from each arm's seeds beside the baseline's to interval, p and verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from study.statistics.curves import Array, Hits
from study.statistics.family import (
    decide,
    deciding_look,
    interval_over_looks,
    over_looks,
    p_beyond,
    reliable,
    with_tuning,
)
from study.statistics.speed_up import (
    NAN,
    Estimate,
    speed_up,
    units,
    unpaired_speed_up,
    with_throughput,
)
from study.statistics.verdicts import Verdict, holm


@dataclass(frozen=True, eq=False)
class Pair:
    """An arm and the baseline on the seeds that both have finished, all (n,), E with misses at tau.

    Without common seeds (`paired` false) all runs of either: the baseline's arrays then have a length of their own.
    """

    seeds: npt.NDArray[np.int64]
    """Index of each among all S seeds: a look at the first s of them takes those below s."""
    baseline_examples: Array
    baseline_hit: Hits
    arm_examples: Array
    arm_hit: Hits
    blocks: npt.NDArray[np.int64] | None = None
    """Label of each seed's block where there are several, whose means are the units."""
    tuning_variance: float = 0.0
    """What the arm's E owes to the luck of its tuning, in ln E; 0 where the blocks hold it."""
    tuned: bool = True
    """Whether any of its tuning runs reached the target that tuning aims at."""
    throughput: Estimate | None = None
    """Examples per second over the baseline's, once it is timed."""
    paired: bool = True

    @property
    def judged(self) -> bool:
        """Whether enough seeds of both reach the target for a ratio."""
        return reliable(self.arm_hit) and reliable(self.baseline_hit)

    def until(self, total: int) -> Estimate:
        """The speed-up by the first `total` seeds; by all runs where they aren't paired."""
        if not self.paired:
            return unpaired_speed_up(self.baseline_examples, self.arm_examples)
        seen = self.seeds < total
        if not seen.any():
            return no_ratio("no seed yet")
        at = None if self.blocks is None else self.blocks[seen]
        return speed_up(units(self.baseline_examples[seen], at), units(self.arm_examples[seen], at))


@dataclass(frozen=True)
class Judged:
    """What is said of an arm in one unit."""

    estimate: Estimate
    """With the luck of tuning in its interval; no ratio where too many seeds miss. `p` is beyond the margin."""
    simultaneous: tuple[float, float]
    """Over the family, and over all looks."""
    p: float
    """The one that decides: beyond the margin, adjusted for the family and for all looks; NaN without one."""
    verdict: Verdict


def no_ratio(reason: str, n: int = 0) -> Estimate:
    """An estimate without a figure."""
    return Estimate(NAN, NAN, NAN, NAN, NAN, NAN, n, NAN, reason)


def judge_family(
    pairs: Sequence[Pair | None],
    *,
    baseline_variance: float,
    looks: Sequence[int],
    margin: float,
    level: float = 0.95,
) -> list[tuple[Judged, Judged | None] | None]:
    """(examples, seconds) of each of the family's arms, m of them; None for an arm without finished seeds, seconds
    None for one that isn't timed. The family counts all m, whatever became of them.

    `baseline_variance`: of the baseline's tuning, in ln E, 0 with blocks. `looks`: totals of seeds at which verdicts
    could be read, rising, the last is now: each look has its share of 1 - level (`look_share`).
    """
    at_looks = [_estimates(pairs, baseline_variance, total, level) for total in looks]
    timed = [None if pair is None else pair.throughput for pair in pairs]
    seconds = [
        [
            None if e is None or r is None else with_throughput(e, r.theta, r.se, r.df, level)
            for e, r in zip(estimates, timed, strict=True)
        ]
        for estimates in at_looks
    ]
    in_examples = _decided(pairs, at_looks, margin, level)
    in_seconds = _decided(pairs, seconds, margin, level)
    return [
        None if examples is None else (examples, time)
        for examples, time in zip(in_examples, in_seconds, strict=True)
    ]


def _estimates(
    pairs: Sequence[Pair | None], baseline_variance: float, total: int, level: float
) -> list[Estimate | None]:
    """Each arm's estimate by the first `total` seeds. Arms that miss too often say nothing of the others' spread."""
    judged = [i for i, pair in enumerate(pairs) if pair is not None and pair.judged]
    known = [pair for pair in pairs if pair is not None and pair.judged]
    shared = with_tuning(
        [pair.until(total) for pair in known],
        baseline_variance,
        [pair.tuning_variance for pair in known],
        level,
    )
    found: list[Estimate | None] = [
        None if pair is None else no_ratio("too many seeds miss the target: no ratio", len(pair.seeds))
        for pair in pairs
    ]
    for i, estimate in zip(judged, shared, strict=True):
        found[i] = estimate
    return found


def _decided(
    pairs: Sequence[Pair | None], at_looks: Sequence[Sequence[Estimate | None]], margin: float, level: float
) -> list[Judged | None]:
    beyond = [
        [NAN if e is None or math.isnan(e.theta) else p_beyond(e, margin) for e in look] for look in at_looks
    ]
    adjusted = [holm(look) for look in beyond]
    p, deciding = over_looks(adjusted), deciding_look(adjusted)
    found: list[Judged | None] = []
    for i, pair in enumerate(pairs):
        estimates = [e for look in at_looks if (e := look[i]) is not None]
        if pair is None or not estimates:
            found.append(None)
            continue
        last = replace(estimates[-1], p=beyond[-1][i])
        decided = at_looks[deciding[i]][i]
        theta = NAN if decided is None else decided.theta
        verdict = decide(float(p[i]), theta, pair.arm_hit, pair.baseline_hit, tuned=pair.tuned, level=level)
        limits = interval_over_looks(estimates, len(pairs), level) if pair.judged else (NAN, NAN)
        found.append(Judged(last, limits, float(p[i]), verdict))
    return found
