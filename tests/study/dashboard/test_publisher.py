"""Keeping the dashboard current while an experiment runs: when, how often, and what an error does."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from study.dashboard import publisher as dashboard_publish
from study.dashboard.publisher import Publisher
from study.store.locations import Local
from study.store.store import Store
from vae.errors import FailureError

if TYPE_CHECKING:
    from tiny_study import Tiny

pytest_plugins = ["tiny_study"]


class Published:
    """Stands in for `publish`: counts, blocks until let go, fails when told to."""

    def __init__(self) -> None:
        self.times = 0
        self.threads: set[int] = set()
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None

    def __call__(self, *arguments: Any) -> None:  # noqa: ARG002
        self.times += 1
        self.threads.add(threading.get_ident())
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Published:
    """`publish` replaced, and no waiting between two publications."""
    stand_in = Published()
    monkeypatch.setattr(dashboard_publish, "publish", stand_in)
    monkeypatch.setattr(dashboard_publish, "INTERVAL", 0.0)
    monkeypatch.setattr(dashboard_publish, "SHARE", float("inf"))
    return stand_in


def publisher_of(tiny: Tiny, store: Store, said: list[str]) -> Publisher:
    return Publisher(store, tiny.name, Local(tiny.artifacts), None, said.append)


def begin_a_trial(store: Store) -> None:
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE trial_run SET attempt = attempt + 1 WHERE trial_id = 1")


def test_the_publisher_never_makes_the_launcher_wait(
    tiny: Tiny, tiny_store: Store, published: Published
) -> None:
    """Publishing goes on in another thread, one at a time, while the launcher comes back at once."""
    published.go.clear()
    publisher = publisher_of(tiny, tiny_store, [])
    for _ in range(5):
        publisher.maybe_publish()  # would not come back if it published here
    published.go.set()
    publisher.wait()
    assert published.times == 1
    assert threading.get_ident() not in published.threads


def test_the_publisher_rests_while_nothing_happens(
    tiny: Tiny, tiny_store: Store, published: Published
) -> None:
    """Only a trial that has begun or ended is news; at the end everything is published once more."""
    with publisher_of(tiny, tiny_store, []) as publisher:
        seen = []
        for news in (False, False, True, False):
            if news:
                begin_a_trial(tiny_store)
            publisher.maybe_publish()
            publisher.wait()
            seen.append(published.times)
        assert seen == [1, 1, 2, 2]
    assert published.times == 3


def test_the_publisher_keeps_its_interval(
    tiny: Tiny, tiny_store: Store, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """News is published at most every INTERVAL seconds, the first time INTERVAL after the start."""
    now = [1000.0]
    monkeypatch.setattr(dashboard_publish, "INTERVAL", 30.0)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    publisher = publisher_of(tiny, tiny_store, [])
    seen = []
    for second in range(0, 100, 5):
        now[0] = 1000.0 + second
        begin_a_trial(tiny_store)
        publisher.maybe_publish()
        publisher.wait()
        seen.append(published.times)
    assert seen.index(1) == 6
    assert seen.index(2) == 12
    assert seen[-1] == 3


def test_a_slow_publication_is_made_rarer(
    tiny: Tiny, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a publication costs, it takes at most a twentieth of a core."""
    now = [0.0]
    begun = []

    def slow(*arguments: Any) -> None:  # noqa: ARG001
        begun.append(now[0])
        now[0] += 10.0

    monkeypatch.setattr(dashboard_publish, "publish", slow)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "thread_time", lambda: now[0])
    publisher = publisher_of(tiny, tiny_store, [])
    while now[0] < 1000.0:
        now[0] += 1.0
        begin_a_trial(tiny_store)
        publisher.maybe_publish()
        publisher.wait()
    assert 4 <= len(begun) <= 6


def test_an_error_is_told_once_and_ends_nothing(tiny: Tiny, tiny_store: Store, published: Published) -> None:
    """A publication that fails is one line, told once; the next one is tried, and the launcher never sees it."""
    said: list[str] = []
    published.error = FailureError("the folder is full.")
    with publisher_of(tiny, tiny_store, said) as publisher:
        for _ in range(3):
            publisher.maybe_publish()
            publisher.wait()
    assert published.times == 4
    assert said == ["The dashboard is not up to date, the experiment goes on: the folder is full."]
    said.clear()
    published.error = KeyError("unforeseen")
    publisher_of(tiny, tiny_store, said).close()
    assert said == ["The dashboard is not up to date, the experiment goes on: KeyError: 'unforeseen'"]


def test_the_last_state_is_published_unless_the_command_failed(
    tiny: Tiny, tiny_store: Store, published: Published
) -> None:
    """Ctrl-C leaves the dashboard up to date; a failure is told without a publication before it."""
    with pytest.raises(SystemExit), publisher_of(tiny, tiny_store, []):
        raise SystemExit(130)
    assert published.times == 1
    with pytest.raises(FailureError), publisher_of(tiny, tiny_store, []):
        raise FailureError("the database is gone.")
    assert published.times == 1
