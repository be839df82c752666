"""Fixtures: a database of each kind, SQLite in a file and a PostgreSQL server that the tests start."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import optuna
import pytest
import sqlalchemy
from postgresql import PASSWORD, programs

from study.store.owner import new_owner
from study.store.store import Store

if TYPE_CHECKING:
    from command_line import Call
    from fake_training import Finished

pytest.register_assert_rewrite("fake_study")

# How long an example takes says something of the machine: only tests that bound a time set a deadline.
hypothesis.settings.register_profile("study", deadline=None)
hypothesis.settings.load_profile("study")


@pytest.fixture(autouse=True, scope="session")
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """`postgresql+psycopg://user:password@host:port` of a server that lives as long as the test session."""
    found = programs()
    folder = Path(tempfile.mkdtemp(prefix="study-postgresql-"))
    as_server: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_server = ["runuser", "-u", "postgres", "--"]
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, log = folder / "data", folder / "log"
    init = [found / "initdb", "-D", data, "-U", "tester", "-A", "scram-sha-256", "--no-sync"]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
    control = [found / "pg_ctl", "-D", data, "-w"]
    run = [*as_server, *map(str, init), f"--pwfile={folder / 'password'}"]
    try:
        subprocess.run(run, check=True, capture_output=True, cwd=folder)
        run = [*as_server, *map(str, control), "-o", options, "-l", str(log), "start"]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        yield f"postgresql+psycopg://tester:{PASSWORD}@127.0.0.1:{port}"
    finally:
        if data.exists():
            run = [*as_server, *map(str, control), "-m", "immediate", "stop"]
            subprocess.run(run, check=False, capture_output=True, cwd=folder)
        shutil.rmtree(folder)


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """The URL of a fresh, empty PostgreSQL database."""
    name = f"t{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(f"{postgresql_server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        yield f"{postgresql_server}/{name}"
        connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that doesn't exist yet."""
    return f"sqlite:///{tmp_path / 'optuna.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty place for a database, of each kind in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A new database of each kind, as a launcher leaves it. Copied or emptied, which is faster than made."""
    url: str = request.getfixturevalue(f"prepared_{request.param}_url")
    with Store.open(url, create=True) as opened:
        yield opened


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "optuna.db"
    Store.open(f"sqlite:///{path}", create=True).close()
    return path


@pytest.fixture
def prepared_sqlite_url(_sqlite_template: Path, sqlite_url: str, tmp_path: Path) -> str:
    """The URL of a SQLite file with all tables and no rows."""
    shutil.copy(_sqlite_template, tmp_path / "optuna.db")
    return sqlite_url


@pytest.fixture(scope="session")
def _postgresql_template(postgresql_server: str) -> str:
    url = f"{postgresql_server}/postgres"
    Store.open(url, create=True).close()
    return url


@pytest.fixture
def prepared_postgresql_url(_postgresql_template: str) -> str:
    """The URL of a PostgreSQL database with all tables and no rows."""
    kept = ("alembic_version", "version_info", "study_schema")
    engine = sqlalchemy.create_engine(_postgresql_template)
    with engine.begin() as connection:
        tables = [table for table in sqlalchemy.inspect(connection).get_table_names() if table not in kept]
        connection.execute(sqlalchemy.text(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE"))
    engine.dispose()
    return _postgresql_template


@pytest.fixture(scope="session")
def _s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    from s3 import serve

    buckets = tmp_path_factory.mktemp("buckets")
    with serve(buckets) as environment:
        yield buckets, environment


@pytest.fixture
def s3_url(_s3_server: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> str:
    """s3://BUCKET of a new and empty bucket, for this process and those that it starts."""
    buckets, environment = _s3_server
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"t{uuid.uuid4().hex}"
    (buckets / bucket).mkdir()
    return f"s3://{bucket}"


@pytest.fixture
def owners() -> list[str]:
    """Two live workers (both are this process)."""
    return [new_owner(), new_owner()]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in the test's empty folder."""
    from command_line import caller

    return caller(tmp_path, monkeypatch, capsys)


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A comparison of five arms with known answers, run to its end; not to be changed."""
    from fake_training import FIVE_ARMS, finish  # torch, which most tests of the storage do without

    return finish(tmp_path_factory.mktemp("compared"), **FIVE_ARMS)


@pytest.fixture(scope="session")
def one_arm(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A comparison of one arm, `twice`, which needs half of the baseline's examples, run to its end; not to be
    changed."""
    from fake_training import finish

    return finish(tmp_path_factory.mktemp("one-arm"), tune_trials=2, seeds=4)


@pytest.fixture(scope="session")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A comparison in two blocks, run to its end; not to be changed."""
    from fake_training import TWO_BLOCKS, finish

    return finish(tmp_path_factory.mktemp("blocked"), **TWO_BLOCKS)
