"""`study doctor` on databases and folders that were really damaged: what it finds, what it mends, what it leaves."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from command_line import Call
from fake_study import plan, scalar, take
from fake_training import FAKE, TECHNIQUES, Finished, pixels
from optuna.trial import TrialState
from sqlalchemy import text

from study.design.build import Request
from study.doctor.examine import examine
from study.doctor.findings import Check, Finding
from study.doctor.repair import at_work, repair
from study.place import Place
from study.session import Session
from study.store import checks, records
from study.store.locations import Local, locate
from study.store.owner import host_id, new_owner
from study.store.store import Store
from vae.errors import FailureError

GONE = f"{host_id()}:{2**22 + 1}:1-gone"
#: A trial of the comparison, by its place in the table.
ONE = "(SELECT trial_id FROM trial_run WHERE phase = 'confirm' ORDER BY trial_id LIMIT 1)"


@pytest.fixture
def folder(compared: Finished, tmp_path: Path) -> Path:
    """A finished comparison's database and files, to be damaged."""
    return compared.copy(tmp_path / "copy")


def change(folder: Path, *statements: str) -> None:
    """Write to the database as another program may: without our triggers' foreign keys and without asking."""
    with closing(sqlite3.connect(folder / "optuna.db")) as connection, connection:
        for statement in statements:
            assert connection.execute(statement).rowcount != 0, statement


def unfinish(folder: Path, owner: str, lease: str) -> None:
    """As a worker leaves a trial that is killed in it, or that it still runs."""
    change(
        folder,
        f"UPDATE trials SET state = 'RUNNING' WHERE trial_id = {ONE}",
        f"UPDATE trial_run SET outcome = NULL, owner = '{owner}', lease_expires = {lease} WHERE trial_id = {ONE}",
    )


def now(seconds: float) -> str:
    return f"(julianday('now') - 2440587.5) * 86400.0 + {seconds}"


def leave_files(folder: Path) -> None:
    state = next((folder / "artifacts" / "fake").glob("*/")) / "state"
    state.mkdir(parents=True, exist_ok=True)
    (state / "trial-0.pt").write_bytes(b"state")
    (folder / "artifacts" / "fake" / ".trial-1.safetensors-0a1b2c3d").write_bytes(b"half")
    (folder / ".optuna.db.123.new").write_bytes(b"half")


def drop_models(folder: Path) -> None:
    for path in (folder / "artifacts").rglob("models"):
        shutil.rmtree(path)


#: What is done -> (how, the check that finds it, words of the finding, whether it is mended).
DAMAGE: dict[str, tuple[Callable[[Path], object], Check, str, bool]] = {
    "a worker was killed": (
        lambda folder: unfinish(folder, GONE, now(30)),
        Check.TRIALS,
        "1 trial is run by nobody",
        True,
    ),
    "a worker on another host is gone": (
        lambda folder: unfinish(folder, "elsewhere:1:1-x", now(-5)),
        Check.TRIALS,
        "1 trial is run by nobody",
        True,
    ),
    "a lease of a clock an hour ahead": (
        lambda folder: unfinish(folder, "elsewhere:1:1-x", now(3600)),
        Check.TRIALS,
        "1 trial is run by nobody",
        True,
    ),
    "a running trial without a record": (
        lambda folder: change(
            folder,
            f"UPDATE trials SET state = 'RUNNING' WHERE trial_id = {ONE}",
            f"DELETE FROM curve WHERE trial_id = {ONE}",
            f"DELETE FROM trial_run WHERE trial_id = {ONE}",
        ),
        Check.TRIALS,
        "without a record in ours",
        True,
    ),
    "a result that Optuna wasn't told": (
        lambda folder: change(folder, f"UPDATE trials SET state = 'RUNNING' WHERE trial_id = {ONE}"),
        Check.TRIALS,
        "1 trial is finished, and Optuna was not told",
        True,
    ),
    "a trial ended from outside": (
        lambda folder: change(
            folder,
            f"UPDATE trials SET state = 'FAIL' WHERE trial_id = {ONE}",
            f"UPDATE trial_run SET outcome = NULL WHERE trial_id = {ONE}",
        ),
        Check.TRIALS,
        "1 trial is over without a result",
        False,
    ),
    "curve rows without trials": (
        lambda folder: change(
            folder,
            "INSERT INTO curve (trial_id, number, examples, steps) VALUES (9999, 0, 1, 1), (9999, 1, 2, 2)",
            "INSERT INTO trial_run (trial_id, experiment, number, attempt, died, furthest) "
            "VALUES (9998, 'fake', 0, 1, 0, 0)",
        ),
        Check.CURVES,
        "Of trials that are gone: 2 x curve row, 1 x record of a trial",
        True,
    ),
    "the end of a curve": (
        lambda folder: change(
            folder,
            f"DELETE FROM curve WHERE trial_id = {ONE} AND number > 3",
        ),
        Check.CURVES,
        "1 trial is without the end of the curve",
        False,
    ),
    "triggers lost": (
        lambda folder: change(folder, "DROP TRIGGER study_trial_deleted"),
        Check.TABLES,
        "the triggers are gone",
        True,
    ),
    "no models": (drop_models, Check.ARTIFACTS, "no model of", False),
    "no folder": (
        lambda folder: shutil.rmtree(folder / "artifacts"),
        Check.ARTIFACTS,
        "is not there",
        False,
    ),
    "another experiment's folder": (
        lambda folder: (folder / "artifacts" / "fake" / "experiment-id").write_text("other"),
        Check.ARTIFACTS,
        "holds the files of another experiment",
        False,
    ),
    "a spec that nobody can read": (
        lambda folder: change(
            folder, """UPDATE experiment SET spec = replace(spec, '"budget"', '"bugdet"')"""
        ),
        Check.EXPERIMENTS,
        "bugdet",
        False,
    ),
    "files left": (leave_files, Check.LEFTOVERS, "files of trainings that have ended", True),
    "a planner that died": (
        lambda folder: change(folder, f"INSERT INTO setup_lease VALUES (1, '{GONE}', {now(30)})"),
        Check.LEFTOVERS,
        "The right to plan is still with a process that is gone",
        True,
    ),
}


