"""What has been run, read once: a later look reads what is new and says what a first look says."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import fake_training
import optuna
import pytest
from fake_study import expire
from fake_training import Finished

from study.protocol.history import History
from study.protocol.selection import State
from study.session import Session
from study.store import trials as store_trials
from study.store.trials import read_trials
from study.terms import Phase
from vae.errors import FailureError


def same_as_new(session: Session, state: State) -> None:
    """A look that builds on earlier ones equals one that reads everything."""
    fresh = State(session.store, session.experiment, session.workload)
    assert repr(state.runs) == repr(fresh.runs)  # NaN equals itself only in words
    assert state.known == fresh.known
    assert state.target == fresh.target
    for arm in ("baseline", *session.experiment.arms):
        assert repr(state.winner(arm, 1)) == repr(fresh.winner(arm, 1))


def test_every_look_says_what_a_first_one_says(tmp_path: Path) -> None:
    """Phase by phase, with a study deleted and planned anew, trials put back and taken over, and another planner at
    work meanwhile."""
    session = fake_training.prepare(tmp_path, arms=["twice", "same"], seeds=2, tune_seeds=2)
    other = fake_training.prepare(tmp_path, arms=["twice", "same"], seeds=2, tune_seeds=2)
    phases = 0
    with session.store as store, other.store:
        while not session.planner.advance():
            same_as_new(session, session.planner.observe())
            planner = other if phases % 2 else session
            planner.work(threading.Event(), sampler_seed=0)
            other.planner.advance()
            same_as_new(session, session.planner.observe())
            if phases == 2:
                optuna.delete_study(study_name="fake/twice", storage=store.optuna)
                same_as_new(session, session.planner.observe())
                assert not session.planner.observe().of("twice", Phase.TUNE)
            expire(store)
            phases += 1
        same_as_new(session, session.planner.observe())
    assert phases >= 4


def test_only_what_has_changed_is_read(tmp_path: Path) -> None:
    """After a phase the records of its trials are read, and of no other."""
    session = fake_training.prepare(tmp_path, arms=["twice"], seeds=2)
    with session.store as store:
        session.planner.advance()
        marks, first = read_trials(store, "fake", {})
        assert first.keys() == marks.keys()
        assert read_trials(store, "fake", marks) == (marks, {})
        session.work(threading.Event(), sampler_seed=0)
        later, changed = read_trials(store, "fake", marks)
        assert changed.keys() == {i for i in later if marks[i] != later[i]} == marks.keys()
        session.planner.advance()
        _, new = read_trials(store, "fake", later)
        assert len(new) == 5  # calibration
        assert not new.keys() & marks.keys()


def test_many_trials_are_asked_for_in_parts(tmp_path: Path, monkeypatch: Any) -> None:
    """Databases limit how many values one query may name."""
    session = fake_training.prepare(tmp_path, arms=["twice"], seeds=2)
    with session.store as store:
        session.run_here()
        whole = History(store, session.experiment, session.workload)
        monkeypatch.setattr(store_trials, "_AT_ONCE", 2)
        assert repr(History(store, session.experiment, session.workload).runs) == repr(whole.runs)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE trial_run SET outcome = 'won' WHERE number = 0",
        "UPDATE trial_user_attributes SET value_json = '3' WHERE key = 'space'",
        "UPDATE trial_user_attributes SET value_json = '{\"lr\": {\"low\": 2}}' WHERE key = 'space'",
        "UPDATE trial_run SET score = 'high' WHERE number = 0",
    ],
)
def test_a_trial_that_somebody_else_wrote_is_named(one_arm: Finished, tmp_path: Path, change: str) -> None:
    """What this program can't have written is one line with the trial in it."""
    folder = one_arm.copy(tmp_path)
    with closing(sqlite3.connect(folder / "optuna.db")) as database, database:
        database.execute(change)
    said = r"Trial 0 of fake/\S+ can't be read"
    with pytest.raises(FailureError, match=said) as refused, Finished(folder, {}).open():
        pass
    assert "\n" not in str(refused.value)
