"""Claims, leases and fencing on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from fake_study import expire, finish, load, plan, row, take
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError

from study.store import records
from study.store.checks import planner, trial_facts
from study.store.claims import MAX_DEATHS, LeaseLost, next_claim, release_owner
from study.store.owner import host_id, is_gone, new_owner
from study.store.schema import setup_lease, unix_now
from study.store.setup import _take
from study.store.store import LEASE, Store


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


class NeverTold(optuna.Study):
    """Its worker dies as it tells a result."""

    def tell(self, *_: Any, **__: Any) -> Any:
        raise Killed


def test_claims_go_by_study_then_number(store: Store, owners: list[str]) -> None:
    """Trials are handed out lowest study first, then number, each once; None when none is free."""
    plan(store, "digits/b", 2)
    plan(store, "digits/a/2", 1)
    taken = [take(store, new_owner()) for _ in range(3)]
    assert [(claim.study_name, claim.number) for claim in taken] == [
        ("digits/b", 0),
        ("digits/b", 1),
        ("digits/a/2", 0),
    ]
    assert next_claim(store, "digits", owners[0], load(store)) is None
    assert records.remaining(store, "digits") == 3
    finish(taken[0])
    assert records.remaining(store, "digits") == 2
    frame = records.trials(store, "digits")
    assert list(frame["arm"]) == ["b", "b", "a"]
    assert list(frame["block"]) == [1, 1, 2]


def test_a_claim_runs_in_optuna(store: Store, owners: list[str]) -> None:
    """A claimed trial is RUNNING for Optuna, suggests its fixed value and can report."""
    study = plan(store, "digits/a", 3)
    claim = take(store, owners[0])
    assert claim.trial.suggest_float("x", 0, 1) == 0.001
    assert 0 <= claim.trial.suggest_float("y", 0, 1) <= 1
    claim.trial.report(3.0, 5)
    states = [trial.state for trial in study.get_trials()]
    assert states == [TrialState.RUNNING, TrialState.WAITING, TrialState.WAITING]
    assert study.trials[0].intermediate_values == {5: 3.0}


def test_reports_are_written_with_the_next_rows(store: Store, owners: list[str]) -> None:
    """A report is there for the trial's own pruner at once and for others with the next record or the finish;
    as Optuna's, with infinities and NaN; what an earlier attempt has reported isn't reported again."""
    study = plan(store, "digits/a", 1)
    first = take(store, owners[0])
    first.report(4.0, 10)
    first.report(math.inf, 20)
    assert first.trial._get_latest_trial().intermediate_values == {10: 4.0, 20: math.inf}
    assert study.trials[0].intermediate_values == {}
    first.record([row(0)])
    assert study.trials[0].intermediate_values == {10: 4.0, 20: math.inf}
    first.report(3.0, 30)
    expire(store)
    second = take(store, owners[1])
    for step, value in ((10, 5.0), (30, 3.5), (40, math.nan), (50, 3.25)):
        second.report(value, step)
    with pytest.raises(LeaseLost):
        first.record([row(1)])
    second.finish(state=TrialState.PRUNED, value=None, outcome="pruned")
    reported = study.trials[0].intermediate_values
    assert math.isnan(reported.pop(40))
    assert reported == {10: 4.0, 20: math.inf, 30: 3.5, 50: 3.25}
    assert study.trials[0].value == 3.25  # Optuna gives a pruned trial its last report
    assert optuna.load_study(study_name="digits/a", storage=store.optuna).trials[0].last_step == 50


def test_a_trial_that_plain_optuna_runs_is_left_alone(store: Store, owners: list[str]) -> None:
    """A trial that somebody runs through Optuna without us is neither taken nor waited for."""
    study = plan(store, "digits/a", 1)
    study.ask()
    assert next_claim(store, "digits", owners[0], load(store)) is None
    assert records.remaining(store, "digits") == 0


@pytest.mark.parametrize(
    ("state", "value", "told"),
    [(TrialState.COMPLETE, 2.5, 2.5), (TrialState.PRUNED, 2.5, 3.0), (TrialState.FAIL, None, None)],
)
def test_finish_writes_the_row_and_tells_optuna(
    store: Store, owners: list[str], state: TrialState, value: float | None, told: float | None
) -> None:
    """The result is in our row and in Optuna; a pruned trial's value there is its last report."""
    study = plan(store, "digits/a", 1)
    claim = take(store, owners[0])
    claim.trial.report(3.0, 1)
    claim.finish(state=state, value=value, outcome="done", rows=[row(0)], hit=True, steps=10**10)
    run = records.trials(store, "digits").iloc[0]
    assert (run["state"], run["outcome"], run["hit"], run["steps"]) == (state.name, "done", True, 10**10)
    assert run["value"] == value or (value is None and math.isnan(run["value"]))
    assert run["started"] <= run["finished"] <= run["started"] + 60
    assert (study.trials[0].state, study.trials[0].value) == (state, told)
    assert len(records.curves(store, "digits")) == 1


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_complete_trial_needs_a_value(store: Store, owners: list[str], value: float | None) -> None:
    """Optuna refuses a complete trial without a value, so nothing is written before it could."""
    plan(store, "digits/a", 1)
    claim = take(store, owners[0])
    with pytest.raises(ValueError, match="needs a value"):
        claim.finish(state=TrialState.COMPLETE, value=value, outcome="reached")
    assert records.trials(store, "digits")["outcome"].isna().all()


