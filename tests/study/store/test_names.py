"""Names of experiments, also those of a database that somebody made to do harm."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy
from command_line import Call

from study.store.names import require_name
from study.store.store import Store
from vae.errors import UserError

HOSTILE = ["../../x", "/tmp/x", "..", ".", "a/b", "", "x" * 201, "a\0b"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_never_leads_out_of_its_folder(name: str) -> None:
    """No separator, no parent folder, nothing empty or endless; any other text is a name."""
    with pytest.raises(UserError, match="must have 1 to 200 characters"):
        require_name(name, "--name")
    assert require_name("..x", "--name") == "..x"
    assert require_name("naïve %", "--name") == "naïve %"


@pytest.mark.parametrize("command", [["report"], ["export"], ["report", "--format", "md"], ["show"]])
@pytest.mark.parametrize("given", [True, False])
def test_a_hostile_database_writes_nowhere(
    call: Call, prepared_sqlite_url: str, tmp_path: Path, command: list[str], given: bool
) -> None:
    """An experiment that is called a path, as SQL can do, is refused in one line, and nothing is written."""
    with Store.open(prepared_sqlite_url) as store, store.write() as connection:
        insert = "INSERT INTO experiment (name, spec, created) VALUES ('../escaped', '{}', 1.0)"
        connection.execute(sqlalchemy.text(insert))
    before = sorted(path.name for path in tmp_path.parent.iterdir())
    name = ["--name", "../escaped"] if given else []
    result = call(*command, "--storage", prepared_sqlite_url, *name)
    assert result.code == 2
    assert "must have 1 to 200 characters" in result.err
    assert sorted(path.name for path in tmp_path.parent.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["optuna.db"]
