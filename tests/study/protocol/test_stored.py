"""An experiment as the database has it, whoever wrote there."""

from __future__ import annotations

import json

import pytest

from study.design.build import Request, build
from study.protocol.stored import Stored, find_stored
from study.store.schema import experiment
from study.store.store import Store
from vae.errors import FailureError, UserError

SPEC = Stored(build(Request({"arms": ["he"]}), 1_000, None), "0" * 64, 1_000).to_spec()


@pytest.mark.parametrize(
    "spec",
    [
        *("{", "3", "null", "[]", "{}", "[" * 100_000),
        {"experiment": 3},
        {"experiment": None},
        {"experiment": {}},
        {"experiment": {"techniques": {"mine": 3}, "recipe": {}}},
        SPEC | {"n_train": "x"},
        SPEC | {"n_train": None},
        SPEC | {"artifacts": "x"},
        SPEC | {"artifacts": {"identity": "a"}},
        SPEC | {"dimensions": "x"},
    ],
)
def test_what_this_program_can_t_have_written_is_one_line(store: Store, spec: object) -> None:
    """A spec that is no JSON or of other types: its experiment and the way out are named."""
    store.save_experiment("digits", SPEC)
    assert find_stored(store, "digits") is not None
    with store.write() as connection:
        text = spec if isinstance(spec, str) else json.dumps(spec)
        connection.execute(experiment.update().values(spec=text))
    with pytest.raises(UserError, match="experiment 'digits'") as refused:
        find_stored(store, "digits")
    assert isinstance(refused.value, FailureError)
    assert "\n" not in str(refused.value)
