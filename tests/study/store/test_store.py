"""The store on SQLite and on a real PostgreSQL server: experiments, tables, readers, deletions."""

from __future__ import annotations

import math
import sqlite3
import threading
import time
import wsgiref.util
from typing import Any

import optuna
import optuna_dashboard
import pytest
import sqlalchemy
from fake_study import expire, finish, plan, row, scalar, take
from optuna.trial import TrialState

from study.protocol.stored import stored
from study.store import records
from study.store.claims import Claim, LeaseLost
from study.store.enqueue import enqueue
from study.store.owner import new_owner
from study.store.records import Timing
from study.store.schema import setup_lease, unix_now
from study.store.setup import setup_lock
from study.store.store import Store
from vae.errors import FailureError, UserError


def test_experiments_round_trip(store: Store) -> None:
    """A spec comes back as it was saved, saving again replaces it, and names keep their order."""
    spec = {"data": "digits", "budget": 40, "arms": ["baseline", "naïve"], "lr": 1e-3, "target": None}
    store.save_experiment("b", {"old": True})
    time.sleep(0.01)  # SQLite's clock counts milliseconds
    store.save_experiment("a", {})
    store.save_experiment("b", spec)
    assert store.load_experiment("b") == spec
    assert store.load_experiment("missing") is None
    assert store.experiments() == ["b", "a"]


def test_an_experiment_of_before_keeps_its_networks(store: Store) -> None:
    """While recipes left their network's options out, conv normalised by group: the baseline and the techniques that
    were stored then go on so, but for those that say how."""
    techniques = {
        "conv": {"overrides": {"model": "conv", "model_options.blocks": 1}},
        "said": {"overrides": {"model": "conv", "model_options.norm": "none"}},
        "half": {"scale": {"batch_size": 0.5}},
    }
    experiment = {"method": 2, "split_per_block": True, "recipe": {"model": "conv"}, "techniques": techniques}
    store.save_experiment("before", {"experiment": experiment})
    store.save_experiment("now", {"experiment": experiment, "dimensions": None})
    before, now = (store.load_experiment(name) for name in ("before", "now"))
    assert before is not None
    assert now is not None
    assert before["experiment"] == experiment | {
        "recipe": {"model": "conv", "model_options": {"norm": "group"}},
        "techniques": techniques
        | {"conv": {"overrides": techniques["conv"]["overrides"] | {"model_options": {"norm": "group"}}}},
    }
    assert now["experiment"] == experiment


@pytest.mark.parametrize("name", ["", "a/b", "x" * 201])
def test_a_name_that_would_mix_studies_is_refused(store: Store, name: str) -> None:
    """A name with a slash, no name, or one that overflows its column is refused."""
    with pytest.raises(UserError, match="--name"):
        store.save_experiment(name, {})


def test_studies_belong_to_exactly_one_name(store: Store) -> None:
    """'digits' sees its own studies in order of creation, not those of 'digits2', 'Digits' or '%'."""
    for study_name in ("digits/search", "digits2/search", "Digits/search", "digits/cosine", "%/search"):
        plan(store, study_name, 1)
    assert list(records.study_ids(store, "digits")) == ["digits/search", "digits/cosine"]
    assert list(records.study_ids(store, "%")) == ["%/search"]
    assert records.remaining(store, "digits") == 2


def test_numbers_survive(store: Store, owners: list[str]) -> None:
    """NaN is stored as NULL and read as NaN; infinity and 32-bit seeds survive."""
    plan(store, "digits/a", 1)
    claim = take(store, owners[0])
    claim.describe(phase="search", seed=2**32 - 1, recipe='{"lr": 0.1}', target=math.nan)
    claim.record([row(0, valid_loss=math.nan, grad_norm=math.inf, active_units=3, train_seconds=0.1)])
    claim.record([])
    assert scalar(store, "SELECT count(*) FROM curve WHERE valid_loss IS NULL") == 1
    curve = records.curves(store, "digits").iloc[0]
    assert math.isnan(curve["valid_loss"])
    assert (curve["grad_norm"], curve["active_units"], curve["train_seconds"]) == (math.inf, 3, 0.1)
    assert (curve["arm"], curve["phase"], curve["seed"], curve["block"]) == ("a", "search", 2**32 - 1, 1)
    assert math.isnan(records.trials(store, "digits")["target"][0])


