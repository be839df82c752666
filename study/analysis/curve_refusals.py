"""Learning curves that can't say what is asked of them, each refused in one line with the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from study.analysis.from_curves import Reached
from study.curves.recorded import Curves, Ended, Recorded
from vae.errors import UserError, did_you_mean

#: A curve needs as many evaluations to have a shape.
FEWEST = 3


def require_baseline(arm: str, arms: Sequence[str]) -> str:
    """The arm. Raises UserError where the curves have no such arm."""
    if arm not in arms:
        raise UserError(f"--baseline {arm}: no such arm. {did_you_mean(arm, arms)}")
    return arm


def require_shapes(curves: Curves) -> None:
    """Raises UserError for a curve of fewer evaluations than a shape takes, but for one that ended by itself."""
    short = [
        run
        for run in curves
        if len(run) < FEWEST and run.ended not in (Ended.HIT, Ended.DIVERGED, Ended.FAILED)
    ]
    if short:
        run = short[0]
        raise UserError(
            f"{run.arm}, {run.label} has {len(run)} evaluation{'s' * (len(run) != 1)} ({len(short)} such "
            f"run{'s' * (len(short) != 1)}): a curve has at least {FEWEST}."
        )


def refuse_cut(reached: Mapping[str, Reached], tau: float, curves: Curves) -> None:
    """Raise UserError where a run ended before the budget without the target and no reason: early stopping on what is
    measured makes its time unknown."""
    cut = [
        run
        for own in reached.values()
        for run, hit in zip(own.runs, own.hit, strict=True)
        if not hit and run.ended in (Ended.COMPLETE, Ended.CENSORED) and not _lasts(run, tau)
    ]
    if cut:
        run = min(cut, key=lambda run: run.end)
        raise UserError(
            f"{run.arm}, {run.label} ended at {run.end:g} of {tau:g} {curves.clock} without the target ({len(cut)} "
            f"such run{'s' * (len(cut) != 1)}): stopped early, its time to the target is unknown. --censored-at "
            f"{run.end:g} judges all runs by what they reached until then."
        )


def _lasts(run: Recorded, tau: float) -> bool:
    """Whether a run goes on to tau: its next evaluation would have come after it."""
    if run.end >= tau:
        return True
    return run.ended is Ended.COMPLETE and len(run) > 1 and run.end + (run.end - float(run.clock[-2])) > tau
