"""Everything that is found, in the order in which it is looked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from study.doctor.database import of_database
from study.doctor.files import beside_database, of_experiment
from study.doctor.findings import Check, Finding
from study.doctor.hosts import clocks, versions
from study.doctor.trials import curves, trials
from study.store import checks
from study.store.locations import Location
from study.store.store import Store
from vae.errors import FailureError


def examine(store: Store, artifacts: Location) -> list[Finding]:
    """Everything that is found in a database and in its experiments' folders under `artifacts`.

    Where the database can't be read to the end, what was found until then and that it can't."""
    found: list[Finding] = []
    try:
        for finding in _look(store, artifacts):
            found.append(finding)
    except FailureError as error:
        found.append(Finding(Check.INTEGRITY, str(error), "Restore a copy; what follows was not looked at."))
    return found


def _look(store: Store, artifacts: Location) -> Iterator[Finding]:
    yield from of_database(store)
    yield from beside_database(store)
    hosts: dict[str, list[float]] = defaultdict(list)
    for name in checks.names(store):
        facts = checks.trial_facts(store, name)
        yield from trials(facts)
        yield from curves(facts)
        yield from versions(store, name)
        yield from of_experiment(store, name, facts, artifacts)
        for trial in facts:
            # Both were written within the same moment, by two clocks.
            if trial.attempt == 1 and trial.host and trial.began is not None and trial.started is not None:
                hosts[trial.host].append(trial.began.timestamp() - trial.started)
    yield from clocks(store, hosts)
