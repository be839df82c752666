"""Files beside the database and in the experiments' folders: what is missing, and what was left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from glob import escape

from study.analysis.advice import offers
from study.analysis.standing import Standing
from study.doctor.findings import Check, Finding, listed
from study.protocol.stored import stored
from study.store.artifacts import Artifacts
from study.store.checks import TrialFacts
from study.store.locations import Local, Location
from study.store.store import Store
from vae.errors import FailureError, UserError

#: What `write_whole` calls a file that it has not finished.
_UNFINISHED_FILE = re.compile(r"\..+-[0-9a-f]{8}")
_STATE = re.compile(r"trial-(\d+)\.pt")


def beside_database(store: Store) -> Iterator[Finding]:
    """What was left beside a SQLite file."""
    path = store.database.path
    if path is None:
        return
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        yield Finding(
            Check.LEFTOVERS,
            f"{log.name} holds what was written last: a command is at work, or was killed. {path.name} alone is not "
            "the whole.",
            f"The next run takes it in. Copy by: sqlite3 {path.name} '.backup copy.db'. If another file was put in the "
            "place of this one, take the log of the former away.",
            is_note=True,
        )
    left = [
        *path.parent.glob(f".{escape(path.name)}.*.new*"),
        *path.parent.glob(f".{escape(path.name)}.lock"),
    ]
    yield from _remove([Local(file) for file in left], "of a database that was being made")


def of_experiment(store: Store, name: str, facts: Sequence[TrialFacts], root: Location) -> Iterator[Finding]:
    """The experiment's own folder under `root`: whether it is there and its own, and what is missing or left in it."""
    try:
        kept = stored(store, name)
        files = kept.files(root)
    except UserError as error:
        yield Finding(Check.EXPERIMENTS, str(error), "Restore a copy of before.")
        return
    try:
        there, are_ours = list(files.path.files()), files.are_ours()
    except FailureError as error:
        yield Finding(Check.ARTIFACTS, f"{name}: {error}", "Set that right, or give another --artifacts.")
        return
    if not there:
        if any(trial.outcome is not None for trial in facts):
            yield Finding(
                Check.ARTIFACTS,
                f"{name}: its folder of models and states, {files.path}, is not there.",
                "Give --artifacts as it was trained with, or bring the folder back; the figures need none of it.",
            )
        return
    if not are_ours:
        yield Finding(
            Check.ARTIFACTS,
            f"{name}: {files.path} holds the files of another experiment.",
            "Give --artifacts as it was trained with.",
        )
        return
    yield from _models(store, name, files, there)
    left = [file for file in there if _UNFINISHED_FILE.fullmatch(file.name)]
    done = {files.state(trial.study_name, trial.number): trial.outcome is not None for trial in facts}
    studies = {trial.study_name for trial in facts}
    for file in there:
        number = _STATE.fullmatch(file.name)
        is_state = number and file in {files.state(study, int(number[1])) for study in studies}
        if is_state and done.get(file, True):
            left.append(file)
    yield from _remove(left, "of trainings that have ended or were killed")


def _models(store: Store, name: str, files: Artifacts, there: Sequence[Location]) -> Iterator[Finding]:
    missing = []
    for offer in offers(Standing.read(store, name)):
        run = offer.run
        if run is not None and run.recipe is not None:
            model = files.model(run.study, run.number)
            if model not in there:
                missing.append(f"{offer.arm}, {offer.use.words} ({model})")
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
            f"{len(left)} {'file' if len(left) == 1 else 'files'} {whose}: {listed(map(str, left))}.",
            "deletes them",
            unlink,
        )
