"""Connections to a PostgreSQL server: few a worker, and a full server is waited for and named."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import sqlalchemy
from fake_study import Launcher, check_complete
from fake_training import FAKE, TECHNIQUES, pixels
from sqlalchemy import Engine, text

from study.design.build import Request
from study.place import Place
from study.session import Session
from study.store import records
from study.store.database import WORKER_CONNECTIONS
from study.store.locations import Local
from study.store.outage import Full
from study.store.store import Store


@contextmanager
def watched(url: str, counts: set[int]) -> Iterator[None]:
    """In this block `counts` gets how many other connections to the database the server has, again and again."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    over = threading.Event()

    def watch() -> None:
        with engine.connect() as connection:
            while not over.wait(0.002):
                counts.add(int(connection.execute(query).scalar_one()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        engine.dispose()


def test_a_worker_has_at_most_two_connections(prepared_postgresql_url: str, tmp_path: Path) -> None:
    """By the server's own count, while it plans, trains, renews its lease all the time, and ends."""
    place = Place(prepared_postgresql_url, Local(tmp_path / "artifacts"), None, "cpu", 1)
    values = {
        "data": pixels(tmp_path),
        "name": "fake",
        "budget": 1000.0,
        "techniques": TECHNIQUES,
        "arms": ["twice"],
    }
    values |= {"recipe": {"batch_size": 8}, "tune_trials": 1, "seeds": 2, "target": 20.0}
    with Session.prepare(place, Request(values, source="test"), FAKE).store:
        pass
    counts: set[int] = set()
    with watched(prepared_postgresql_url, counts):
        session = Session.join(place, "fake")
        session.trainer = FAKE
        with session.store:
            session.store.lease = 0.06  # renewed every 10 ms, where it is every 10 s
            session.run_here()
            assert records.remaining(session.store, "fake") == 0
            assert set(records.trials(session.store, "fake")["outcome"]) >= {"hit"}
    assert 1 <= max(counts) <= WORKER_CONNECTIONS


@pytest.fixture
def limited(postgresql_server: str) -> Iterator[tuple[str, Engine]]:
    """The URL of an empty database for a role that may have three connections, and the superuser's engine."""
    name = f"t{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(f"{postgresql_server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'limited' CONNECTION LIMIT 3"))
        connection.execute(text(f"CREATE DATABASE {name} OWNER {name}"))
    host = postgresql_server.rpartition("@")[2]
    yield f"postgresql+psycopg://{name}:limited@{host}/{name}", engine
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        connection.execute(text(f"DROP ROLE {name}"))
    engine.dispose()


def test_a_full_server_is_waited_for_and_named(
    limited: tuple[str, Engine], caplog: pytest.LogCaptureFixture
) -> None:
    """Opening waits until there is room; meanwhile one line says what is the matter and the way out."""
    url, _ = limited
    Store.open(url, create=True).close()
    others = sqlalchemy.create_engine(url)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(others.connect())
        said = threading.Event()
        opened: list[Store] = []

        class Listener(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
                said.set()

        listener = Listener()
        logging.getLogger("study.store.outage").addHandler(listener)
        opening = threading.Thread(target=lambda: opened.append(Store.open(url)))
        opening.start()
        assert said.wait(60)
        assert not opened
    others.dispose()
    opening.join(60)
    logging.getLogger("study.store.outage").removeHandler(listener)
    assert len(opened) == 1
    opened[0].close()
    (line,) = (record.getMessage() for record in caplog.records)
    assert "has no connection left: " in line
    assert "too many connections for role" in line
    assert "start fewer, or raise its max_connections. Trying again for 75 s." in line
    assert "limited" not in line


def test_a_full_server_in_the_middle_is_an_outage_that_passes(limited: tuple[str, Engine]) -> None:
    """Any work on the store says so, as what may be asked again."""
    url, _ = limited
    with Store.open(url, create=True) as store:
        store.disconnect()
        others = sqlalchemy.create_engine(url)
        with ExitStack() as held:
            for _ in range(3):
                held.enter_context(others.connect())
            with pytest.raises(Full) as caught, store.read():
                pass
            assert caught.value.passing
        others.dispose()
        assert store.experiments() == []


@pytest.mark.faults
def test_more_workers_than_a_server_has_room_for(limited: tuple[str, Engine], tmp_path: Path) -> None:
    """A launcher and four workers share three connections: every trial runs once, none fails or dies."""
    url, _ = limited
    launcher = Launcher(url, tmp_path, "--trials", "12", "--workers", "4", "--rows", "8", "--delay", "0.01")
    output = launcher.output()
    assert "done" in output, launcher.errors
    with Store.open(url) as store:
        check_complete(store, "digits", 12, 8)
        assert set(records.trials(store, "digits")["died"]) == {0}
