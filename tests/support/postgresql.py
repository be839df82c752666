"""What the tests know of the PostgreSQL server that they start."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

#: Also proves that no message prints it.
PASSWORD = "s3cret-pass"


def programs() -> Path:
    """The folder of initdb and pg_ctl. Where they or the driver are missing: skip, but fail in CI."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    missing = [] if folders else ["Debian's package postgresql"]
    if importlib.util.find_spec("psycopg") is None:
        missing.append("pip's psycopg[binary]")
    if missing:
        message = f"The tests on PostgreSQL need {' and '.join(missing)}."
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folders[-1]
