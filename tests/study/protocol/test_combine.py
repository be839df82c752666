"""Which techniques are tried together, and when."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_training import Finished

from study.design.build import Request, build
from study.protocol.combine import combined_choice, together


def test_at_most_one_technique_a_slot_is_combined(compared: Finished) -> None:
    """Of each slot the arm with the best lower limit above 1 is combined; other models stay out."""
    with compared.open() as (_, state):
        assert combined_choice(state) == ["twice", "half-more"]
        state.experiment.known["half-more"] = state.experiment.known["half-more"].model_copy(
            update={"slot": "init"}
        )
        assert combined_choice(state) == ["twice"]
        update = {"different_model": True}
        state.experiment.known["twice"] = state.experiment.known["twice"].model_copy(update=update)
        assert combined_choice(state) == ["half-more"]


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"a": {"warmup": 0.3}, "b": {"init": "orthogonal"}}, "ab"),
        ({"a": {"lr_schedule": "cosine", "horizon": 0.2}, "b": {"warmup": 0.3}, "c": {"beta": 0.5}}, "ac"),
        ({"a": {"optimizer": "muon"}, "b": {"optimizer_options.momentum": 0.5}}, "a"),
        ({"a": {"warmup": 0.3}, "b": {"horizon": 0.9}, "c": {"lr_schedule": "cosine"}}, "abc"),
        # All three go together, but not without the one in the middle.
        (
            {"a": {"lr_schedule": "cosine", "horizon": 0.2}, "b": {"horizon": 0.9}, "c": {"warmup": 0.3}},
            "ab",
        ),
    ],
)
def test_what_can_t_be_one_recipe_is_not_combined(changes: dict[str, dict[str, Any]], kept: str) -> None:
    """A technique that doesn't go with the better ones, in the combined arm or without one of them, is passed over."""
    fields = {"family": "regularisation", "slot": "any"}
    techniques = dict.fromkeys(changes, fields)
    experiment = build(Request({"arms": [*changes], "techniques": techniques}), 1_000, None)
    assert together(experiment, experiment.workload(1_000), [*changes], changes) == list(kept)


@pytest.mark.parametrize("failed", [True, False])
def test_an_arm_that_can_t_be_tuned_is_not_waited_for(
    compared: Finished, tmp_path: Path, failed: bool
) -> None:
    """What is combined is chosen once every arm is confirmed but those whose tuning failed as a whole."""
    folder = compared.copy(tmp_path)
    with closing(sqlite3.connect(folder / "optuna.db")) as database, database:
        of_arm = "SELECT trial_id FROM trial_run WHERE arm = 'never' AND phase = "
        database.execute(f"DELETE FROM trials WHERE trial_id IN ({of_arm} 'confirm')")
        if failed:
            database.execute(f"UPDATE trial_run SET outcome = 'failed' WHERE trial_id IN ({of_arm} 'tune')")
    with Finished(folder, {}).open() as (_, state):
        assert state.confirmed == failed
