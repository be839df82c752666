"""Fixtures: a made-up experiment and what its report is computed from. Test modules have them by
`pytest_plugins`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from report_data import FEW, NAME, large_experiment

from study.analysis.evidence import Evidence, read
from study.store.store import Store


@pytest.fixture(scope="session")
def made_up_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of five arms and a search, all that the report can show but a model; not to be changed."""
    path = tmp_path_factory.mktemp("made-up") / "optuna.db"
    large_experiment(f"sqlite:///{path}", FEW, seeds=5, search_trials=40, evaluations=60).close()
    return path


@pytest.fixture(scope="session")
def made_up(made_up_file: Path) -> Iterator[Evidence]:
    with Store.open(f"sqlite:///{made_up_file}", read_only=True) as store:
        yield read(store, NAME)


@pytest.fixture
def changed(made_up_file: Path, tmp_path: Path) -> Path:
    """A copy of the made-up database, to be changed."""
    path = tmp_path / "optuna.db"
    with closing(sqlite3.connect(made_up_file)) as before, closing(sqlite3.connect(path)) as after:
        before.backup(after)
        after.execute("PRAGMA journal_mode=WAL")
    return path


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'new.db'}", create=True) as store:
        yield store
