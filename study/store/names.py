"""Names of experiments: which can be one, wherever it comes from, and which is meant."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vae.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from study.store.store import Store

_LONGEST = 200


def require_name(name: str, what: str) -> str:
    """The name, which is a study's and a folder's; `what` says whose it is. Raises UserError.

    A database may come from anybody: a path is only ever made of a name that was looked at here.
    """
    separators = {"/", os.sep, os.altsep or "/", "\0"}
    if not name or len(name) > _LONGEST or name in (".", "..") or separators & set(name):
        raise UserError(
            f"{what} {name!r} must have 1 to {_LONGEST} characters, no '/', and can't be '.' or '..'."
        )
    return name


def pick_name(store: Store, name: str | None) -> str:
    """The experiment meant: the given one, or the only one. Raises UserError listing what there is."""
    names = store.experiments()
    if name is None and len(names) == 1:
        return require_name(names[0], f"{store.database.name}: the experiment's name")
    if name in names:
        assert name is not None
        return require_name(name, "--name")
    listed = ", ".join(names) or "none"
    if name is None:
        raise UserError(f"Which experiment? Give --name. Experiments in {store.database.name}: {listed}.")
    raise UserError(f"No experiment '{name}' in {store.database.name}. {did_you_mean(name, names)}")
