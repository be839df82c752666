"""Recorded learning curves, typed: which arm and seed, what was measured when, and how the run ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from study.statistics.curves import Array, Curve
from study.terms import Outcome


class Ended(StrEnum):
    """How a recorded run ended."""

    COMPLETE = "complete"
    HIT = "hit"
    CENSORED = "censored"
    DIVERGED = "diverged"
    FAILED = "failed"

    @property
    def sentence(self) -> str:
        """What it means, for a reader."""
        return _SENTENCES[self]

    @classmethod
    def of(cls, outcome: Outcome) -> Ended:
        """How a trial of ours with that outcome ended."""
        return _OF_OUTCOMES[outcome]


_SENTENCES = {
    Ended.COMPLETE: "ran to the end of its budget",
    Ended.HIT: "was stopped at its target",
    Ended.CENSORED: "was stopped before the end of its budget",
    Ended.DIVERGED: "became infinite or not a number",
    Ended.FAILED: "ended by an error",
}
_OF_OUTCOMES = {
    Outcome.COMPLETED: Ended.COMPLETE,
    Outcome.COLLAPSED: Ended.COMPLETE,
    Outcome.HIT: Ended.HIT,
    Outcome.STOPPED: Ended.CENSORED,
    Outcome.MEASURED: Ended.CENSORED,
    Outcome.PRUNED: Ended.CENSORED,
    Outcome.CAPPED: Ended.CENSORED,
    Outcome.DIVERGED: Ended.DIVERGED,
    Outcome.FAILED: Ended.FAILED,
}


@dataclass(frozen=True, eq=False)
class Recorded:
    """One run: its n evaluations, n may be 0 where it failed at once, and what it belongs to.

    Raises ValueError for lengths that differ, and for a clock that isn't positive and strictly rising.
    """

    arm: str
    label: str
    """Which run of its arm: its seed where seeds are known ("3"), else the trial."""
    clock: Array
    """(n,) positive and rising: training examples, steps or epochs, as `Curves.clock` says."""
    value: Array
    """(n,) lower is better; NaN and infinities where the run broke down."""
    seconds: Array | None = None
    """(n,) seconds of training, never falling; None where they weren't recorded."""
    ended: Ended = Ended.COMPLETE
    block: int = 1
    """Which tuning the run rests on, in an experiment of several blocks."""
    phase: str = ""
    """What a trial of ours was run for; "" for curves from elsewhere."""
    source: str = ""
    """The file, folder or database that it was read from, without a password."""

    def __post_init__(self) -> None:
        _ = self.curve
        if self.seconds is not None and self.seconds.shape != self.clock.shape:
            raise ValueError(f"as many seconds as evaluations: {self.seconds.shape}, {self.clock.shape}")

    @cached_property
    def curve(self) -> Curve:
        """The same for `study.statistics`, whose `examples` are this clock."""
        return Curve(self.clock, self.value, self.ended is Ended.DIVERGED)

    def __len__(self) -> int:
        return len(self.clock)

    @property
    def end(self) -> float:
        """The clock at the last evaluation; 0 without one."""
        return float(self.clock[-1]) if len(self) else 0.0

    @property
    def is_complete(self) -> bool:
        """Whether nothing cut it short: it ran to the end of its budget or until it broke down."""
        return self.ended in (Ended.COMPLETE, Ended.DIVERGED)

    def seconds_at(self, clock: float) -> float:
        """Seconds of training at a clock, linear between evaluations, and beyond the last at the run's mean speed;
        NaN without recorded seconds."""
        if self.seconds is None or not len(self) or self.seconds[-1] <= 0.0:
            return float("nan")
        if clock >= self.clock[-1]:
            return float(self.seconds[-1] * (clock / self.clock[-1]))
        return float(np.interp(clock, [0.0, *self.clock], [0.0, *self.seconds]))


@dataclass(frozen=True)
class Curves:
    """Runs of one or more arms on one clock, in the order in which they were read."""

    runs: Sequence[Recorded]
    clock: str
    """What the clock counts, a plural: "examples", "steps", "epochs" or the name of its column."""
    value: str
    """What was measured: the name of its column or tag, "validation loss" for our own."""
    maximise: bool = False
    """Whether higher is better as it was recorded: the runs hold the negated values."""
    sources: Sequence[str] = ()
    """Where it was read from, a line each, without a password."""
    paired: bool = True
    """Whether a label means the same in every arm, as a seed does and the number of a trial doesn't."""
    notes: Sequence[str] = ()
    """What was left out or changed in reading, sentences."""

    @cached_property
    def arms(self) -> list[str]:
        """The arms in the order in which they were met."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, arm: str) -> list[Recorded]:
        """The arm's runs, by label: numbers by size, before words."""
        return sorted((run for run in self.runs if run.arm == arm), key=lambda run: by_label(run.label))

    def shown(self, value: float) -> float:
        """A value as it was recorded."""
        return -value if self.maximise else value

    def __iter__(self) -> Iterator[Recorded]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)


def by_label(label: str) -> tuple[bool, int, str]:
    """What labels are sorted by: whole numbers by size, then words."""
    is_number = label.isascii() and label.isdigit()
    return not is_number, int(label) if is_number else 0, label


def described(curves: Curves) -> list[str]:
    """What was read, in lines: the sources, arms with their runs, evaluations and the clock's range, and how runs
    ended where not all are complete."""
    ends = [run.end for run in curves]
    n = sum(map(len, curves))
    what = "seeds" if curves.paired else "runs"
    arms = ", ".join(f"{arm} ({len(curves.of(arm))})" for arm in curves.arms)
    timed = sum(run.seconds is not None for run in curves)
    seconds = "without seconds" if not timed else f"seconds in {timed} of {len(curves)} runs"
    better = "higher is better" if curves.maximise else "lower is better"
    span = f" to {min(ends):g}..{max(ends):g}" if min(ends) < max(ends) else f" to {max(ends):g}"
    lines = [
        *(f"Read {source}" for source in curves.sources),
        f"{len(curves.arms)} arm{'s' * (len(curves.arms) != 1)} ({what}): {arms}",
        f"{n} evaluations of {curves.value} ({better}), clock: {curves.clock}{span}; {seconds}",
    ]
    ended = {word: sum(run.ended is word for run in curves) for word in Ended}
    counted = ", ".join(f"{n} {word}" for word, n in ended.items() if n)
    odd = [f"How runs ended: {counted}"] if ended[Ended.COMPLETE] < len(curves) else []
    return [*lines, *odd, *curves.notes]
