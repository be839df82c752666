"""The right to plan and enqueue: one process at a time, and a dead holder's right ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from study.store.keepalive import Keepalive, LeaseLost
from study.store.owner import is_gone, new_owner
from study.store.schema import setup_lease, unix_now
from study.store.store import LEASE, Store

_POLL = 0.05


@contextmanager
def setup_lock(store: Store) -> Iterator[Callable[[Connection], None]]:
    """Hold the right to plan and enqueue in this block; waits for it. Raises FailureError.

    What it gives, called in a transaction, holds the right until that ends, and raises LeaseLost where somebody else
    has it by now: this process was stopped, or cut off, for longer than its lease."""
    owner = new_owner()
    while not store.ride_out(lambda: _take(store, owner)):
        time.sleep(_POLL)
    try:
        with Keepalive(lambda: _renew(store, owner), store.lease, "the right to plan"):
            yield lambda connection: _require(connection, owner)
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


def _require(connection: Connection, owner: str) -> None:
    held = select(setup_lease.c.owner).where(setup_lease.c.id == 1).with_for_update()
    if connection.execute(held).scalar() != owner:
        raise LeaseLost("the right to plan")


def _renew(store: Store, owner: str) -> None:
    mine = setup_lease.update().where(setup_lease.c.owner == owner)
    with store.write() as connection:
        connection.execute(mine.values(lease_expires=unix_now() + store.lease))


def _give_back(store: Store, owner: str) -> None:
    with store.write() as connection:
        connection.execute(setup_lease.delete().where(setup_lease.c.owner == owner))
