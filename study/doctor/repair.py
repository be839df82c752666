"""Mending what was found."""

from __future__ import annotations

from collections.abc import Sequence

from study.doctor.findings import Finding, listed
from study.store import checks
from study.store.checks import TrialFacts
from study.store.store import Store
from vae.errors import FailureError


def at_work(store: Store) -> list[TrialFacts]:
    """The trials that a worker holds now."""
    return [
        trial for name in checks.names(store) for trial in checks.trial_facts(store, name) if trial.is_held
    ]


def repair(store: Store, findings: Sequence[Finding]) -> str:
    """Mend what can be mended; where the copy is that was made before.

    Raises FailureError where trials are running, or where the copy can't be made; nothing is changed then."""
    held = at_work(store)
    if held:
        raise FailureError(
            f"Workers are at work on {listed(trial.label for trial in held)}: a repair would take their trials from "
            "them. Stop them first (Ctrl-C), or wait until they have ended."
        )
    copy = checks.back_up(store)
    for finding in findings:
        if finding.mend is not None:
            finding.mend(store)
    return copy
