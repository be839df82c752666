"""Each touch of Optuna's private parts by name, and what breaks where a new Optuna has changed it."""

from __future__ import annotations

import ast
import inspect
import math
import time
from pathlib import Path

import optuna
import optuna_dashboard
import plotly.graph_objects as go
import pytest
import sqlalchemy
from fake_study import finish, load, plan, row, take
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb.models import TrialIntermediateValueModel
from optuna.trial import TrialState

import study
from study.store import optuna_private, records
from study.store.enqueue import enqueue
from study.store.optuna_private import REMEMBERED_SECONDS, DraftStudy, RememberingStudy
from study.store.schema import OPTUNA_REVISION
from study.store.store import Store

#: Attributes of Optuna's own that begin with one underscore, and the two modules, as the source names them.
TOUCHES = {
    "_trial_id",
    "_cached_frozen_trial",
    "_study_id",
    "_storage",
    "_thread_local",
    "_get_trials",
    "_add_trials_to_cache",
}
MODULES = {"optuna.storages._cached_storage", "optuna.storages._rdb.models"}


def private_names(path: Path) -> tuple[set[str], set[str]]:
    """(attributes of others that begin with one underscore, private modules imported) of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {
        target.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
    }
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    modules = {
        node.module or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and "._" in (node.module or "")
    }
    return names - (own - TOUCHES), modules


def test_optunas_private_parts_live_in_one_file() -> None:
    """No other file names them, and this list names all that one file touches."""
    for path in Path(study.__path__[0]).rglob("*.py"):
        names, modules = private_names(path)
        if path == Path(optuna_private.__file__):
            assert names & TOUCHES == TOUCHES
            assert modules == MODULES
        else:
            assert not names & TOUCHES, path
            assert not modules, path


def test_the_tables_that_are_read_are_those_of_the_installed_optuna(prepared_sqlite_url: str) -> None:
    """`OPTUNA_REVISION`: what a reader takes Optuna's tables for is what Optuna makes them, and it reads them without
    Optuna's storage, which there is when it is asked for."""
    with Store.open(prepared_sqlite_url) as store:
        assert store.optuna.get_head_version() == OPTUNA_REVISION
        optuna.create_study(study_name="digits/a", storage=store.optuna)
    with Store.open(prepared_sqlite_url, read_only=True) as reader:
        assert list(records.study_ids(reader, "digits")) == ["digits/a"]
        assert reader.optuna is reader.optuna
        assert optuna.load_study(study_name="digits/a", storage=reader.optuna).trials == []


def test_a_trial_knows_its_id_and_its_reports(store: Store) -> None:
    """`Trial._trial_id`, `Trial._cached_frozen_trial`: its own pruner sees a report that is not written yet."""
    pruner = optuna.pruners.ThresholdPruner(upper=1.0)
    optuna_study = optuna.create_study(study_name="digits/a", storage=store.optuna, pruner=pruner)
    trial = optuna_study.ask()
    assert optuna_private.trial_id(trial) == optuna_study.trials[0]._trial_id
    assert not trial.should_prune()
    optuna_private.reports(trial)[3] = 2.0
    assert trial.should_prune()
    assert optuna_study.trials[0].intermediate_values == {}


def test_reports_are_stored_as_optuna_stores_them(store: Store) -> None:
    """`TrialIntermediateValueModel`: its columns, and how it stores infinities and NaN."""
    optuna_study = plan(store, "digits/a", 1)
    claim = take(store, "elsewhere:1:1-x")
    columns = {column.name for column in sqlalchemy.inspect(TrialIntermediateValueModel).columns}
    written = {"trial_id", "step", "intermediate_value", "intermediate_value_type"}
    assert columns == written | {"trial_intermediate_value_id"}
    reported = [(1, 2.5), (2, math.inf), (3, -math.inf), (4, math.nan)]
    with store.write() as connection:
        optuna_private.write_reports(connection, claim.trial_id, reported)
    found = optuna_study.trials[0].intermediate_values
    assert math.isnan(found.pop(4))
    assert found == {1: 2.5, 2: math.inf, 3: -math.inf}


def test_trials_are_enqueued_as_optuna_enqueues_them(store: Store) -> None:
    """`StudyModel`, `TrialModel`, `TrialSystemAttributeModel`, `TrialUserAttributeModel`: numbered on from those that
    are there, study by study, equal to Optuna's own in all that it reads, and suggested from."""
    told = [
        ({"lr": 0.25, "kind": "a"}, {"arm": "a", "seed": 7, "deep": [1, None]}),
        ({}, {}),
        ({"lr": 1.0}, {"arm": "b"}),
    ]
    theirs = optuna.create_study(study_name="digits/theirs", storage=store.optuna)
    names = ["digits/a", "digits/b"]
    ours = [plan(store, name, 1) for name in names]
    for params, attributes in told:
        theirs.enqueue_trial(params, user_attrs=attributes)
    enqueue(store, [(name, *each) for each in told for name in names], lambda _: None)
    enqueue(store, [("digits/deleted-meanwhile", {}, {})], lambda _: None)
    enqueue(store, [], lambda _: None)
    for optuna_study in ours:
        found = optuna_study.trials[1:]
        assert [trial.number for trial in found] == [1, 2, 3]
        for mine, other in zip(found, theirs.trials, strict=True):
            for part in (
                "state",
                "params",
                "user_attrs",
                "system_attrs",
                "datetime_start",
                "datetime_complete",
            ):
                assert getattr(mine, part) == getattr(other, part)
    trial_id = ours[0].trials[1]._trial_id
    started = optuna_private.start_trial(load(store)("digits/a"), trial_id, waiting=True)
    assert started is not None
    assert started.suggest_float("lr", 0.0, 1.0) == 0.25
    assert started.suggest_categorical("kind", ["b", "a"]) == "a"


