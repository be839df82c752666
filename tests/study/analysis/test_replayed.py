"""What a replay is played on."""

from __future__ import annotations

import pytest
from fake_training import Finished

from study.analysis.replayed import recorded
from study.protocol.selection import State


def test_blocks_are_played_on_one_scale(blocked: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block whose split of the data is harder has losses that are higher, and no worse runs for that."""
    with blocked.open() as (store, _):
        before = recorded(store, "fake", "confirm").tapes
        monkeypatch.setattr(State, "above_first", lambda _, block: 5.0 * (block - 1))
        after = recorded(store, "fake", "confirm")
    by_block = [5.0 * (run.block - 1) for run in after.curves]
    assert set(by_block) == {0.0, 5.0}
    assert after.tapes.finals.tolist() == pytest.approx((before.finals - by_block).tolist())
    assert any("on the scale of the first" in note for note in after.curves.notes)
