"""What can be said of arms beside a baseline, wherever their curves come from, and how an arm gets there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from study.analysis.arm import UNMEASURED, ArmResult, Measure
from study.design.experiment import Experiment
from study.statistics.curves import Array, Hits
from study.statistics.family import MARGIN
from study.statistics.judgement import Judged, Pair
from study.statistics.speed_up import conditional_ratio, rmst_ratio, unpaired_speed_up
from study.statistics.survival import ert, par2
from study.statistics.verdicts import Hits as Count
from study.statistics.verdicts import Verdict

if TYPE_CHECKING:
    import pandas as pd  # of those who make frames


@dataclass(frozen=True)
class Terms:
    """By which rules the arms are judged, and in which words they are spoken of."""

    on: str
    """What the answer is of: the data, or where the curves were read from."""
    margin: float = MARGIN
    guided: bool = True
    """Whether p decides and the simultaneous interval is the one that is shown (method 2)."""
    blocks: int = 1
    looks: int = 1
    """How often verdicts could be read by now; each look has its share of the error level."""
    intervals: str = "simultaneous 95 % intervals"
    """What the intervals hold, in a few words."""
    baseline: str = "the tuned baseline"
    arms: str = "techniques"
    paired: bool = True
    clock: str = "examples"
    """What the clock counts."""
    value: str = "validation loss"
    unit: str = "nats"
    """The value's; "" where it isn't known."""
    dimensions: int | None = None
    """Pixels of an example, where nats are told in bits per dimension too."""
    way_out: str = "Under another --name a higher --target, or a longer --budget, would help."
    """What helps where the baseline itself misses the target too often."""

    maximise: bool = False
    """Whether a higher value is better; targets are as they were recorded, curves hold it negated."""
    tuned: bool = True
    """Whether each arm was tuned by us."""

    @property
    def counted(self) -> str:
        """What the clock counts, on an axis."""
        return "training examples" if self.clock == "examples" else self.clock

    @property
    def seen(self) -> str:
        """The clock itself, on an axis."""
        return f"{self.counted} seen" if self.clock == "examples" else self.clock

    @property
    def measure(self) -> str:
        """The value at the beginning of a title."""
        return self.value[:1].upper() + self.value[1:] if self.unit else self.value

    @property
    def axis(self) -> str:
        """The value with its unit, on an axis."""
        return f"{self.measure}, {self.unit} per example" if self.unit else self.measure

    @property
    def seeds(self) -> str:
        """What the arms' runs are, counted."""
        return "paired seeds" if self.paired else "unpaired runs"

    def level(self, target: float) -> str:
        """A target in words: "a validation loss of 24.99 nats", "0.9 in accuracy"."""
        if not self.unit:
            return f"{target:.5g} in {self.value}"
        told = nats(target, self.dimensions) if self.unit == "nats" else f"{target:.2f} {self.unit}"
        return f"a {self.value} of {told}"

    @classmethod
    def of(cls, experiment: Experiment, dimensions: int | None) -> Terms:
        """Those of an experiment of ours."""
        margin = f"margin {experiment.margin:.0%}"
        if experiment.guided:
            blocks = f"the luck of {experiment.blocks} blocks' tuning"
            luck = "the luck of tuning" if experiment.blocks == 1 else blocks
            words = f"simultaneous 95 % intervals, {luck} included, {margin}"
        else:
            words = f"95 % intervals; verdicts from simultaneous ones, {margin}"
        return cls(
            on=experiment.data,
            margin=experiment.margin,
            guided=experiment.guided,
            blocks=experiment.blocks,
            looks=1 + len(experiment.looks) if experiment.guided else 1,
            intervals=words,
            dimensions=dimensions,
        )


def bits(nats: float | None, dimensions: int | None) -> float | None:
    """Nats per example of so many dimensions as bits per dimension; None without a loss, and where a loss is not the
    length of a code (`Workload.dimensions`)."""
    return None if nats is None or dimensions is None else nats / dimensions / math.log(2)


