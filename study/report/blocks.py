"""What a page is made of: sections of figures, pictures, tables and texts. No HTML and no computing in here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from study.analysis import words
from study.analysis.words import DASH
from study.figures.panel import Figure, as_float
from study.statistics.speed_up import Estimate


class Cell(NamedTuple):
    """One cell: its text, what it sorts by (text itself where none), and a family whose mark it carries."""

    text: str
    sort: float | str | None = None
    family: str | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table, sortable unless it is a list of facts. The first column heads the rows; those in `words` hold
    words, the others numbers. A `closed` one repeats a figure and waits to be opened."""

    id: str
    caption: str
    titles: tuple[str, ...]
    rows: list[list[Cell]]
    words: tuple[str, ...]
    sortable: bool = True
    closed: bool = False
    kind: Literal["table"] = "table"

    @property
    def numeric(self) -> frozenset[str]:
        """The titles of columns that are aligned right."""
        return frozenset(self.titles) - set(self.words)


@dataclass(frozen=True)
class Picture:
    """An image made of pixels, as a PNG; shown `width` CSS pixels wide at most."""

    id: str
    title: str
    caption: str
    alt: str
    png: bytes
    width: int
    kind: Literal["picture"] = "picture"


@dataclass(frozen=True)
class Text:
    """Text to copy, such as a recipe; closed until it is asked for unless `open`."""

    id: str
    title: str
    text: str
    open: bool = False
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class Notes:
    """A list of sentences."""

    items: Sequence[str]
    kind: Literal["notes"] = "notes"


Block = Table | Figure | Picture | Text | Notes


@dataclass(frozen=True)
class Section:
    """A part of the page; `missing` says what is not there yet, in place of a broken figure."""

    id: str
    title: str
    lead: str = ""
    blocks: Sequence[Block] = ()
    missing: str = ""


def number(value: Any, form: str = ".4g") -> Cell:
    """A number's cell; a dash, sorted last, where there is none."""
    value = as_float(value)
    text = words.number(value, form)
    return Cell(text) if math.isnan(value) else Cell(text, value)


def estimate(e: Estimate | None) -> Cell:
    """A ratio and its interval; sorted by the ratio."""
    return Cell(DASH) if e is None or math.isnan(e.ratio) else Cell(words.ratio_of(e), e.ratio)
