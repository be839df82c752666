"""A worker: runs the trials of a name one after another, and knows whose fault it is when one doesn't end."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable

import optuna

from study.store.claims import Claim, next_claim
from study.store.keepalive import Keepalive, LeaseLost
from study.store.outage import Outage, Patience, is_outage
from study.store.records import remaining
from study.store.store import Store
from vae.errors import FailureError

_POLL = 0.3
_NO_PLACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

_log = logging.getLogger(__name__)

RunTrial = Callable[[Claim, Callable[[], bool]], None]


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """Raised by a trial that was asked to stop, has saved its checkpoint and has released its claim."""


def work(
    store: Store,
    name: str,
    run_trial: RunTrial,
    *,
    owner: str,
    make_study: Callable[[str], optuna.Study],
    stop: threading.Event,
    until: Callable[[], bool] | None = None,
) -> int:
    """Run the trials of NAME one at a time until none is left; returns how many this worker finished.

    `run_trial(claim, stop_requested)` finishes or releases its claim; an exception finishes the trial as
    failed with `TypeName: message` as the reason. While others still run, it waits: they may die. With
    `until` it also waits for more to be planned, until that returns True. `stop` ends it after the running
    trial has ended or put itself back.
    Where the database fails, the trial is put back, not failed, and goes on when the database answers again. Raises
    FailureError where that doesn't help or takes longer than a restart of the server, or where the disk fails.
    """
    studies: dict[str, optuna.Study] = {}

    def study_of(study_name: str) -> optuna.Study:
        if study_name not in studies:
            studies[study_name] = make_study(study_name)
        return studies[study_name]

    patience = Patience(store.disconnect)
    finished = 0
    while not stop.is_set():
        try:
            with store.database.explained():
                claim = next_claim(store, name, owner, study_of)
                over = claim is None and remaining(store, name) == 0 and (until is None or until())
            patience.answered()
            if claim is not None:
                finished += _run(store, claim, run_trial, stop)
        except Outage as outage:
            patience.wait(outage)
            continue
        if over:
            break
        if claim is None:
            studies.clear()  # a study may be deleted and made anew under its name meanwhile
            # Not stop.wait(): a signal handler that sets the event its own thread waits on can hang.
            time.sleep(_POLL)
    return finished


def _run(store: Store, claim: Claim, run_trial: RunTrial, stop: threading.Event) -> int:
    """Run one claimed trial; 1 if it was finished here, 0 if it was lost or put back."""
    keepalive = Keepalive(claim.renew, store.lease, f"trial {claim.number} of {claim.study_name}")

    def stop_requested() -> bool:
        if keepalive.lost.is_set():
            raise LeaseLost
        return stop.is_set()

    try:
        with keepalive:
            try:
                run_trial(claim, stop_requested)
                if claim.open:
                    claim.fail("the trial ended without a result")
            except Exception as error:
                reason = _reason(store, claim, error)
                _log.warning("trial %d of %s failed", claim.number, claim.study_name, exc_info=True)
                claim.fail(reason)
        return 1
    except (LeaseLost, Interrupted):
        return 0
    finally:
        if claim.open:
            _put_back(store, claim)


def _reason(store: Store, claim: Claim, error: Exception) -> str:
    """Why the trial failed; raises where it isn't the trial that failed."""
    if isinstance(error, LeaseLost | Interrupted):
        raise error
    if is_outage(error):
        raise error if isinstance(error, Outage) else store.database.explain(error) from error
    if isinstance(error, OSError) and error.errno in _NO_PLACE:
        raise FailureError(f"{error.filename or 'A file'} can't be written: {error.strerror}.") from error
    if isinstance(error, FailureError) or not claim.open:
        raise error
    return f"{type(error).__name__}: {error}"[:1000]


def _put_back(store: Store, claim: Claim) -> None:
    try:
        with store.database.explained():
            claim.release()
    except LeaseLost:
        return  # somebody else has it already
    except Outage as outage:
        _log.warning("trial %d of %s can't be put back: %s", claim.number, claim.study_name, outage)
