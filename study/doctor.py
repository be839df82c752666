"""`study doctor`: what is wrong with a database and its files, and what can be mended.

Looking changes nothing. A repair is made only where no worker is at work, and after a copy of everything.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from statistics import median

from optuna.trial import TrialState

from study.analysis.answer import offers
from study.analysis.standing import Standing
from study.protocol.stored import stored
from study.store import checks, records
from study.store.artifacts import Artifacts
from study.store.checks import TrialFacts
from study.store.claims import UNFINISHED
from study.store.locations import Local, Location
from study.store.owner import is_gone
from study.store.store import LEASE, Store
from vae.errors import FailureError, UserError

#: Seconds that clocks may differ before it is said: Optuna's times of trials are their hosts'.
CLOCKS_AGREE = 5.0
#: What `write_whole` calls a file that it has not finished.
_UNFINISHED_FILE = re.compile(r"\..+-[0-9a-f]{8}")
_STATE = re.compile(r"trial-(\d+)\.pt")
#: Names listed in one finding.
_LISTED = 3


class Check(StrEnum):
    """What is looked at, in this order."""

    INTEGRITY = "integrity"
    TABLES = "tables"
    EXPERIMENTS = "experiments"
    TRIALS = "trials"
    CURVES = "curves"
    ARTIFACTS = "artifacts"
    LEFTOVERS = "leftovers"
    VERSIONS = "versions"
    CLOCKS = "clocks"


@dataclass(frozen=True)
class Finding:
    """One thing that was found. `mend` repairs it; None: `way_out` says what a person can do."""

    check: Check
    what: str
    way_out: str
    mend: Callable[[Store], object] | None = None
    is_note: bool = False
    """Worth knowing, and nothing is wrong."""


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
            f"Workers are at work on {_listed(trial.label for trial in held)}: a repair would take their trials from "
            "them. Stop them first (Ctrl-C), or wait until they have ended."
        )
    copy = checks.back_up(store)
    for finding in findings:
        if finding.mend is not None:
            finding.mend(store)
    return copy


def _look(store: Store, artifacts: Location) -> Iterator[Finding]:
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
    yield from _files_of_database(store)
    hosts: dict[str, list[float]] = defaultdict(list)
    for name in checks.names(store):
        facts = checks.trial_facts(store, name)
        yield from _trials(facts)
        yield from _curves(facts)
        yield from _versions(store, name)
        yield from _files(store, name, facts, artifacts)
        for trial in facts:
            # Both were written within the same moment, by two clocks.
            if trial.attempt == 1 and trial.host and trial.began is not None and trial.started is not None:
                hosts[trial.host].append(trial.began.timestamp() - trial.started)
    yield from _clocks(store, hosts)


def _integrity(store: Store) -> Iterator[Finding]:
    problems = checks.integrity(store)
    if not problems:
        return
    only_indices = all("index" in problem for problem in problems)
    yield Finding(
        Check.INTEGRITY,
        f"{store.database.name} is damaged: {_listed(problems)}.",
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


def _files_of_database(store: Store) -> Iterator[Finding]:
    path = store.database.path
    if path is None:
        return
    left = [*path.parent.glob(f".{path.name}.*.new*"), *path.parent.glob(f".{path.name}.lock")]
    yield from _remove([Local(file) for file in left], "of a database that was being made")


def _trials(facts: Sequence[TrialFacts]) -> Iterator[Finding]:
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


def _curves(facts: Sequence[TrialFacts]) -> Iterator[Finding]:
    short = [trial for trial in facts if trial.examples is not None and trial.curve_examples < trial.examples]
    if short:
        yield Finding(
            Check.CURVES,
            f"{_count(short)} without the end of the curve: {_labels(short)}.",
            "Restore a copy of before. A training anew needs another --name.",
        )


def _versions(store: Store, name: str) -> Iterator[Finding]:
    told = records.versions(store, name)
    used: dict[str, set[str]] = defaultdict(set)
    for versions in told:
        for package in ("python", "torch", "optuna", "numpy", "vae-study"):
            if package in versions:
                used[package].add(str(versions[package]))
    mixed = [f"{package} {', '.join(sorted(found))}" for package, found in used.items() if len(found) > 1]
    if mixed:
        yield Finding(
            Check.VERSIONS,
            f"{name}: its trials ran under several versions: {'; '.join(mixed)}.",
            "Curves may differ by rounding; compare arms by examples, and seconds with care.",
            is_note=True,
        )
    other = [
        f"{package} {', '.join(sorted(found))} there, {installed} here"
        for package, found in used.items()
        if (installed := _installed(package)) is not None and installed not in found
    ]
    if other:
        yield Finding(
            Check.VERSIONS,
            f"{name}: {'; '.join(other)}.",
            "Going on with it mixes versions: pip install the ones that it was begun with.",
            is_note=True,
        )


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _files(store: Store, name: str, facts: Sequence[TrialFacts], root: Location) -> Iterator[Finding]:
    try:
        kept = stored(store, name)
        files = kept.files(root)
    except UserError as error:
        yield Finding(Check.EXPERIMENTS, str(error), "Restore a copy of before.")
        return
    there = list(files.path.files())
    if not there:
        if any(trial.outcome is not None for trial in facts):
            yield Finding(
                Check.ARTIFACTS,
                f"{name}: its folder of models and states, {files.path}, is not there.",
                "Give --artifacts as it was trained with, or bring the folder back; the figures need none of it.",
            )
        return
    if not files.are_ours():
        yield Finding(
            Check.ARTIFACTS,
            f"{name}: {files.path} holds the files of another experiment.",
            "Give --artifacts as it was trained with.",
        )
        return
    yield from _models(store, name, files)
    left = [file for file in there if _UNFINISHED_FILE.fullmatch(file.name)]
    done = {files.state(trial.study_name, trial.number): trial.outcome is not None for trial in facts}
    studies = {trial.study_name for trial in facts}
    for file in there:
        number = _STATE.fullmatch(file.name)
        is_state = number and file in {files.state(study, int(number[1])) for study in studies}
        if is_state and done.get(file, True):
            left.append(file)
    yield from _remove(left, "of trainings that have ended or were killed")


def _models(store: Store, name: str, files: Artifacts) -> Iterator[Finding]:
    missing = []
    for offer in offers(Standing.read(store, name)):
        run = offer.run
        if run is not None and run.recipe is not None and not files.model(run.study, run.number).exists():
            missing.append(f"{offer.arm}, {offer.use.words} ({files.model(run.study, run.number)})")
    if missing:
        yield Finding(
            Check.ARTIFACTS,
            f"{name}: no model of {'; '.join(dict.fromkeys(missing))}.",
            "Train it anew: python -m study export, then python -m vae train --recipe with the recipe written.",
        )


def _remove(left: Sequence[Location], whose: str) -> Iterator[Finding]:
    def unlink(_: Store) -> None:
        for file in left:
            file.delete()

    if left:
        yield Finding(
            Check.LEFTOVERS,
            f"{len(left)} {'file' if len(left) == 1 else 'files'} {whose}: {_listed(map(str, left))}.",
            "deletes them",
            unlink,
        )


def _clocks(store: Store, hosts: dict[str, list[float]]) -> Iterator[Finding]:
    ahead = checks.clock_ahead(store)
    if store.database.path is None and abs(ahead) > CLOCKS_AGREE:
        yield Finding(
            Check.CLOCKS,
            f"The database's clock is {_signed(ahead)} this machine's.",
            "Leases go by the database's clock alone; set the clocks right (NTP) for what is shown.",
            is_note=True,
        )
    for host, offsets in sorted(hosts.items()):
        offset = median(offsets)
        if abs(offset) > CLOCKS_AGREE:
            yield Finding(
                Check.CLOCKS,
                f"The clock or time zone of {host} was {_signed(offset)} the database's when its trials "
                "began.",
                "Optuna's times of these trials are off by that; ours, and all figures, are not.",
                is_note=True,
            )


def _signed(seconds: float) -> str:
    return f"{abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'}"


def _count(facts: Sequence[TrialFacts]) -> str:
    return f"{len(facts)} {'trial is' if len(facts) == 1 else 'trials are'}"


def _labels(facts: Sequence[TrialFacts]) -> str:
    return _listed(trial.label for trial in facts)


def _listed(words: Iterator[str] | Sequence[str] | map[str]) -> str:
    """The first few of them, and how many more there are."""
    counted = list(Counter(words))
    more = len(counted) - _LISTED
    return "; ".join(counted[:_LISTED]) + (f"; and {more} more" if more > 0 else "")