def test_attributes_are_written_as_optuna_writes_them(store: Store) -> None:
    """One that is there is replaced, the others stay; none is nothing."""
    optuna_study = plan(store, "digits/a", 2)
    claim = take(store, "elsewhere:1:1-x")
    claim.trial.set_user_attr("kept", 1)
    claim.trial.set_user_attr("replaced", "before")
    with store.write() as connection:
        optuna_private.write_attributes(connection, claim.trial_id, {})
        optuna_private.write_attributes(connection, claim.trial_id, {"replaced": [2.5], "new": None})
    assert optuna_study.trials[0].user_attrs == {"kept": 1, "replaced": [2.5], "new": None}
    assert optuna_study.trials[1].user_attrs == {}


def test_a_certain_trial_can_be_started(store: Store) -> None:
    """`Study._storage`, `Study._study_id`, `_CachedStorage._add_trials_to_cache`: a trial that wasn't asked for
    runs, takes parameters, and is told; a deleted one or one that another runs is none."""
    optuna_study = plan(store, "digits/a", 2)
    assert isinstance(optuna_study._storage, _CachedStorage)
    assert list(inspect.signature(_CachedStorage._add_trials_to_cache).parameters) == [
        "self",
        "study_id",
        "trials",
    ]
    first, second = (trial._trial_id for trial in optuna_study.trials)
    trial = optuna_private.start_trial(load(store)("digits/a"), second, waiting=True)
    assert trial is not None
    assert trial.suggest_float("y", 0, 1) == trial.params["y"]
    assert [trial.state.name for trial in optuna_study.trials] == ["WAITING", "RUNNING"]
    assert optuna_private.start_trial(optuna_study, second, waiting=True) is None
    optuna_private.tell(optuna_study, trial, TrialState.COMPLETE, 0.5)
    assert optuna_study.trials[1].value == 0.5
    optuna.delete_study(study_name="digits/a", storage=store.optuna)
    assert optuna_private.start_trial(optuna_study, first, waiting=True) is None
    assert optuna_private.start_trial(optuna_study, first, waiting=False) is None


@pytest.mark.parametrize("by_number", [False, True])
def test_a_waiting_trial_can_be_told_and_put_back(store: Store, by_number: bool) -> None:
    """`BaseStorage.set_trial_state_values`, `.get_trial_id_from_study_id_trial_number`: a trial that Optuna believes
    to be waiting takes a result; one that is finished or deleted isn't put back."""
    optuna_study = plan(store, "digits/a", 1)
    trial = optuna_study.ask()
    assert optuna_private.put_back(trial)
    assert optuna_study.trials[0].state is TrialState.WAITING
    optuna_private.tell(optuna_study, trial.number if by_number else trial, TrialState.COMPLETE, 0.25)
    assert optuna_study.trials[0].value == 0.25
    assert not optuna_private.put_back(trial)
    optuna_private.tell(optuna_study, trial, TrialState.COMPLETE, 9.0)
    assert optuna_study.trials[0].value == 0.25
    optuna.delete_study(study_name="digits/a", storage=store.optuna)
    assert not optuna_private.put_back(trial)
    for told in (trial, 0):
        optuna_private.tell(optuna_study, told, TrialState.COMPLETE, 1.0)


def test_what_is_known_of_others_is_at_most_a_second_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Study._get_trials`, `Study._thread_local`: a remembering study asks for finished trials once a second, anew
    after `forget`, and always for others."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="s", storage=storage)
    remembering = RememberingStudy("s", storage)
    other = optuna.load_study(study_name="s", storage=storage)

    def known() -> int:
        return len(remembering.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    assert known() == 0
    other.tell(other.ask(), 1.0)
    assert known() == 0
    assert len(remembering.trials) == 1
    now[0] += REMEMBERED_SECONDS + 0.01
    assert known() == 1
    other.tell(other.ask(), 2.0)
    remembering.forget()
    assert known() == 2


def test_a_claimed_trial_sees_the_study_anew(store: Store) -> None:
    """`Study._thread_local.cached_all_trials`: the sampler of the next trial knows the trials that ended since."""
    plan(store, "digits/a", 2)
    optuna_study = RememberingStudy("digits/a", store.optuna)
    first = take(store, "elsewhere:1:1-x")
    assert len(optuna_study._get_trials(deepcopy=False, states=(TrialState.RUNNING,), use_cache=True)) == 1
    first.record([row(0)])
    finish(first)
    second = optuna_private.start_trial(optuna_study, first.trial_id + 1, waiting=True)
    assert second is not None
    done = optuna_study._get_trials(deepcopy=False, states=(TrialState.COMPLETE,), use_cache=True)
    assert len(done) == 1


def test_a_draft_takes_what_the_dashboard_writes(prepared_sqlite_url: str) -> None:
    """`Study._study_id`, `Study._storage`: the dashboard writes into a draft what it writes into a study."""
    figure = go.Figure(layout={"title": "x" * 5000})
    with Store.open(prepared_sqlite_url) as store:
        assert isinstance(store.optuna, RDBStorage)
        real = optuna.create_study(study_name="digits/a", storage=store.optuna)
        draft = DraftStudy({})
        for target in (real, draft):
            optuna_dashboard.save_note(target, "note " * 1000)
            optuna_dashboard.save_plotly_graph_object(target, figure, graph_object_id="vae-x")
        assert optuna_dashboard.get_note(draft) == optuna_dashboard.get_note(real) == "note " * 1000
        assert draft.attributes == real._storage.get_study_system_attrs(real._study_id)
