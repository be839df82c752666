"""Trials that are to be run, put into the database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from study.store import optuna_private
from study.store.schema import studies
from study.store.store import Store


def enqueue(
    store: Store,
    waiting: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]],
    require: Callable[[Connection], None],
) -> None:
    """Enqueue (study's name, parameters, user attributes), numbered within each study in this order: all of them or,
    where the process dies, the database fails or `require`, called in the same transaction, raises, none. A study that
    was deleted meanwhile is passed over."""
    if not waiting:
        return
    names = {name for name, _, _ in waiting}
    with store.write() as connection:
        require(connection)
        found = connection.execute(
            select(studies.c.study_name, studies.c.study_id).where(studies.c.study_name.in_(names))
        )
        ids = {str(row.study_name): int(row.study_id) for row in found}
        told = [(ids[name], params, attributes) for name, params, attributes in waiting if name in ids]
        optuna_private.enqueue(connection, told)
