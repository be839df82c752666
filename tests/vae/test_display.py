"""The live display: what a terminal sees, what a file gets."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vae.display import HEIGHT, WIDTH, Display, curve
from vae.evaluation import Evaluation


def evaluation(number: int, loss: float) -> Evaluation:
    return Evaluation(
        number, 100 * (number + 1), number + 1, 0.1, loss, loss, 1.0, loss - 1.0, 3, 1e-3, 1.0, 2.0
    )


def test_a_terminal_sees_a_table_and_a_curve_a_file_plain_lines() -> None:
    """Both see every training's end; a file has no control characters and a line for each tenth evaluation."""
    texts = {}
    for is_terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=is_terminal, width=80, height=40)
        with Display(console, 1000) as display:
            for number in range(25):
                display.show(evaluation(number, 100.0 / (number + 1)), last=number == 24)
        texts[is_terminal] = file.getvalue()
    plain = texts[False].splitlines()
    assert [line.split()[1] for line in plain] == ["0.10", "1.10", "2.10", "2.50"]
    assert all(line.isprintable() for line in plain)
    assert "active" in texts[True]
    assert "2,500 examples" in texts[True]
    assert texts[True].count("*") > 10


def test_a_dumb_terminal_sees_the_lines_of_a_file_as_they_come() -> None:
    """It can't go back to a line, so a live display would be blank until the end."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, _environ={"TERM": "dumb"})
    with Display(console, 1000) as display:
        display.show(evaluation(0, 1.0), last=False)
        assert file.getvalue().startswith("epoch    0.10  valid     1.000")


@pytest.mark.parametrize("scale", [1.0, 250.0, -250.0, 1e28])
def test_eighty_columns_are_enough(scale: float) -> None:
    """Nothing is cut or wrapped on a terminal of that width, nor the lines of a file, however large the losses are."""
    shown = {}
    for is_terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=is_terminal, width=80, height=40, color_system=None)
        with Display(console, 1000) as display:
            display.show(evaluation(0, scale), last=False)
            display.show(evaluation(80, 0.9 * scale), last=True)
        shown[is_terminal] = file.getvalue().splitlines()
    assert max(map(len, shown[False])) <= 110
    assert not any("…" in line for line in shown[True])
    assert any(line.endswith("gradient  seconds") for line in shown[True])
    assert any(line.endswith("8,100 examples") for line in shown[True])


def test_the_curve_falls_from_the_left_to_the_right() -> None:
    """Marks are at their place; one evaluation and losses that aren't finite draw nothing."""
    lines = curve([evaluation(number, 10.0 - number) for number in range(10)])
    marks = [(y, x) for y, line in enumerate(lines[:HEIGHT]) for x, c in enumerate(line) if c == "*"]
    assert len(marks) == 10
    assert [x for _, x in sorted(marks)] == sorted(x for _, x in marks)
    assert max(x for _, x in marks) == 11 + WIDTH - 1
    assert curve([evaluation(0, 1.0), evaluation(1, float("nan"))]) == []
