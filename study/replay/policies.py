"""The ways of stopping early that are replayed: Optuna's own pruners, and this program's own rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from optuna.pruners import BasePruner, ThresholdPruner, WilcoxonPruner

from study.replay.tapes import Tape, Tapes
from study.statistics.curves import examples_to_target
from study.stopping.pruners import build_pruner, quiet_about_experiments


class Kind(StrEnum):
    """What a policy looks at, and what it selects by."""

    NONE = "none"
    ACROSS = "across runs"
    STAGE = "in two stages"
    WITHIN = "within a run"
    TARGET = "time to target"

    @property
    def selects_by_value(self) -> bool:
        """Whether the run with the lowest value is looked for, not the first at a target."""
        return self is not Kind.TARGET


@dataclass(frozen=True)
class Policy:
    """One way of stopping early, and how to use it elsewhere."""

    name: str
    kind: Kind
    use: str
    """As code, a flag or a sentence."""
    pruner: BasePruner | None = None
    """Of Kind.ACROSS; every replayed study gets a copy, for some learn."""
    by_best: bool = False
    """The pruner looks at nothing but its own trial and the best complete one, so equal questions have equal answers
    and are asked once."""
    number: int = 0
    """Of Kind.STAGE: the grid number at which all but the best end."""
    patience: int = 0
    """Of Kind.WITHIN: grid numbers without a better value."""
    min_delta: float = 0.0
    """By how much a value must be lower to be better."""
    target: float | None = None
    """Of Kind.TARGET: the value to reach."""


NONE = Policy("none", Kind.NONE, "--pruner none")


def policies(
    tapes: Tapes,
    *,
    patience: Sequence[int] = (),
    min_delta: Sequence[float] = (),
    stages: Sequence[float] = (0.25, 0.5),
    threshold: float | None = None,
    target: float | None = None,
) -> list[Policy]:
    """Those that are replayed unless told otherwise: none, Optuna's seven, two stages at shares of the clock, patience
    x min_delta within a run, and capping where there is a `target`.

    By default patience is a tenth and a fifth of the grid, min_delta 0 and a twentieth of the gap between the median
    run and the best; the threshold is the median run's value a quarter into the grid, which nobody knows beforehand.
    """
    n = tapes.n_points
    patience = patience or sorted({max(2, round(n / 10)), max(3, round(n / 5))})
    min_delta = min_delta or sorted({0.0, float(f"{tapes.gap / 20:.2g}")})
    warm_up = n // 4
    if threshold is None:
        threshold = float(f"{_median_at(tapes, warm_up):.6g}")
    with quiet_about_experiments():
        wilcoxon = WilcoxonPruner(p_threshold=0.1, n_startup_steps=5)
        upper = ThresholdPruner(upper=threshold, n_warmup_steps=warm_up)
    found = [NONE]
    for name in ("median", "percentile", "halving", "hyperband", "patient"):
        found.append(Policy(name, Kind.ACROSS, f"--pruner {name}", build_pruner(name, n)))
    found += [
        Policy(
            "threshold",
            Kind.ACROSS,
            f"ThresholdPruner({'lower' if tapes.maximise else 'upper'}={tapes.shown(threshold):g}, "
            f"n_warmup_steps={warm_up})",
            upper,
            by_best=True,
        ),
        Policy(
            "wilcoxon",
            Kind.ACROSS,
            "WilcoxonPruner(p_threshold=0.1, n_startup_steps=5)",
            wilcoxon,
            by_best=True,
        ),
    ]
    for share in stages:
        number = tapes.number_at(share)
        use = f"stop all at {tapes.grid[number]:,.0f} {tapes.clock}, go on with the best"
        found.append(Policy(f"best at {share:.0%}", Kind.STAGE, use, number=number))
    for points in patience:
        for delta in min_delta:
            name = f"patience {points}" + (f", delta {delta:g}" if delta else "")
            use = (
                f"EarlyStopping(patience={points}, min_delta={delta:g})" if delta else f"--patience {points}"
            )
            found.append(Policy(name, Kind.WITHIN, use, patience=points, min_delta=delta))
    if target is not None:
        use = f"compare caps by itself; target {tapes.shown(target):g}"
        found.append(Policy("capping", Kind.TARGET, use, target=target))
    return found


def to_target(tape: Tape, target: float) -> float | None:
    """The clock at which a run reaches the target; None where it never does."""
    reached, hit = examples_to_target(tape.clock, tape.values, target)
    return reached if hit else None


def _median_at(tapes: Tapes, number: int) -> float:
    """Median over runs of the value at the first evaluation at or past a grid number."""
    at = [
        next((value for k, value in zip(tape.numbers, tape.values, strict=True) if k >= number), np.nan)
        for tape in tapes.runs
    ]
    finite = [value for value in at if np.isfinite(value)]
    return float(np.median(finite)) if finite else tapes.median
