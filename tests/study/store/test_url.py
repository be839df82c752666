"""No password leaves the process, whatever the URL looks like, and no URL opens another place than was meant."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st

from study.cli.terminal import again
from study.store.database import Database
from study.store.store import Store
from study.store.url import shown, without_secrets
from vae.errors import FailureError, UserError

SECRET = "Zq7!x"
URLS = [
    f"postgresql+psycopg://me:{SECRET}@host/db",
    f"postgresql://me:{SECRET}@host:5432/db?sslmode=require",
    f"postgresql://me:a@{SECRET}@host/db",  # an '@' that isn't escaped
    f"postgresql://me:a/{SECRET}@host/db",
    f"postgresql://me:a?{SECRET}@host/db",
    f"postgresql://me:{SECRET}:x@host/db",
    f"me:{SECRET}@host/db",  # without ://
    f"postgresql:/me:{SECRET}@host/db",
    f"postgresql://me@host/db?password={SECRET}",
    f"postgresql://me@host/db?password=a@{SECRET}",
    f"mysql://me:{SECRET}@host/db",
    f"postgresql://me:{SECRET}@host:port/db",
    f"postgresql://me:{SECRET}@host/db?options=-csearch_path%3Delsewhere",
    f"postgresql://me:{SECRET}@host/db?sslmod=require",
]


@pytest.mark.parametrize("url", URLS)
def test_a_password_is_never_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In no line that names the database, no refusal, and not in the line to go on with."""
    assert SECRET not in shown(url)
    try:
        said = Database.parse(url).name
    except UserError as error:
        said = str(error)
    assert SECRET not in said
    assert "\n" not in said
    if "://" in url:
        for arguments in (["--storage", url], [f"--storage={url}"]):
            monkeypatch.setattr(sys, "argv", ["study", "run", *arguments])
            assert SECRET not in again("run")
            assert "VAE_STUDY_STORAGE" in again("run")


@given(
    st.text(st.characters(codec="ascii", exclude_categories=("Cc",), exclude_characters=":?@"), min_size=1)
)
def test_what_holds_no_password_is_shown_whole(place: str) -> None:
    """A file's path or a server's address stays as it is."""
    assert shown(f"sqlite:///{place}") == f"sqlite:///{place}"


def test_the_line_to_go_on_with_is_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a password nothing of it changes."""
    typed = ["run", "--storage", "postgresql://me@host/db?sslmode=require", "--data", "a b.npy"]
    monkeypatch.setattr(sys, "argv", ["study", *typed])
    assert (
        again("run")
        == "python -m study run --storage 'postgresql://me@host/db?sslmode=require' --data 'a b.npy'"
    )


def test_a_short_password_leaves_other_words_alone() -> None:
    """A password of one letter is masked where a password stands, and not in every word."""
    message = 'connection to "a": password=a is bad, postgresql://me:a@host failed'
    assert without_secrets(message, ["a"]) == (
        'connection to "a": password=*** is bad, postgresql://me:***@host failed'
    )
    assert without_secrets("wrong: hunter22", ["hunter22", ""]) == "wrong: ***"


def test_a_question_mark_opens_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLAlchemy would open `what` for `what?.db`."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"a '\?' begins options"):
        Store.open("sqlite:///what?.db", create=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("sslmod=require", "has no option 'sslmod'. Did you mean 'sslmode'?"),
        ("options=-csearch_path%3Dx", "'options' is set by this program"),
    ],
)
def test_options_of_a_url_are_checked(postgresql_url: str, option: str, said: str) -> None:
    """One line for an option that there isn't, or that would move our tables; nothing is made."""
    with pytest.raises(UserError) as caught:
        Store.open(f"{postgresql_url}?{option}", create=True)
    assert said in str(caught.value)
    engine = sqlalchemy.create_engine(postgresql_url)
    assert sqlalchemy.inspect(engine).get_table_names() == []
    engine.dispose()


def test_a_role_that_may_not_create_tables_is_told(postgresql_url: str) -> None:
    """PostgreSQL 15's default: the line names what the owner can do, and nothing is left behind."""
    admin = sqlalchemy.create_engine(postgresql_url)
    with admin.begin() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS plain_role")
        connection.exec_driver_sql("CREATE ROLE plain_role LOGIN PASSWORD 'plain-pass'")
        connection.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    url = sqlalchemy.make_url(postgresql_url).set(username="plain_role", password="plain-pass")
    with pytest.raises(FailureError) as caught:
        Store.open(url.render_as_string(hide_password=False), create=True)
    assert "this role may not create tables" in str(caught.value)
    assert "GRANT CREATE ON SCHEMA public TO plain_role;" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sqlalchemy.inspect(admin).get_table_names() == []
    with admin.begin() as connection:
        connection.exec_driver_sql("DROP ROLE plain_role")
    admin.dispose()
