"""The database as a whole: whether it can be read, its triggers, rows without a trial, the right to plan."""

from __future__ import annotations

from collections.abc import Iterator

from study.doctor.findings import Check, Finding, listed
from study.store import checks
from study.store.owner import is_gone
from study.store.store import LEASE, Store


def of_database(store: Store) -> Iterator[Finding]:
    """What is wrong with it, whatever experiments it holds."""
    yield from _integrity(store)
    if not checks.has_triggers(store):
        yield Finding(
            Check.TABLES,
            "Deleting a study in Optuna's dashboard leaves our rows behind: the triggers are gone, as after "
            "`optuna storage upgrade`.",
            "puts them back",
            checks.install,
        )
    yield from _strays(store)
    yield from _planner(store)


def _integrity(store: Store) -> Iterator[Finding]:
    problems = checks.integrity(store)
    if not problems:
        return
    only_indices = all("index" in problem for problem in problems)
    yield Finding(
        Check.INTEGRITY,
        f"{store.database.name} is damaged: {listed(problems)}.",
        "makes its indices anew from the tables, which are whole"
        if only_indices
        else f"Restore a copy, or rescue what is left: sqlite3 {store.database.name} .recover",
        checks.rebuild_indices if only_indices else None,
    )


def _strays(store: Store) -> Iterator[Finding]:
    strays = checks.strays(store)
    counted = ((strays.curve_rows, "curve row"), (strays.runs, "record of a trial"))
    parts = [f"{n} x {what}" for n, what in counted if n]
    if parts:
        yield Finding(
            Check.CURVES,
            f"Of trials that are gone: {', '.join(parts)}.",
            "deletes them",
            checks.drop_strays,
        )


def _planner(store: Store) -> Iterator[Finding]:
    held = checks.planner(store)
    if held is None:
        return
    owner, left = held
    if left <= 0 or left > 2 * LEASE or is_gone(owner):
        yield Finding(
            Check.LEFTOVERS,
            "The right to plan is still with a process that is gone.",
            "takes it back",
            checks.end_planner,
        )
