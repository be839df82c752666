"""Every refusal is one clear line with cause and way out, and leaves the file as it was."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from fake_study import plan, row, take
from postgresql import PASSWORD

from study.store import records, sqlite
from study.store.owner import new_owner
from study.store.store import Store
from vae.errors import FailureError, UserError


def snapshot(folder: Path) -> dict[str, str]:
    """Every file of a folder with the hash of its bytes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def refusal(url: str, *, create: bool = False, read_only: bool = False) -> str:
    """The one line with which a database is refused."""
    with pytest.raises(UserError) as caught:
        Store.open(url, create=create, read_only=read_only)
    message = str(caught.value)
    assert "\n" not in message
    # How deep the tests' folder lies is no fault of the message.
    assert len(message.replace(url.removeprefix("sqlite:///"), "")) < 250
    return message


def corrupt_header(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 500)


def corrupt_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 12] = b"\xff" * (4096 * 9)
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 4096 * 5 + 1000])


def truncate_by_pages(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 4096 * 5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def sql(*statements: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    return change


def foreign(path: Path) -> None:
    path.unlink()
    sql("CREATE TABLE invoices (id)")(path)


def clash(path: Path) -> None:
    path.unlink()
    optuna.storages.RDBStorage(f"sqlite:///{path}").engine.dispose()
    sql("CREATE TABLE curve (x)")(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN = [
    (corrupt_header, "is damaged. Restore"),
    (corrupt_page, "is damaged. Restore"),
    (truncate, "is damaged. Restore"),
    (truncate_by_pages, "is damaged. Restore"),
    (empty, "is empty (0 bytes), not a database. Delete it"),
    (foreign, "belongs to another program (its tables: invoices, ...). Give another --storage"),
    (clash, "has a table 'curve' of another program. Give another --storage"),
    (
        sql("UPDATE study_schema SET version = 99"),
        "written by a newer vae-study (tables 99, this one knows 1)",
    ),
    (sql("UPDATE alembic_version SET version_num = 'v99'"), "newer Optuna. Upgrade: pip install -U optuna"),
    (
        sql("UPDATE alembic_version SET version_num = 'v3.0.0.a'"),
        "older Optuna. Upgrade it: optuna storage upg",
    ),
]


@pytest.mark.parametrize(("spoil", "expected"), BROKEN)
def test_a_broken_file_is_refused_untouched(
    spoil: Callable[[Path], None], expected: str, prepared_sqlite_url: str, tmp_path: Path
) -> None:
    """Launcher, worker and reader refuse a damaged, foreign or newer file, and none changes a byte."""
    path = tmp_path / "optuna.db"
    spoil(path)
    before = snapshot(tmp_path)
    assert expected in refusal(prepared_sqlite_url, create=True)
    if spoil is not corrupt_page:  # only the launcher reads every page
        assert expected in refusal(prepared_sqlite_url)
        assert expected in refusal(prepared_sqlite_url, read_only=True)
    assert snapshot(tmp_path) == before


def test_a_missing_file_is_not_made_by_a_worker_or_reader(sqlite_url: str, tmp_path: Path) -> None:
    """Only a launcher makes a database; nobody makes folders, or a file over a leftover log."""
    assert "No database" in refusal(sqlite_url)
    assert "No database" in refusal(sqlite_url, read_only=True)
    assert "No folder" in refusal(f"sqlite:///{tmp_path}/missing/optuna.db", create=True)
    assert "is a folder" in refusal(f"sqlite:///{tmp_path}", create=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "optuna.db-wal").write_bytes(b"left behind")
    assert "is gone but optuna.db-wal is still there" in refusal(sqlite_url, create=True)


def test_a_plain_optuna_database_gets_our_tables(database_url: str) -> None:
    """A file in which Optuna has a study is taken over by a launcher, its study kept; not by a worker."""
    url = optuna.storages.RDBStorage(database_url)
    optuna.create_study(study_name="mine", storage=url).optimize(lambda trial: trial.number, n_trials=2)
    url.remove_session()
    url.engine.dispose()
    assert "holds no study of this program" in refusal(database_url)
    with Store.open(database_url, create=True) as store:
        assert store.experiments() == []
        assert len(optuna.load_study(study_name="mine", storage=store.optuna).trials) == 2
        plan(store, "digits/a", 1)
        take(store, new_owner()).record([row(0)])
    Store.open(database_url).close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mysql://me:s3cret-pass@host/db", "can't be 'mysql'"),
        ("postgresql+psycopg2://me:s3cret-pass@host/db", "can't be 'postgresql+psycopg2'"),
        ("redis://me:s3cret-pass@host", "can't be 'redis'"),
        ("optuna.db", "--storage optuna.db is not a database URL"),
        ("postgresql://me:s3cret-pass@host:port/db", "is not a database URL"),
        ("sqlite://", "must name a SQLite file"),
        ("sqlite:///:memory:", "must name a SQLite file"),
    ],
)
def test_a_wrong_url_is_refused_by_name(url: str, expected: str) -> None:
    """What can't be a --storage is named, without its password, with what can."""
    message = refusal(url, create=True)
    assert expected in message
    assert "sqlite:///optuna.db" in message
    assert PASSWORD not in message


def test_any_file_name_works(tmp_path: Path) -> None:
    """Spaces, braces, percent, hash and accents in a path mean nothing special."""
    place = tmp_path / "a %20 {b} #é"
    place.mkdir()
    url = sqlalchemy.URL.create("sqlite", database=str(place / "my study.db")).render_as_string()
    with Store.open(url, create=True) as store:
        plan(store, "digits/a", 1)
        take(store, new_owner()).record([row(0)])
    with Store.open(url, read_only=True) as store:
        assert len(records.curves(store, "digits")) == 1
    assert [path.name for path in place.iterdir()] == ["my study.db"]


def test_a_reader_leaves_no_trace(prepared_sqlite_url: str, tmp_path: Path) -> None:
    """Reading changes no byte and leaves no file, whether the last writer closed or was killed."""
    with Store.open(prepared_sqlite_url) as store:
        plan(store, "digits/a", 1)
        take(store, new_owner()).record([row(0)])
    for state in ("closed", "killed"):
        before = snapshot(tmp_path)
        assert len(before) == (1 if state == "closed" else 3)
        with Store.open(prepared_sqlite_url, read_only=True) as reader:
            assert len(records.curves(reader, "digits")) == 1
            assert len(optuna.load_study(study_name="digits/a", storage=reader.optuna).trials) == 1
        after = snapshot(tmp_path)
        after["optuna.db-shm"] = before.get("optuna.db-shm", after.get("optuna.db-shm", ""))  # locks only
        assert after == before or (state == "closed" and after.pop("optuna.db-shm") == "" and after == before)
        if state == "closed":
            code = (
                "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA journal_mode=WAL')\n"
                "c.execute('UPDATE curve SET examples = 7'); c.commit(); os._exit(0)"
            )
            subprocess.run([sys.executable, "-c", code, tmp_path / "optuna.db"], check=True)


READ_ONLY_PROGRAM = """
import sys
from study.store import records
from study.store.store import Store
from vae.errors import UserError
for url in sys.argv[1:]:
    for mode in ({"create": True}, {}, {"read_only": True}):
        try:
            with Store.open(url, **mode) as store:
                print("opened", list(records.study_ids(store, "digits")))
        except UserError as error:
            print(error)
"""

#: Root may write anywhere: run a program without the right to override permissions.
WITHOUT_OVERRIDE = """
import ctypes, os, sys
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities")
def test_a_read_only_place_is_refused_untouched(prepared_sqlite_url: str, tmp_path: Path) -> None:
    """A file, its folder, or a folder without one that mustn't be written: launchers and workers say so; a reader
    reads; not a byte changes."""
    with Store.open(prepared_sqlite_url) as store:
        plan(store, "digits/a", 1)
    places = {name: tmp_path / name for name in ("file", "folder", "new")}
    for folder in places.values():
        folder.mkdir()
        shutil.copy(tmp_path / "optuna.db", folder)
    (places["file"] / "optuna.db").chmod(0o444)
    places["folder"].chmod(0o555)
    (places["new"] / "optuna.db").unlink()
    places["new"].chmod(0o555)
    before = {name: snapshot(folder) for name, folder in places.items()}
    urls = [f"sqlite:///{folder / 'optuna.db'}" for folder in places.values()]
    run = [sys.executable, "-c", WITHOUT_OVERRIDE, "-c", READ_ONLY_PROGRAM, *urls]
    try:
        lines = subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()
    finally:
        for folder in places.values():
            folder.chmod(0o755)
    assert len(lines) == 9
    for said in (lines[0], lines[3], lines[6]):
        assert "is in a read-only place. Allow writing there, or give another --storage" in said
    for said in (lines[1], lines[4]):
        assert "is in a read-only place" in said
    assert lines[2] == lines[5] == "opened ['digits/a']"
    assert {name: snapshot(folder) for name, folder in places.items()} == before


def test_what_a_killed_creation_left_is_cleaned_up(sqlite_url: str, tmp_path: Path) -> None:
    """A database appears complete or not at all; the next launcher removes what a killed one left, its lock too."""
    (tmp_path / ".optuna.db.lock").touch()
    for end in ("", "-wal", "-shm"):
        (tmp_path / f".optuna.db.12345.new{end}").write_bytes(b"half done")
    Store.open(sqlite_url, create=True).close()
    assert [path.name for path in tmp_path.iterdir()] == ["optuna.db"]


@pytest.mark.parametrize("seconds", [2.0, pytest.param(20.0, marks=pytest.mark.faults)])
def test_a_locked_database_is_waited_for(prepared_sqlite_url: str, tmp_path: Path, seconds: float) -> None:
    """Another process may hold the write lock for a while: opening, claiming and writing wait for it."""
    path = tmp_path / "optuna.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as locker:

        def waited(work: Callable[[], object]) -> float:
            locker.execute("BEGIN EXCLUSIVE")
            timer = threading.Timer(seconds, lambda: locker.execute("COMMIT"))
            timer.start()
            began = time.monotonic()
            work()
            timer.join()
            return time.monotonic() - began

        assert waited(lambda: Store.open(prepared_sqlite_url, create=True).close()) >= seconds - 0.1
        with Store.open(prepared_sqlite_url) as store:
            assert waited(lambda: plan(store, "digits/a", 1)) >= seconds - 0.1
            assert waited(lambda: take(store, new_owner()).record([row(0)])) >= seconds - 0.1


def test_a_lock_that_stays_is_named(
    prepared_sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waited in vain is told that another process holds the lock."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.1)
    with closing(sqlite3.connect(tmp_path / "optuna.db", isolation_level=None)) as locker:
        locker.execute("BEGIN EXCLUSIVE")
        assert "has been locked by another process" in refusal(prepared_sqlite_url)


def test_a_server_out_of_reach_is_named(postgresql_url: str) -> None:
    """Wrong port, password or database: one line with the server's reason and never the password."""
    url = sqlalchemy.make_url(postgresql_url)
    wrong = [
        (url.set(port=1), "Connection refused"),
        (url.set(password=PASSWORD + "x"), "password authentication failed"),
        (url.set(database="missing"), 'database "missing" does not exist'),
    ]
    for bad, expected in wrong:
        with pytest.raises(FailureError) as caught:
            Store.open(bad.render_as_string(hide_password=False), create=True)
        message = str(caught.value)
        assert expected in message
        assert "\n" not in message
        assert PASSWORD not in message


def test_a_foreign_server_database_is_refused(postgresql_url: str) -> None:
    """Tables of another program in a PostgreSQL database: refused, nothing added."""
    engine = sqlalchemy.create_engine(postgresql_url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE invoices (id int)"))
    assert "belongs to another program" in refusal(postgresql_url, create=True)
    assert sqlalchemy.inspect(engine).get_table_names() == ["invoices"]
    engine.dispose()


def test_an_empty_server_database_needs_a_launcher(postgresql_url: str) -> None:
    """A worker or reader makes no tables; a newer schema is refused on PostgreSQL too."""
    assert "holds no study" in refusal(postgresql_url)
    assert "holds no study" in refusal(postgresql_url, read_only=True)
    with Store.open(postgresql_url, create=True) as store, store.write() as connection:
        connection.execute(sqlalchemy.text("UPDATE study_schema SET version = 99"))
    assert "newer vae-study" in refusal(postgresql_url, create=True)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without psycopg the line says what to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'vae-study[postgres]'" in refusal("postgresql://me@localhost/db", create=True)


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_file_that_vanishes_is_not_made_anew(prepared_sqlite_url: str, tmp_path: Path, how: str) -> None:
    """As soon as the path is no longer the open file, whatever is asked of the database says so in one line, Optuna's
    part too; nothing is put in its place."""
    path = tmp_path / "optuna.db"
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    with Store.open(prepared_sqlite_url) as store:
        study = plan(store, "digits/a", 1)
        if how == "replaced":
            copy.replace(path)
        elif how == "moved":
            path.rename(tmp_path / "elsewhere.db")
        else:
            path.unlink()
        for ask in (lambda: records.remaining(store, "digits"), lambda: study.trials, store.experiments):
            gone = pytest.raises(FailureError, match="was deleted or replaced while it was in use")
            with gone, store.database.explained():
                ask()
        store.close()
        with pytest.raises(FailureError, match="was deleted or replaced"):
            store.experiments()
        assert path.exists() == (how == "replaced")


def test_another_programs_studies_stay_and_are_named(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A database with Optuna studies of another program gets our tables beside them, and one line says so, once."""
    theirs = optuna.create_study(study_name="theirs", storage=sqlite_url, direction="maximize")
    theirs.tell(theirs.ask(), 1.0)
    theirs._storage.remove_session()
    theirs._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    for _ in range(2):
        with Store.open(sqlite_url, create=True) as store:
            assert optuna.load_study(study_name="theirs", storage=store.optuna).best_value == 1.0
    said = [message for message in caplog.messages if "another program" in message]
    assert len(said) == 1
    assert "holds 1 studies of another program" in said[0]
