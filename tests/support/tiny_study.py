"""Fixtures: a small real experiment and a client of the dashboard, for the tests of what is shown of it.

A test module has them by `pytest_plugins = ["tiny_study"]` and imports nothing else from here: pytest warns
about a plugin that is there already.
"""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import threading
import wsgiref.util
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optuna
import optuna_dashboard
import pytest
from sklearn.datasets import load_digits

from study.dashboard.publisher import publish
from study.dashboard.server import Dashboard
from study.design.build import Request
from study.place import Place
from study.session import Session
from study.store import records
from study.store.locations import Local, locate
from study.store.store import Store


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

    def images(self) -> dict[str, tuple[bytes, int]]:
        """The published image files: name -> content and time of the last change."""
        files = (self.artifacts / "dashboard").iterdir()
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

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


class Client:
    """A browser's requests to a WSGI application, without the browser."""

    def __init__(self, application: Dashboard) -> None:
        self.application = application

    def request(
        self, path: str, method: str = "GET", body: Any = None, host: str = "127.0.0.1:8080", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        path, _, query = path.partition("?")
        sent = b"" if body is None else json.dumps(body).encode()
        environ: dict[str, Any] = {"PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": method}
        environ |= {"HTTP_HOST": host, "wsgi.input": io.BytesIO(sent), "CONTENT_LENGTH": str(len(sent))}
        environ |= {"CONTENT_TYPE": "application/json"}
        environ |= {f"HTTP_{key.upper()}": value for key, value in headers.items()}
        wsgiref.util.setup_testing_defaults(environ)
        started: list[tuple[str, dict[str, str]]] = []

        def start_response(status: str, found: list[tuple[str, str]], exc_info: Any = None, /) -> Any:  # noqa: ARG001
            started.append((status, dict(found)))

        answer = self.application(environ, start_response)
        content = b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()
        status, found = started[-1]
        return int(status.split()[0]), found, content

    def get(self, path: str) -> Any:
        status, _, content = self.request(path)
        assert status == 200, (path, content)
        return json.loads(content)

    def study(self, study_name: str) -> Any:
        return self.get(f"/api/studies/{self.study_id(study_name)}")

    def study_id(self, study_name: str) -> int:
        found = self.get("/api/studies")["study_summaries"]
        return next(int(study["study_id"]) for study in found if study["study_name"] == study_name)


Open = Callable[..., Client]


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Search and comparison of the digits, run to their end and published before every phase and at last; not to
    be changed."""
    tiny = Tiny(tmp_path_factory.mktemp("tiny"))
    digits = load_digits()
    data = tiny.folder / tiny.hostile
    with data.open("wb") as file:
        np.save(file, (digits.images / 16.0).astype(np.float32))
    place = Place(tiny.url, Local(tiny.artifacts), None, "cpu", 1)
    values = {
        "data": str(data),
        "name": tiny.name,
        "budget": 1,
        "arms": list(tiny.arms),
        "tune_trials": 2,
        "seeds": 3,
    }
    session = Session.prepare(place, Request(values | {"search": {"trials": 3}}, source="test"))
    with session.store as store:
        while not session.planner.advance():
            publish(store, tiny.name, Local(tiny.artifacts), None)
            tiny.stages.append(tiny.note(store, "baseline"))
            session.work(threading.Event(), sampler_seed=0)
        # As `Session.time_arms` leaves it, without its 15 seconds.
        for arm, factor in (("cosine", 1.0), ("muon", 0.5), ("article", 2.0), ("search-best", 1.0)):
            for pair in range(5):
                records.add_throughput(
                    store,
                    tiny.name,
                    arm,
                    pair,
                    examples_per_second=1000.0 * factor + pair,
                    baseline_examples_per_second=1000.0 - pair,
                    cold_start_seconds=0.01,
                )
        publish(store, tiny.name, Local(tiny.artifacts), None)
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


@pytest.fixture
def open_dashboard(tmp_path: Path) -> Iterator[Open]:
    """Opens the dashboard of a database as `serve` does."""
    opened: list[Any] = []

    def open_dashboard(
        url: str, artifacts: Path | str = tmp_path / "artifacts", local: bool = True
    ) -> Client:
        store = Store.open(url, read_only=True)
        dashboard = Dashboard(store, locate(str(artifacts)), local=local, say=print)
        opened.extend([dashboard, store])
        return Client(dashboard)

    yield open_dashboard
    for part in opened:
        part.__exit__()
