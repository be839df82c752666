"""Trials whose state, record and curve don't agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from optuna.trial import TrialState

from study.doctor.findings import Check, Finding, listed
from study.store import checks
from study.store.checks import TrialFacts
from study.store.claims import UNFINISHED


def trials(facts: Sequence[TrialFacts]) -> Iterator[Finding]:
    """Those that nobody runs, that Optuna knows otherwise, or that somebody else has ended."""
    orphans = [trial for trial in facts if _is_orphan(trial)]
    if orphans:
        hosts = ", ".join(sorted({trial.host or "unknown" for trial in orphans}))
        yield Finding(
            Check.TRIALS,
            f"{_count(orphans)} run by nobody, their worker is gone (host: {hosts}): {_labels(orphans)}.",
            "lets them wait again; the next run or worker would take them over, too",
            lambda store: checks.put_back(store, orphans),
        )
    foreign = [trial for trial in facts if trial.state is TrialState.RUNNING and trial.attempt is None]
    if foreign:
        yield Finding(
            Check.TRIALS,
            f"{_count(foreign)} running by Optuna's tables, without a record in ours, so that no worker takes "
            f"{'it' if len(foreign) == 1 else 'them'}: {_labels(foreign)}.",
            "lets them wait for a worker",
            lambda store: checks.put_back(store, foreign),
        )
    untold = [trial for trial in facts if trial.outcome is not None and trial.state in UNFINISHED]
    if untold:
        yield Finding(
            Check.TRIALS,
            f"{_count(untold)} finished, and Optuna was not told: {_labels(untold)}.",
            "tells Optuna",
            lambda store: checks.tell(store, untold),
        )
    ended = [
        trial for trial in facts if trial.state.is_finished() and trial.attempt and trial.outcome is None
    ]
    if ended:
        yield Finding(
            Check.TRIALS,
            f"{_count(ended)} over without a result, ended from outside of this program: {_labels(ended)}.",
            "No estimate uses them. To have them run, delete that study in the dashboard, and run again.",
        )


def _is_orphan(trial: TrialFacts) -> bool:
    if trial.outcome is not None or trial.attempt is None or trial.state.is_finished():
        return False
    return not trial.is_held and (trial.owner is not None or trial.state is TrialState.RUNNING)


def curves(facts: Sequence[TrialFacts]) -> Iterator[Finding]:
    """Those that end before their trial did."""
    short = [trial for trial in facts if trial.examples is not None and trial.curve_examples < trial.examples]
    if short:
        yield Finding(
            Check.CURVES,
            f"{_count(short)} without the end of the curve: {_labels(short)}.",
            "Restore a copy of before. A training anew needs another --name.",
        )


def _count(facts: Sequence[TrialFacts]) -> str:
    return f"{len(facts)} {'trial is' if len(facts) == 1 else 'trials are'}"


def _labels(facts: Sequence[TrialFacts]) -> str:
    return listed(trial.label for trial in facts)