def test_the_setup_lock_lets_one_in(store: Store) -> None:
    """Only one holder at a time; the next comes in as soon as the first has left."""
    inside: list[str] = []

    def second() -> None:
        with Store.open(store.url) as other, setup_lock(other):
            inside.append("second")

    with setup_lock(store):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.5)
        assert scalar(store, "SELECT count(*) FROM setup_lease") == 1
        inside.append("first")
    thread.join(30)
    assert inside == ["first", "second"]
    assert scalar(store, "SELECT count(*) FROM setup_lease") == 0


@pytest.mark.parametrize("holder", ["dead", "expired"])
def test_the_setup_lock_of_a_dead_holder_ends(store: Store, holder: str) -> None:
    """The right to plan of a process that is gone, here or on another machine, ends by itself."""
    owner, lease = {
        "dead": (new_owner().replace(":", ":9", 1), 60.0),  # a pid that no process has
        "expired": ("elsewhere:1:1-x", -1.0),
    }[holder]
    with store.write() as connection:
        expires = unix_now() + lease
        connection.execute(setup_lease.insert().values(id=1, owner=owner, lease_expires=expires))
    began = time.monotonic()
    with setup_lock(store):
        assert time.monotonic() - began < 10
        assert scalar(store, "SELECT owner FROM setup_lease") != owner
    assert scalar(store, "SELECT count(*) FROM setup_lease") == 0


def test_the_setup_lock_is_kept(store: Store) -> None:
    """Planning that takes longer than a lease stays its holder's."""
    store.lease = 1.0
    with setup_lock(store):
        time.sleep(2.0)
        assert scalar(store, "SELECT count(*) FROM setup_lease") == 1
        with store.read() as connection:
            left = sqlalchemy.select(setup_lease.c.lease_expires - unix_now())
            assert connection.execute(left).scalar_one() > 0


def test_a_right_that_was_lost_enqueues_nothing(store: Store) -> None:
    """Who was stopped for longer than the lease, between looking and enqueueing, doubles nobody's trials."""
    plan(store, "digits/a", 0)
    with setup_lock(store) as require_right:
        enqueue(store, [("digits/a", {"x": 1}, {})], require_right)
        with store.write() as connection:
            connection.execute(setup_lease.update().values(lease_expires=0.0))
        with Store.open(store.url) as other, setup_lock(other) as others_right:
            enqueue(other, [("digits/a", {"x": 2}, {})], others_right)
            with pytest.raises(LeaseLost):
                enqueue(store, [("digits/a", {"x": 2}, {})], require_right)
        with pytest.raises(LeaseLost):
            enqueue(store, [("digits/a", {"x": 2}, {})], require_right)
    assert records.remaining(store, "digits") == 2


def test_trials_shows_every_parameter(store: Store, owners: list[str]) -> None:
    """Waiting trials are listed too; parameters come back as they were suggested."""
    plan(store, "digits/a", 2)
    trial = take(store, owners[0]).trial
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    trial.suggest_categorical("init", ["he", None])
    trial.suggest_int("width", 8, 64)
    frame = records.trials(store, "digits")
    assert list(frame["state"]) == ["RUNNING", "WAITING"]
    for name, value in trial.params.items():
        assert frame[f"params_{name}"][0] == value or (value is None and frame[f"params_{name}"].isna()[0])
    assert frame["params_width"].isna()[1]
    assert frame["owner"].isna().tolist() == [False, True]
    assert records.trials(store, "nothing").empty


def test_throughput_is_replaced_by_pair(store: Store) -> None:
    """A pair timed again replaces the earlier timing."""
    speeds: dict[str, Any] = {"baseline_examples_per_second": 10.0, "cold_start_seconds": None}
    records.add_throughput(store, "digits", "bf16", 0, examples_per_second=1.0, **speeds)
    records.add_throughput(store, "digits", "bf16", 1, examples_per_second=2.0, **speeds)
    records.add_throughput(store, "digits", "bf16", 0, examples_per_second=3.0, **speeds)
    assert records.throughput(store, "digits") == [
        Timing("bf16", 0, 3.0, 10.0, None),
        Timing("bf16", 1, 2.0, 10.0, None),
    ]
    assert records.throughput(store, "fashion") == []


