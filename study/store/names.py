"""Names of experiments: which can be one, wherever it comes from."""

from __future__ import annotations

import os

from vae.errors import UserError

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