def test_a_row_is_never_doubled(store: Store, owners: list[str]) -> None:
    """Recording an evaluation again is an error that writes nothing; truncate makes room for a resume."""
    plan(store, "digits/a", 2)
    claim, other = take(store, owners[0]), take(store, owners[1])
    other.record([row(i) for i in range(4)])
    claim.record([row(i) for i in range(4)])
    with pytest.raises(IntegrityError):
        claim.record([row(4), row(3)])
    claim.truncate(1)
    claim.record([row(2)])
    numbers = records.curves(store, "digits").groupby("trial_id")["number"].apply(list)
    assert list(numbers) == [[0, 1, 2], [0, 1, 2, 3]]
    assert list(records.curves(store, "digits", [claim.trial_id])["number"]) == [0, 1, 2]


def test_a_resumed_trial_is_judged_where_it_is(store: Store, owners: list[str]) -> None:
    """Reports past the checkpoint are dropped with the rows: a pruner sees none of what is yet to come, and what is
    reported there again is the record."""
    study = plan(store, "digits/a", 1)
    first = take(store, owners[0])
    for step, value in ((10, 4.0), (20, 3.0), (30, 9.0)):
        first.report(value, step)
    first.record([row(0)])
    expire(store)
    second = take(store, owners[1])
    second.trial.study.pruner = optuna.pruners.ThresholdPruner(upper=5.0)
    assert second.trial.should_prune()
    second.truncate(20)
    assert second.reported == {10, 20}
    assert not second.trial.should_prune()
    second.report(3.5, 30)
    second.record()
    assert study.trials[0].intermediate_values == {10: 4.0, 20: 3.0, 30: 3.5}


def test_an_expired_lease_is_taken_over(store: Store, owners: list[str]) -> None:
    """The next worker gets the same trial with its parameters, reports and curve, as the next attempt."""
    study = plan(store, "digits/a", 2)
    first = take(store, owners[0])
    x, y = first.trial.suggest_float("x", 0, 1), first.trial.suggest_float("y", 0, 1)
    first.record([row(0)])
    first.trial.report(4.0, 0)
    expire(store)
    second = take(store, owners[1])
    assert (second.trial_id, second.attempt, second.reported) == (first.trial_id, 2, {0})
    assert (second.trial.suggest_float("x", 0, 1), second.trial.suggest_float("y", 0, 1)) == (x, y)
    second.record([row(1)])
    finish(second)
    assert list(records.curves(store, "digits")["number"]) == [0, 1]
    assert len(study.trials) == 2


def test_who_lost_the_lease_writes_nothing(store: Store, owners: list[str]) -> None:
    """After a takeover every write of the former owner raises LeaseLost and changes nothing."""
    study = plan(store, "digits/a", 1)
    lost = take(store, owners[0])
    lost.record([row(0)])
    expire(store)
    take(store, owners[1]).describe(phase="second")
    before = records.trials(store, "digits").drop(columns="lease_expires")
    writes: list[Any] = [
        lost.renew,
        lost.release,
        lambda: lost.record([row(1)]),
        lambda: lost.truncate(-1),
        lambda: lost.describe(phase="first"),
        lambda: lost.fail("woken"),
        lambda: finish(lost),
    ]
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    assert records.trials(store, "digits").drop(columns="lease_expires").equals(before)
    assert list(records.curves(store, "digits")["number"]) == [0]
    assert study.trials[0].state is TrialState.RUNNING


def test_a_finished_trial_cannot_be_written(store: Store, owners: list[str]) -> None:
    """A heartbeat or a second result that comes after the end changes nothing."""
    plan(store, "digits/a", 1)
    claim = take(store, owners[0])
    finish(claim, 1.0)
    for write in (claim.renew, lambda: finish(claim, 2.0)):
        with pytest.raises(LeaseLost):
            write()
    assert records.trials(store, "digits")["value"][0] == 1.0


