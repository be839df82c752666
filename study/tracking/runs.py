"""What a tracker is told of a trial, and the small interface that a tracker is written to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

from study.store import records
from study.store.store import Store

#: Columns of a curve that become metrics.
METRICS = (
    "valid_loss",
    "train_loss",
    "rate",
    "distortion",
    "active_units",
    "lr",
    "beta",
    "grad_norm",
    "train_seconds",
)
#: Columns of a trial that become its results.
RESULTS = (
    "best_valid_loss",
    "test_loss",
    "target",
    "examples_to_target",
    "score",
    "train_seconds",
    "wall_seconds",
)
_TAGS = ("arm", "block", "phase", "seed", "number", "outcome", "device", "host", "data_fingerprint")
#: Trials whose curves are read at a time.
_AT_ONCE = 50


@dataclass(frozen=True)
class Point:
    """One evaluation of a trial."""

    examples: int
    time: float
    """Unix seconds: when the trial was begun, and the seconds that it had trained."""
    metrics: Mapping[str, float]
    """Those that it has, losses in nats per example; a diverged one has no loss."""


@dataclass(frozen=True)
class TrackedRun:
    """A finished trial as one run of a tracker."""

    key: str
    """Twelve hexadecimal digits: the same trial has the same at every time, another trial has another."""
    name: str
    """For people: ARM-PHASE-NUMBER."""
    tags: Mapping[str, str]
    params: Mapping[str, str | float | bool]
    """The fields of its recipe."""
    started: float
    finished: float
    failed: bool
    results: Mapping[str, float]
    curve: tuple[Point, ...]


class Tracker(Protocol):
    """Where runs are written. It may raise anything its library raises."""

    @property
    def place(self) -> str:
        """Where that is, for a message; no password in it."""

    def known(self) -> Container[str]:
        """The keys of the runs that are there already, whole."""

    def write(self, run: TrackedRun) -> None:
        """Write one run; what an earlier write of it has left unfinished is replaced."""


def finished_runs(store: Store, name: str, known: Container[str]) -> Iterator[TrackedRun]:
    """The finished trials of NAME whose key isn't known, in order of study and number. Raises FailureError."""
    trials = records.trials(store, name)
    rows = [row for row in trials[trials["outcome"].notna()].to_dict("records") if _key(row) not in known]
    for first in range(0, len(rows), _AT_ONCE):
        part = rows[first : first + _AT_ONCE]
        curves = records.curves(store, name, [int(row["trial_id"]) for row in part])
        by_trial = dict(iter(curves.groupby("trial_id")))
        for row in part:
            yield _run(name, row, by_trial.get(row["trial_id"]))


def _key(row: Mapping[Any, Any]) -> str:
    # A trial of the same number that was begun at another time is another: its experiment was deleted and made anew.
    what = f"{row['study_name']} {row['number']} {row['started']!r}"
    return hashlib.sha256(what.encode()).hexdigest()[:12]


def _run(name: str, row: Mapping[Any, Any], curve: pd.DataFrame | None) -> TrackedRun:
    started = float(row["started"])
    recipe = row["recipe"]
    fields: dict[str, Any] = json.loads(recipe) if isinstance(recipe, str) else {}
    return TrackedRun(
        key=_key(row),
        name=f"{row['arm']}-{row['phase']}-{row['number']}",
        tags={"experiment": name} | {tag: str(row[tag]) for tag in _TAGS if not pd.isna(row[tag])},
        params={key: _plain(value) for key, value in fields.items()},
        started=started,
        finished=started if pd.isna(row["finished"]) else float(row["finished"]),
        failed=row["state"] == "FAIL",
        results={key: float(row[key]) for key in RESULTS if not pd.isna(row[key])},
        curve=() if curve is None else tuple(_points(curve, started)),
    )


def _points(curve: pd.DataFrame, started: float) -> Iterator[Point]:
    for row in curve.to_dict("records"):
        seconds = row["train_seconds"]
        metrics = {metric: float(row[metric]) for metric in METRICS if not pd.isna(row[metric])}
        yield Point(int(row["examples"]), started + (0.0 if pd.isna(seconds) else float(seconds)), metrics)


def _plain(value: Any) -> str | float | bool:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)
