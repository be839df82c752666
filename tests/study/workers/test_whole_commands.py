"""What a whole command says and how it ends where its place is taken away, or where Ctrl-C is pressed twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_study import alive, scalar, wait_for

from study.store import records
from study.store.store import Store
from study.workers.launch import Ended
from study.workers.processes import this_program


class Search:
    """A search of real trainings in a process of its own, in an empty folder, as from a terminal."""

    def __init__(self, folder: Path, *, epochs: int, trials: int) -> None:
        self.folder = folder
        options = ["--trials", str(trials), "--budget", str(epochs), "--workers", "1", "--threads", "1"]
        small = ["--set", "hidden=[16]", "--set", "latent_size=3", "--pruner", "none", "--sampler", "random"]
        self.process = subprocess.Popen(
            this_program("search", "--data", "digits", *options, *small),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'optuna.db'}"

    def begun(self) -> None:
        """Wait until a trial has rows."""
        wait_for((self.folder / "optuna.db").exists, 120)
        with Store.open(self.url) as store:
            wait_for(lambda: scalar(store, "SELECT count(*) FROM curve") > 0, 120)

    def ended(self) -> tuple[int, str, str]:
        """Its exit code, and what it wrote to stdout and to stderr."""
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


@pytest.fixture
def long_search(tmp_path: Path) -> Iterator[Search]:
    """A search that has begun and would go on for long."""
    search = Search(tmp_path, epochs=2000, trials=9)
    try:
        search.begun()
        yield search
    finally:
        if search.process.poll() is None:
            search.process.kill()
            search.process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no file that is open")
@pytest.mark.timeout(300)
def test_a_database_deleted_under_a_search_ends_it_in_one_line(long_search: Search) -> None:
    """Exit code 1, one line that says what happened and the way out, no traceback, and no new file."""
    (long_search.folder / "optuna.db").unlink()
    code, _, err = long_search.ended()
    assert code == 1
    assert [line for line in err.splitlines() if "was deleted or replaced while it was in use" in line]
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    assert not (long_search.folder / "optuna.db").exists()


@pytest.mark.timeout(300)
def test_artifacts_deleted_under_a_search_lose_nothing_of_the_record(tmp_path: Path) -> None:
    """The folder is made again for what is still to come: the search ends well with every trial and curve."""
    search = Search(tmp_path, epochs=20, trials=4)
    search.begun()
    shutil.rmtree(tmp_path / "artifacts")
    code, out, err = search.ended()
    assert code == 0, err
    assert "Traceback" not in out + err
    with Store.open(search.url) as store:
        assert set(records.trials(store, "digits")["state"]) == {"COMPLETE"}


@pytest.mark.timeout(300)
def test_ctrl_c_twice_says_that_running_trials_were_not_saved(long_search: Search) -> None:
    """A second Ctrl-C that comes before the workers have put their trials back kills them: exit code 130, what that
    means for the trials, and the line to go on with."""
    with Store.open(long_search.url) as store:
        (worker,) = {int(owner.split(":")[1]) for owner in records.trials(store, "digits")["owner"].dropna()}
    os.kill(worker, signal.SIGSTOP)  # so that it can't react to the first
    long_search.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        long_search.process.wait(timeout=2)
    long_search.process.send_signal(signal.SIGINT)
    code, out, err = long_search.ended()
    said = " ".join((out + err).split())
    assert code == 130
    assert Ended.KILLED.sentence in said
    assert "To go on:" in said
    assert "Traceback" not in said
    assert not alive(worker)