def test_a_dead_process_loses_its_lease_at_once(store: Store, owners: list[str]) -> None:
    """On the same host nobody waits for the lease of a process that has ended."""
    plan(store, "digits/a", 1)
    code = (
        "import os, sys, optuna; from study.store.store import Store; from study.store.owner import new_owner\n"
        "from study.store.claims import next_claim\n"
        "store = Store.open(sys.stdin.read())\n"
        "load = lambda name: optuna.load_study(study_name=name, storage=store.optuna)\n"
        "next_claim(store, 'digits', new_owner(), load)\n"
        "os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=store.url, text=True, check=False)
    assert done.returncode == 9
    assert take(store, owners[0]).attempt == 2


def test_owners_are_told_apart() -> None:
    """A live process keeps its lease; a reused pid, a zombie and a dead one don't; other hosts may live."""
    mine = new_owner()
    host, pid, token = mine.split(":")
    assert not is_gone(mine)
    assert mine != new_owner()
    assert is_gone(f"{host}:{pid}:{int(token.split('-')[0]) - 1}-other")
    assert not is_gone(f"elsewhere:{pid}:0-other")
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        owner = f"{host_id()}:{process.pid}:{ticks}-zombie"
        process.stdout, _ = None, process.wait()
    assert is_gone(owner)


def test_release_owner_ends_its_leases(store: Store, owners: list[str]) -> None:
    """A launcher that saw `host:pid` die frees its trials for workers on any machine, and no others."""
    plan(store, "digits/a", 2)
    take(store, "elsewhere:77:1-aa")
    take(store, "elsewhere:771:1-bb")
    assert next_claim(store, "digits", owners[0], load(store)) is None
    release_owner(store, "elsewhere:77")
    assert take(store, owners[0]).number == 0
    assert next_claim(store, "digits", owners[1], load(store)) is None


def test_what_an_owner_lost_sight_of_comes_first(store: Store, owners: list[str]) -> None:
    """A worker whose connection was cut while it claimed, or put back, or told, asks again and gets the trial that it
    still holds: under a new attempt, and nobody has died; others don't."""
    study = plan(store, "digits/a", 3)
    take(store, owners[1])
    lost = take(store, owners[0])
    assert next_claim(store, "digits", new_owner(), load(store)) is not None
    assert next_claim(store, "digits", new_owner(), load(store)) is None
    again = take(store, owners[0])
    assert (again.number, again.attempt) == (1, 2)
    with pytest.raises(LeaseLost):
        lost.record([row(0)])
    assert records.trials(store, "digits")["died"].tolist() == [0, 0, 0]
    never_told = next_claim(store, "digits", owners[0], lambda name: NeverTold(name, store.optuna))
    assert never_told is not None
    with pytest.raises(Killed):
        finish(never_told, 0.5)
    assert next_claim(store, "digits", owners[0], load(store)) is None
    assert study.trials[1].value == 0.5


def test_release_puts_a_trial_back(store: Store, owners: list[str]) -> None:
    """A released trial waits with its parameters and curve, goes on as the next attempt, and has not died."""
    study = plan(store, "digits/a", 1)
    for attempt in range(1, MAX_DEATHS + 3):
        claim = take(store, owners[0])
        assert (claim.attempt, claim.open) == (attempt, True)
        y = claim.trial.suggest_float("y", 0, 1)
        claim.record([row(attempt)])
        claim.release()
        assert not claim.open
        assert study.trials[0].state is TrialState.WAITING
        assert study.trials[0].params["y"] == y
    assert list(records.curves(store, "digits")["number"]) == list(range(1, MAX_DEATHS + 3))
    assert records.trials(store, "digits")["died"][0] == 0
    assert records.remaining(store, "digits") == 1


def test_a_trial_that_kills_its_workers_fails(store: Store) -> None:
    """After MAX_DEATHS deaths at one place a trial is finished as failed; progress in between starts anew."""
    study = plan(store, "digits/a", 2)
    for furthest in (0, 0, 1, 1, 1):  # deaths after evaluation 0, 0, 1, 1, 1
        claim = take(store, new_owner())
        assert claim.number == 0
        claim.truncate(-1)
        claim.record([row(i) for i in range(furthest + 1)])
        expire(store)
    assert take(store, new_owner()).number == 1
    failed = records.trials(store, "digits").iloc[0]
    assert (failed["state"], failed["outcome"], failed["attempt"]) == ("FAIL", "failed", 6)
    assert failed["reason"] == f"{MAX_DEATHS} workers died at the same place of it"
    assert study.trials[0].state is TrialState.FAIL


def set_lease(store: Store, expires: str) -> None:
    """By the database's clock, as SQL."""
    clock = {
        "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
        "postgresql": "extract(epoch from clock_timestamp())",
    }
    with store.write() as connection:
        now = clock[connection.dialect.name]
        connection.exec_driver_sql(f"UPDATE trial_run SET lease_expires = {expires.format(now=now)}")


def test_a_clock_that_is_set_back_an_hour_blocks_no_trial(store: Store, owners: list[str]) -> None:
    """A lease that was written by a clock an hour ahead lasts as long as any other from the next look on: a worker that
    lives renews it and keeps its trial, and that of a dead one is taken over after a lease, not after an hour."""
    plan(store, "digits/a", 1)
    claim = take(store, owners[0])
    set_lease(store, "{now} + 3600")
    assert next_claim(store, "digits", owners[1], load(store)) is None
    (facts,) = trial_facts(store, "digits")
    assert facts.lease_left == pytest.approx(LEASE, abs=30)
    claim.record([row(0)])  # it lives
    assert next_claim(store, "digits", owners[1], load(store)) is None
    set_lease(store, "{now} + 3600")
    assert next_claim(store, "digits", owners[1], load(store)) is None
    expire(store)
    heir = take(store, owners[1])
    assert heir.attempt == 2
    assert list(records.curves(store, "digits")["number"]) == [0]


def test_the_right_to_plan_outlives_no_clock(store: Store) -> None:
    """Nor does a lease of the planner's from before the clock was set back."""
    with store.write() as connection:
        connection.execute(
            setup_lease.insert().values(id=1, owner="elsewhere:1:1-x", lease_expires=unix_now() + 3600)
        )
    assert not _take(store, "me")
    held = planner(store)
    assert held is not None
    assert held[1] == pytest.approx(LEASE, abs=30)
    with store.write() as connection:
        connection.execute(setup_lease.update().values(lease_expires=unix_now() - 0.01))
    assert _take(store, "me")


def test_an_outage_longer_than_a_lease_is_no_death(prepared_postgresql_url: str, owners: list[str]) -> None:
    """A lease that ran out while the server was away: its worker couldn't put the trial back, and hasn't died on it.
    One that ran out since is a death as before, and so is one that the launcher has ended."""
    with Store.open(prepared_postgresql_url) as store:
        plan(store, "digits/a", 1)
        for expires, died in (
            ("extract(epoch from pg_postmaster_start_time()) - 1", 0),
            ("{now} - 0.01", 1),
            ("0", 2),
            ("extract(epoch from pg_postmaster_start_time()) - 1", 2),
        ):
            take(store, new_owner())
            set_lease(store, expires)
            take(store, owners[0])
            assert records.trials(store, "digits")["died"].tolist() == [died]
            set_lease(store, "extract(epoch from pg_postmaster_start_time()) - 1")


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
@pytest.mark.parametrize("waiting", [False, True])
def test_a_death_between_finishing_and_telling(
    store: Store, owners: list[str], state: TrialState, waiting: bool
) -> None:
    """Whoever claims next tells Optuna the stored result, even where Optuna believes the trial waits."""
    study = plan(store, "digits/a", 2)
    claim = next_claim(store, "digits", owners[0], lambda name: NeverTold(name, store.optuna))
    assert claim is not None
    value = 0.5 if state is TrialState.COMPLETE else None
    with pytest.raises(Killed):
        claim.finish(state=state, value=value, outcome="done")
    if waiting:
        claim.trial.storage.set_trial_state_values(claim.trial_id, TrialState.WAITING)
    assert not study.trials[0].state.is_finished()
    expire(store)
    assert take(store, owners[1]).number == 1
    assert (study.trials[0].state, study.trials[0].value) == (state, value)
    assert records.trials(store, "digits")["attempt"][0] == 1


def test_telling_twice_is_fine(store: Store, owners: list[str]) -> None:
    """A result that somebody else has told already, or whose trial is deleted, is no error."""
    study = plan(store, "digits/a", 2)
    claim, gone = take(store, owners[0]), take(store, owners[1])
    study.tell(0, 9.0)
    finish(claim, 1.0)
    assert study.trials[0].value == 9.0
    optuna.delete_study(study_name="digits/a", storage=store.optuna)
    with pytest.raises(LeaseLost):
        finish(gone)