def of(findings: list[Finding], check: Check) -> list[Finding]:
    return [finding for finding in findings if finding.check is check and not finding.is_note]


def test_nothing_is_found_where_nothing_is_wrong(call: Call, folder: Path) -> None:
    """Every check says ok, exit code 0, and neither a file nor a byte is changed."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = call(
        "doctor", "--storage", f"sqlite:///{folder / 'optuna.db'}", "--artifacts", f"{folder / 'artifacts'}"
    )
    assert result.code == 0, result.out
    for check in Check:
        assert re.search(rf"^{check} +ok", result.out, re.M)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_found_and_mended(call: Call, folder: Path, name: str) -> None:
    """Each damage is found by its check alone; --repair mends it, after a copy, or says that a person must."""
    damage, check, words, is_mended = DAMAGE[name]
    damage(folder)
    place = ("--storage", f"sqlite:///{folder / 'optuna.db'}", "--artifacts", str(folder / "artifacts"))
    with Store.open(place[1], read_only=True) as store:
        findings = examine(store, Local(folder / "artifacts"))
    assert [
        finding.check for finding in findings if not finding.is_note and finding.check is not Check.LEFTOVERS
    ] == [check] * (check is not Check.LEFTOVERS), findings
    assert any(words in finding.what for finding in of(findings, check)), findings
    damaged = records_of(folder)
    mended = call("doctor", *place, "--repair")
    if not is_mended:
        assert mended.code == 1
        assert "Traceback" not in mended.out + mended.err
        assert "Copy of before" not in mended.out
        assert records_of(folder) == damaged
        return
    assert mended.code == 0, mended.out
    (copy,) = folder.glob("optuna.db.backup-*")
    assert str(copy) in mended.out
    assert records_of(folder, copy.name) == damaged


def records_of(folder: Path, name: str = "optuna.db") -> list[object]:
    """Every row that a damage or a repair may change."""
    with closing(sqlite3.connect(folder / name)) as connection:
        tables = ("trials", "trial_run", "curve", "setup_lease", "experiment", "sqlite_master")
        return [connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables]


def test_a_trial_that_waits_again_is_run_again(folder: Path, compared: Finished) -> None:
    """After the repair the same command finishes the orphan, and the answer is that of before."""
    unfinish(folder, GONE, now(30))
    with Store.open(f"sqlite:///{folder / 'optuna.db'}") as store:
        repair(store, examine(store, Local(folder / "artifacts")))
        place = Place(f"sqlite:///{folder / 'optuna.db'}", Local(folder / "artifacts"), None, "cpu", 1)
        assert records.remaining(store, "fake") == 1
        session = Session.join(place, "fake")
        session.trainer = FAKE
        with session.store:
            session.run_here()
        with compared.open() as (before, _):
            for table in (records.trials, records.curves):
                kept = ["study_name", "valid_loss"] if table is records.trials else ["trial_id", "valid_loss"]
                assert table(store, "fake")[kept].equals(table(before, "fake")[kept])


def test_nothing_is_mended_while_a_worker_is_at_work(call: Call, folder: Path) -> None:
    """One line that says who, exit code 1, no copy; and a trial that is run is no orphan."""
    unfinish(folder, new_owner(), now(30))
    (folder / ".optuna.db.123.new").write_bytes(b"half")
    place = ("--storage", f"sqlite:///{folder / 'optuna.db'}", "--artifacts", str(folder / "artifacts"))
    result = call("doctor", *place, "--repair")
    assert result.code == 1
    assert "Workers are at work on fake/" in result.err
    assert "run by nobody" not in result.out
    assert (folder / ".optuna.db.123.new").exists()
    assert not list(folder.glob("*.backup-*"))


def pages(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA page_size").fetchone()[0])


def test_a_damaged_file_is_said_and_not_made_worse(call: Call, folder: Path) -> None:
    """Pages full of other bytes: found, told how to rescue the rest, and left as it is, --repair or not."""
    path = folder / "optuna.db"
    content = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'curve'").fetchone()
    size = pages(path)
    content[(root - 1) * size : root * size] = os.urandom(size)
    path.write_bytes(content)
    result = call(
        "doctor", "--storage", f"sqlite:///{path}", "--artifacts", str(folder / "artifacts"), "--repair"
    )
    said = " ".join(result.out.split())
    assert result.code == 1
    assert "is damaged" in said
    assert ".recover" in said
    assert "Traceback" not in result.out + result.err
    assert path.read_bytes() == content


def test_an_index_out_of_step_is_made_anew(call: Call, folder: Path) -> None:
    """Rows that an index has lost are found, and it is rebuilt from the table, of which nothing is lost."""
    path = folder / "optuna.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        name, sql = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql LIKE '%studies%study_name%'"
        ).fetchone()
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = sql || ' WHERE 0' WHERE name = ?", (name,))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"REINDEX {name}")  # by the wrong definition: it is empty now
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, name))
    place = ("--storage", f"sqlite:///{path}", "--artifacts", str(folder / "artifacts"))
    found = call("doctor", *place)
    assert found.code == 1
    assert f"from index {name}" in " ".join(found.out.split())
    assert call("doctor", *place, "--repair").code == 0
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_log_beside_the_file_is_noted(folder: Path, tmp_path: Path) -> None:
    """As a killed process leaves it: the file without it lacks the last changes, a copy as the note says has them."""
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    with closing(sqlite3.connect(folder / "optuna.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE later (a)")
        connection.commit()
        shutil.copytree(folder, killed)
    alone.mkdir()
    shutil.copy(killed / "optuna.db", alone)
    found = {}
    for place in (killed, alone):
        with Store.open(f"sqlite:///{place / 'optuna.db'}", read_only=True) as store:
            found[place] = [
                finding
                for finding in examine(store, Local(folder / "artifacts"))
                if finding.check is Check.LEFTOVERS
            ]
    (note,) = found[killed]
    assert note.is_note
    assert note.what.startswith("optuna.db-wal holds what was written last")
    assert "sqlite3 optuna.db '.backup copy.db'" in note.way_out
    assert found[alone] == []
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(killed / "optuna.db")) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    for path, has_it in ((alone / "optuna.db", False), (copy, True)):
        with closing(sqlite3.connect(path)) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        assert ("later" in names) is has_it


@pytest.mark.parametrize("name", ["fake/not-ours/2/x", "fake/.."])
def test_anothers_study_is_left_alone(folder: Path, name: str) -> None:
    """One whose name only begins as ours do: its running trial is nothing to mend."""
    with Store.open(f"sqlite:///{folder / 'optuna.db'}") as store:
        theirs = optuna.create_study(study_name=name, storage=store.optuna)
        trial = theirs.ask()
        findings = examine(store, Local(folder / "artifacts"))
        assert [finding for finding in findings if not finding.is_note] == []
        repair(store, findings)
        assert theirs.trials[trial.number].state is TrialState.RUNNING


def test_a_place_out_of_reach_is_no_damage(folder: Path) -> None:
    """The database is whole, and all else of it is looked at."""
    unfinish(folder, GONE, now(30))
    with Store.open(f"sqlite:///{folder / 'optuna.db'}", read_only=True) as store:
        findings = examine(store, locate("ftp://127.0.0.1:1/x"))
    wrong = [finding for finding in findings if not finding.is_note]
    assert [finding.check for finding in wrong] == [Check.TRIALS, Check.ARTIFACTS]
    assert re.search("^fake: ftp://127.0.0.1:1/x can't be read: ", wrong[1].what)


def test_hosts_whose_clocks_differ_are_named(folder: Path) -> None:
    """By how much, from what each host wrote of the same moment; a note, for no figure depends on it."""
    change(
        folder,
        "UPDATE trial_run SET host = 'late'",
        f"UPDATE trial_run SET host = 'early' WHERE trial_id = {ONE}",
        f"UPDATE trials SET datetime_start = datetime(datetime_start, '+2 hours') WHERE trial_id = {ONE}",
    )
    with Store.open(f"sqlite:///{folder / 'optuna.db'}", read_only=True) as store:
        (note,) = (
            finding
            for finding in examine(store, Local(folder / "artifacts"))
            if finding.check is Check.CLOCKS
        )
    assert re.search(r"early was 7,(199|200) s ahead of the database's", note.what)
    assert note.is_note


def test_versions_that_differ_are_noted(folder: Path) -> None:
    """Several in one experiment, and others than are installed here."""
    change(folder, f"""UPDATE trial_run SET versions = '{{"torch": "1.0"}}' WHERE trial_id = {ONE}""")
    with Store.open(f"sqlite:///{folder / 'optuna.db'}", read_only=True) as store:
        notes = [
            finding
            for finding in examine(store, Local(folder / "artifacts"))
            if finding.check is Check.VERSIONS
        ]
    assert all(note.is_note for note in notes)
    assert any("several versions: torch 1.0, " in note.what for note in notes)


def test_on_postgresql(call: Call, prepared_postgresql_url: str, tmp_path: Path) -> None:
    """The same there: an orphan and an untold result are found and mended; the copy is a schema with every row."""
    place = Place(prepared_postgresql_url, Local(tmp_path / "artifacts"), None, "cpu", 1)
    values = {
        "data": pixels(tmp_path),
        "name": "fake",
        "budget": 1000.0,
        "techniques": TECHNIQUES,
        "arms": ["twice"],
    }
    values |= {"recipe": {"batch_size": 8}, "tune_trials": 1, "seeds": 2, "target": 20.0}
    session = Session.prepare(place, Request(values, source="test"), FAKE)
    with session.store as store:
        session.run_here()
        options = ("--storage", prepared_postgresql_url, "--artifacts", str(place.artifacts))
        assert call("doctor", *options).code == 0
        first, second = "(SELECT min(trial_id) FROM trials)", "(SELECT max(trial_id) FROM trials)"
        with store.write() as connection:
            connection.execute(
                text(
                    f"UPDATE trials SET state = 'RUNNING' WHERE trial_id IN ({first}, {second});"
                    f"UPDATE trial_run SET outcome = NULL, owner = '{GONE}' WHERE trial_id = {first}"
                )
            )
        found = call("doctor", *options)
        said = " ".join(found.out.split())
        assert found.code == 1
        assert "tester@" not in said.replace("tester:***@", "")
        mended = call("doctor", *options, "--repair")
        assert mended.code == 0, mended.out
        (kept,) = re.findall(r"Copy of before: schema (backup_\w+) of", mended.out)
        for table in ("trials", "trial_run", "curve", "studies"):
            assert scalar(store, f"SELECT count(*) FROM {kept}.{table}") == scalar(
                store, f"SELECT count(*) FROM {table}"
            )
        assert scalar(store, f"SELECT count(*) FROM {kept}.trials WHERE state = 'RUNNING'") == 2
        with store.write() as connection:
            connection.execute(text(f"DROP SCHEMA {kept} CASCADE"))
        assert records.remaining(store, "fake") == 1


def test_a_repair_takes_nothing_from_a_worker(store: Store) -> None:
    """Who holds a trial now is at work, on every database."""
    plan(store, "fake/search", 2)
    assert at_work(store) == []
    claim = take(store, new_owner(), "fake")
    assert [trial.trial_id for trial in at_work(store)] == [claim.trial_id]
    with pytest.raises(FailureError, match="Workers are at work on fake/search #0"):
        repair(store, [])
    claim.release()
    assert at_work(store) == []
    assert [trial.state for trial in checks.trial_facts(store, "fake")] == [TrialState.WAITING] * 2