def test_a_reader_reads_and_cannot_write(store: Store, owners: list[str]) -> None:
    """read_only=True sees what is there, while others write, and refuses every write."""
    plan(store, "digits/a", 1)
    claim = take(store, owners[0])
    with Store.open(store.url, read_only=True) as reader:
        claim.record([row(0)])
        assert len(records.curves(reader, "digits")) == 1
        assert (
            optuna.load_study(study_name="digits/a", storage=reader.optuna).trials[0].state.name == "RUNNING"
        )
        with pytest.raises(FailureError, match=r"readonly|read-only"):
            reader.save_experiment("digits", {})
        with pytest.raises(optuna.exceptions.StorageInternalError):
            optuna.create_study(study_name="new", storage=reader.optuna)


def test_a_name_that_is_not_there_is_told_with_what_there_is(store: Store) -> None:
    """The nearest, all, or that there is none; by whoever asks for it."""
    for ask in (store.pick_name, lambda name: stored(store, name)):
        with pytest.raises(UserError, match=r"^No experiment 'digist' in \S+\. There is none\.$"):
            ask("digist")
    for name in ("digits", "fashion"):
        store.save_experiment(name, {})
    for ask in (store.pick_name, lambda name: stored(store, name)):
        with pytest.raises(UserError, match=r"Did you mean 'digits'\?$"):
            ask("digist")
        with pytest.raises(UserError, match=r"There are: digits, fashion\.$"):
            ask("mnist")


def test_headway_changes_with_what_happens(store: Store, owners: list[str]) -> None:
    """A launcher can see whether anything happened; a trial put back and taken again is not progress."""
    plan(store, "digits/a", 1)
    seen = [records.headway(store, "digits")]
    claim = take(store, owners[0])
    seen.append(records.headway(store, "digits"))
    claim.release()
    claim = take(store, owners[0])
    assert records.headway(store, "digits") == seen[-1]
    claim.record([row(0)])
    seen.append(records.headway(store, "digits"))
    expire(store)
    claim = take(store, owners[1])
    seen.append(records.headway(store, "digits"))
    finish(claim)
    seen.append(records.headway(store, "digits"))
    assert len(set(seen)) == 5


def test_progress_grows_with_attempts_and_ends(store: Store, owners: list[str]) -> None:
    """A planner can see from one number whether it is worth looking again."""
    plan(store, "digits/a", 1)
    seen = [records.progress(store, "digits")]
    claim = take(store, owners[0])
    seen.append(records.progress(store, "digits"))
    finish(claim)
    seen.append(records.progress(store, "digits"))
    assert seen == sorted(set(seen))


def delete_by_optuna(store: Store, study_name: str) -> None:
    optuna.delete_study(study_name=study_name, storage=store.optuna)


def delete_by_dashboard(store: Store, study_name: str) -> None:
    """Through the API behind the dashboard's button, on a storage that plain Optuna opened."""
    plain = optuna.storages.RDBStorage(store.url)
    app = optuna_dashboard.wsgi(plain)
    path = f"/api/studies/{plain.get_study_id_from_name(study_name)}"
    environ: dict[str, Any] = {"REQUEST_METHOD": "DELETE", "PATH_INFO": path}
    wsgiref.util.setup_testing_defaults(environ)
    status: list[str] = []
    body = b"".join(app(environ, lambda line, *_: status.append(line)))
    assert status[0].startswith("204"), (status, body)
    plain.remove_session()
    plain.engine.dispose()


DELETIONS = [delete_by_optuna, delete_by_dashboard]


@pytest.mark.parametrize("delete", DELETIONS)
def test_a_deletion_takes_our_rows_along(store: Store, owners: list[str], delete: Any) -> None:
    """Our rows of a deleted study go with it, others stay, and a new study that gets its ids starts clean."""
    store.save_experiment("digits", {"data": "digits"})
    timing = {"examples_per_second": 1.0, "baseline_examples_per_second": 1.0, "cold_start_seconds": None}
    for arm in ("search", "cosine", "cosine2"):
        plan(store, f"digits/{arm}", 2)
        records.add_throughput(store, "digits", arm, 0, **timing)
    ids = {}
    for _ in range(6):
        claim = take(store, owners[0])
        claim.record([row(0), row(1)])
        finish(claim)
        ids[claim.study_name, claim.number] = claim.trial_id
    delete(store, "digits/cosine")
    assert set(records.trials(store, "digits")["arm"]) == {"search", "cosine2"}
    assert set(records.curves(store, "digits")["arm"]) == {"search", "cosine2"}
    assert [timing.arm for timing in records.throughput(store, "digits")] == ["cosine2", "search"]
    assert store.load_experiment("digits") == {"data": "digits"}
    assert scalar(store, "SELECT count(*) FROM curve") == 8

    delete(store, "digits/cosine2")
    plan(store, "digits/new", 2)
    claim = take(store, owners[0])
    if store.engine.dialect.name == "sqlite":
        assert claim.trial_id == ids["digits/cosine", 0]  # SQLite does reuse them
    assert (claim.number, claim.attempt, claim.reported) == (0, 1, frozenset())
    assert records.curves(store, "digits", [claim.trial_id]).empty