def nats(loss: float, dimensions: int | None) -> str:
    """A loss in words: "24.99 nats", where it is known in bits "24.99 nats = 0.563 bits per dimension"."""
    told = bits(loss, dimensions)
    return f"{loss:.2f} nats" + ("" if told is None else f" = {told:.3f} bits per dimension")


@dataclass(frozen=True)
class Findings:
    """All that curves say of arms beside their baseline, in figures."""

    terms: Terms
    target: float | None
    """The value to reach, as it was recorded."""
    arms: Sequence[ArmResult]
    """The baseline first, then the family as it was asked for, then the references."""

    @property
    def techniques(self) -> list[ArmResult]:
        """The family that is judged together."""
        return [arm for arm in self.arms if arm.is_technique]

    @property
    def measured(self) -> bool:
        """Whether any arm has been set beside the baseline."""
        return any(arm.measured for arm in self.arms)

    @property
    def timed(self) -> bool:
        """Whether any arm has seconds beside the baseline's."""
        return any(arm.timed for arm in self.arms)

    @property
    def has_seconds(self) -> bool:
        """Whether tables have columns of seconds: they are known, or an experiment of ours has yet to time its arms."""
        return self.timed or self.terms.tuned


class Shown(Protocol):
    """What the sections on curves show: an experiment's evidence, or curves from elsewhere. Frames as in `frames`."""

    @property
    def comparison(self) -> Findings | None: ...
    @property
    def bands(self) -> pd.DataFrame: ...
    @property
    def seeds(self) -> pd.DataFrame: ...
    @property
    def survival(self) -> pd.DataFrame: ...
    @property
    def by_target(self) -> pd.DataFrame: ...
    @property
    def speeds(self) -> Mapping[str, float]: ...
    def family(self, arm: str) -> str:
        """The arm's family."""
        ...


def counted(result: ArmResult, E: Array, hit: Hits, tau: float) -> ArmResult:
    """The arm with what its own runs say, all (S,): hits, mean clock to the target with misses at tau, PAR2 and ERT."""
    hits, n = int(hit.sum()), len(E)
    return replace(
        result,
        hits=hits,
        seeds=n,
        mean_examples=float(E.mean()) if hits else None,
        par2=par2(E, hit, tau) if n else None,
        ert=ert(E, hit, tau) if n else None,
    )


def beside(result: ArmResult, pair: Pair, tau: float) -> ArmResult:
    """The arm with what is compared of it, and with its ratios to the baseline that no verdict rests on: on joint hits,
    and truncated at tau."""
    B, A = (pair.baseline_examples, pair.baseline_hit), (pair.arm_examples, pair.arm_hit)
    if pair.paired:
        result = replace(result, conditional=conditional_ratio(*B, *A, pair.blocks))
        within = rmst_ratio(*B, *A, tau, pair.blocks)
    else:  # without pairs there are no joint hits
        within = unpaired_speed_up(pair.baseline_examples.clip(max=tau), pair.arm_examples.clip(max=tau))
    bounds = pair.baseline_hit.all() and math.isfinite(within.high)
    compared = Count(int(pair.arm_hit.sum()), pair.arm_hit.size)
    return replace(result, compared=compared, rmst=within, at_most=within.high if bounds else None)


def said(result: ArmResult, examples: Judged, seconds: Judged | None) -> ArmResult:
    """The arm, once it is set `beside` the baseline, with what the family's judgement says of it."""
    assert result.compared is not None
    return replace(
        result,
        examples=as_measure(examples, result.compared),
        seconds=UNMEASURED if seconds is None else as_measure(seconds, result.compared),
    )


def as_measure(judged: Judged, hits: Count) -> Measure:
    """A judgement as the record that is shown; `hits` are the arm's on the seeds that are judged."""
    unreliable = hits if judged.verdict is Verdict.UNRELIABLE else None
    p = None if math.isnan(judged.p) else judged.p
    return Measure(judged.estimate, judged.simultaneous, judged.verdict, unreliable, p, decides=True)
