"""The options of `python -m benchmarks`."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app

BY_HAND = ("by-hand", "--lr", "1", "--lr-arm", "1", "--target", "1")


@pytest.mark.parametrize(
    "command",
    [
        (*BY_HAND, "--seeds", "1"),
        (*BY_HAND, "--epochs", "0"),
        ("load", "--wait", "0"),
        ("study", "--rounds", "0"),
        ("verdicts", "--studies", "0"),
    ],
)
def test_too_few_for_a_figure_is_refused(command: tuple[str, ...]) -> None:
    """Before anything is measured: what would end in a division by zero, or in an interval of NaN."""
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert command[-2] in done.output
