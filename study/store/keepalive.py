"""Keeping a lease: a thread that renews it while its holder works."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from vae.errors import FailureError

_log = logging.getLogger(__name__)


class LeaseLost(Exception):  # noqa: N818 - an event, not an error: somebody else holds it now
    """What this lease was for belongs to somebody else by now, or is finished or deleted: stop and write nothing."""


class Keepalive:
    """While its block lasts, `renew` is called six times a lease, in a thread of its own.

    `lost` is set once `renew` raises LeaseLost. Where the database is locked or out of reach for a while, the next
    try may get through: it comes within a second.
    """

    def __init__(self, renew: Callable[[], None], lease: float, what: str) -> None:
        self.lost = threading.Event()
        self._renew = renew
        self._interval = lease / 6
        self._what = what
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _keep(self) -> None:
        wait = self._interval
        while not self._done.wait(wait):
            try:
                self._renew()
                wait = self._interval
            except LeaseLost:
                self.lost.set()
                return
            except (FailureError, SQLAlchemyError) as error:
                _log.warning("the lease of %s was not renewed: %s", self._what, error)
                wait = min(1.0, self._interval)
