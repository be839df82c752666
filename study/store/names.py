"""Names of experiments: which can be one, wherever it comes from."""

from __future__ import annotations

import os

from study.terms import StudyName
from vae.errors import UserError

_LONGEST = 200


def is_study(text: str) -> bool:
    """Whether an Optuna study may be one of an experiment of ours, by its name."""
    name = StudyName.parse(text)
    return name is not None and _is_name(name.arm)


def require_name(name: str, what: str) -> str:
    """The name, which is a study's and a folder's; `what` says whose it is. Raises UserError.

    A database may come from anybody: a path is only ever made of a name that was looked at here.
    """
    if not _is_name(name):
        raise UserError(
            f"{what} {name!r} must have 1 to {_LONGEST} characters, no '/', and can't be '.' or '..'."
        )
    return name


def _is_name(name: str) -> bool:
    separators = {"/", os.sep, os.altsep or "/", "\0"}
    return bool(name) and len(name) <= _LONGEST and name not in (".", "..") and not separators & set(name)
