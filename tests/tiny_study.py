"""Fixtures: a small real experiment, for the tests of what is shown of it.

A test module has them by `pytest_plugins = ["tiny_study"]` and imports nothing else from here: pytest warns
about a plugin that is there already.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import optuna
import optuna_dashboard
import pytest
from sklearn.datasets import load_digits

from study.dashboard_publish import publish
from study.session import Place, Session
from study.storage import Store


@dataclass(frozen=True)
class Tiny:
    """An experiment's database and files; `stages` are the baseline's notes after each phase."""

    folder: Path
    stages: list[str] = field(default_factory=list)

    name: ClassVar[str] = "tiny"
    arms: ClassVar[tuple[str, ...]] = ("cosine", "muon")
    #: The one text of an experiment that may hold anything: its data's path, which the answer's sentences quote.
    hostile: ClassVar[str] = (
        "<img src=x onerror=window.pwned=1> **b** [l](javascript:window.pwned=1) | `c` $x$ &lt;.npy"
    )

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'optuna.db'}"

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    def note(self, store: Store, part: str) -> str:
        """The note of the study NAME/part, as the dashboard reads it."""
        study = optuna.load_study(study_name=f"{self.name}/{part}", storage=store.optuna)
        note: str = optuna_dashboard.get_note(study)
        return note

    def copy(self, folder: Path) -> Tiny:
        """The same in another folder, to be changed."""
        path = folder / "optuna.db"
        with (
            closing(sqlite3.connect(self.folder / "optuna.db")) as before,
            closing(sqlite3.connect(path)) as after,
        ):
            before.backup(after)
            after.execute("PRAGMA journal_mode=WAL")
        shutil.copytree(self.artifacts, folder / "artifacts")
        return Tiny(folder, self.stages)


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Search and comparison of the digits, run to their end and published before every phase and at last; not to
    be changed."""
    tiny = Tiny(tmp_path_factory.mktemp("tiny"))
    digits = load_digits()
    data = tiny.folder / tiny.hostile
    with data.open("wb") as file:
        np.save(file, (digits.images / 16.0).astype(np.float32))
    place = Place(tiny.url, tiny.artifacts, None, "cpu", 1)
    values = {
        "data": str(data),
        "name": tiny.name,
        "budget": 1,
        "arms": list(tiny.arms),
        "tune_trials": 2,
        "seeds": 3,
    }
    session = Session.prepare(place, values | {"search": {"trials": 3}}, {}, "test")
    with session.store as store:
        while not session.planner.advance():
            publish(store, tiny.name, tiny.artifacts, None)
            tiny.stages.append(tiny.note(store, "baseline"))
            session.work(threading.Event(), sampler_seed=0)
        # As `Session.time_arms` leaves it, without its 15 seconds.
        for arm, factor in (("cosine", 1.0), ("muon", 0.5), ("article", 2.0), ("search-best", 1.0)):
            for pair in range(5):
                store.add_throughput(
                    tiny.name,
                    arm,
                    pair,
                    examples_per_second=1000.0 * factor + pair,
                    baseline_examples_per_second=1000.0 - pair,
                    cold_start_seconds=0.01,
                )
        publish(store, tiny.name, tiny.artifacts, None)
    return tiny


@pytest.fixture
def tiny(finished_study: Tiny, tmp_path: Path) -> Tiny:
    """The finished experiment in a folder of its own."""
    return finished_study.copy(tmp_path)


@pytest.fixture
def tiny_store(tiny: Tiny) -> Iterator[Store]:
    """Its database, open for writing."""
    with Store.open(tiny.url) as store:
        yield store
