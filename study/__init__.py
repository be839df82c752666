"""Decides what to train, compare and tell: `python -m study`, and from Python:

    import study

    comparison = study.run(data="digits", arms=["cosine", "output-bias"])   # trains, or goes on where it was
    comparison                                                              # a notebook shows the table
    with study.open("sqlite:///optuna.db") as experiments:                  # reads: nothing is trained
        comparison = experiments.comparison("digits")

A comparison has `.arms` (a DataFrame, one row an arm), `.verdicts`, `.sentences` and `.notes`. Everything else is in
the modules, documented there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time they are imported when one is first asked for: torch and pandas take seconds
    from study.notebook import Answer, Experiments, open, run

__all__ = ["Answer", "Experiments", "open", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'study' has no attribute '{name}'")
    return getattr(import_module("study.notebook"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
