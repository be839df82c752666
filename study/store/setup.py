"""The right to plan and enqueue: one process at a time, and a dead holder's right ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from study.store.keepalive import Keepalive
from study.store.owner import is_gone, new_owner
from study.store.schema import setup_lease, unix_now
from study.store.store import LEASE, Store

_POLL = 0.05


@contextmanager
def setup_lock(store: Store) -> Iterator[None]:
    """Hold the right to plan and enqueue in this block; waits for it. Raises FailureError."""
    owner = new_owner()
    while not store.ride_out(lambda: _take(store, owner)):
        time.sleep(_POLL)
    try:
        with Keepalive(lambda: _renew(store, owner), store.lease, "the right to plan"):
            yield
    finally:
        store.ride_out(lambda: _give_back(store, owner))


def _take(store: Store, owner: str) -> bool:
    """Whether the right is this owner's now."""
    try:
        with store.write() as connection:
            held = connection.execute(
                select(
                    setup_lease.c.owner,
                    (setup_lease.c.lease_expires < unix_now()).label("expired"),
                    (setup_lease.c.lease_expires > unix_now() + 2 * LEASE).label("ahead"),
                )
                .where(setup_lease.c.id == 1)
                .with_for_update()
            ).one_or_none()
            if held is not None:
                # Its own: taken just before the connection was cut.
                if held.owner != owner and not held.expired and not is_gone(held.owner):
                    if held.ahead:  # written before the clock was set back
                        connection.execute(setup_lease.update().values(lease_expires=unix_now() + LEASE))
                    return False
                connection.execute(setup_lease.delete())
            expires = unix_now() + store.lease
            connection.execute(setup_lease.insert().values(id=1, owner=owner, lease_expires=expires))
    except IntegrityError:  # PostgreSQL: another process came first
        return False
    return True


def _renew(store: Store, owner: str) -> None:
    mine = setup_lease.update().where(setup_lease.c.owner == owner)
    with store.write() as connection:
        connection.execute(mine.values(lease_expires=unix_now() + store.lease))


def _give_back(store: Store, owner: str) -> None:
    with store.write() as connection:
        connection.execute(setup_lease.delete().where(setup_lease.c.owner == owner))
