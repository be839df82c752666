"""What a figure is before anybody draws it: panels with their titles, and how they stand together. No HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go


@dataclass(frozen=True)
class Panel:
    """One graph of a figure; `narrow` are layout values that replace the figure's on a narrow page."""

    key: str
    title: str
    figure: go.Figure
    note: str = ""
    family: str | None = None
    narrow: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A figure: one graph, a wide one (which scrolls on a phone), a pair, or a grid of small ones with one
    caption. `axes` says what a grid's axes are.

    `choice` groups figures of which the page shows one at a time, by the name `option`."""

    id: str
    title: str
    caption: str
    panels: Sequence[Panel]
    layout: Literal["single", "wide", "pair", "grid"] = "single"
    axes: str = ""
    choice: str = ""
    option: str = ""
    kind: Literal["figure"] = "figure"


def single(
    id: str,
    key: str,
    title: str,
    caption: str,
    graph: go.Figure,
    *,
    axes: str = "",
    layout: Literal["single", "wide"] = "single",
    narrow: dict[str, Any] | None = None,
) -> Figure:
    """A figure of one graph, which needs no title of its own; `key` is the graph's."""
    return Figure(id, title, caption, [Panel(key, "", graph, narrow=narrow or {})], layout, axes)


def as_float(value: Any) -> float:
    """The value as a float, NaN where it is missing."""
    return float("nan") if value is None or pd.isna(value) else float(value)