@pytest.mark.parametrize("delete", DELETIONS)
def test_the_last_deletion_takes_the_experiment_along(store: Store, delete: Any) -> None:
    """With a name's last study its spec goes; that of another name, even one without studies, stays."""
    for name in ("digits", "digits2"):
        store.save_experiment(name, {})
    plan(store, "digits/search", 1)
    delete(store, "digits/search")
    assert store.experiments() == ["digits2"]


@pytest.mark.parametrize("delete", DELETIONS)
def test_a_deletion_stops_the_running_trial(store: Store, owners: list[str], delete: Any) -> None:
    """A worker whose trial is deleted under it gets LeaseLost, also where the id is in use again."""
    plan(store, "digits/search", 1)
    claim = take(store, owners[0])
    delete(store, "digits/search")
    with pytest.raises(LeaseLost):
        claim.record([row(0)])
    plan(store, "digits/search", 1)
    other: Claim = take(store, owners[1])
    with pytest.raises(LeaseLost):
        claim.record([row(0)])
    assert records.curves(store, "digits", [other.trial_id]).empty


def test_deletion_and_writing_do_not_meet_in_a_deadlock(store: Store, owners: list[str]) -> None:
    """Studies can be deleted while workers write into them: either wins, nobody errs."""
    for repeat in range(10):
        plan(store, f"digits/{repeat}", 1)
        claim = take(store, owners[0])
        writing = threading.Event()
        lost: list[bool] = []

        def write(claim: Claim = claim, writing: threading.Event = writing, lost: list[bool] = lost) -> None:
            try:
                for number in range(100_000):  # until the deletion has come through
                    claim.record([row(number)])
                    writing.set()
            except LeaseLost:
                lost.append(True)

        thread = threading.Thread(target=write)
        thread.start()
        assert writing.wait(30)
        delete_by_optuna(store, f"digits/{repeat}")
        thread.join()
        assert lost == [True]
    assert scalar(store, "SELECT count(*) FROM curve") == 0


def test_rows_left_by_a_deletion_without_triggers_are_dropped(prepared_sqlite_url: str) -> None:
    """Optuna's upgrade rebuilds tables without our triggers: the next launcher repairs and cleans up."""
    with Store.open(prepared_sqlite_url, create=True) as store:
        plan(store, "digits/search", 1)
        take(store, new_owner()).record([row(0)])
        with store.write() as connection:
            connection.execute(sqlalchemy.text("DROP TRIGGER study_trial_deleted"))
        delete_by_optuna(store, "digits/search")
        assert scalar(store, "SELECT count(*) FROM curve") == 1
    with Store.open(prepared_sqlite_url, create=True) as store:
        assert (
            scalar(store, "SELECT count(*) FROM curve")
            == scalar(store, "SELECT count(*) FROM trial_run")
            == 0
        )
        plan(store, "digits/search", 1)
        take(store, new_owner()).record([row(0)])
        delete_by_optuna(store, "digits/search")
        assert scalar(store, "SELECT count(*) FROM curve") == 0


def test_plain_sql_reads_the_tables(prepared_sqlite_url: str, owners: list[str]) -> None:
    """`sqlite3 optuna.db 'select ... from learning_curve'` answers without our code."""
    with Store.open(prepared_sqlite_url) as store:
        plan(store, "digits/cosine", 1)
        claim = take(store, owners[0])
        claim.describe(phase="tuning", seed=3)
        claim.finish(state=TrialState.COMPLETE, value=1.0, outcome="reached", rows=[row(0, valid_loss=30.5)])
    connection = sqlite3.connect(prepared_sqlite_url.removeprefix("sqlite:///"))
    found = connection.execute("SELECT arm, phase, seed, trial, number, valid_loss FROM learning_curve")
    assert found.fetchall() == [("cosine", "tuning", 3, 0, 0, 30.5)]
    connection.close()
