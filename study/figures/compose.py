"""Several panels as one plotly figure: for image files, and for the dashboard's box."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from study.figures.panel import Figure, Panel
from study.figures.theme import INK, MUTED, PAPER, TEMPLATE, blank, label_text, shorten

#: Pixels of an image file's width, of a small panel's height, and between panels for ticks and titles.
WIDTH, PANEL, GAP_X, GAP_Y = 1000, 170, 46, 58
COLUMNS = 4
#: Ticks of a small panel whose labels don't lie on each other in the dashboard's box.
FEW_TICKS = 4


def compose(
    panels: Sequence[Panel],
    columns: int,
    gap: tuple[float, float],
    heading: Callable[[Panel], str],
    *,
    outer_labels: bool = False,
) -> go.Figure:
    """The panels in rows of `columns` on axes of their own; the caller sets height and margins.

    `gap` is the space between them as shares of the plot's width and height; `heading` is a panel's title in
    plotly's markup. With `outer_labels` only the lowest and leftmost axes have tick labels, few of them: for panels
    on the same axes."""
    rows = math.ceil(len(panels) / columns)
    figure = go.Figure(layout={"template": TEMPLATE, "showlegend": False})
    layout: dict[str, Any] = {"annotations": [], "shapes": []}
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        number = str(i + 1) if i else ""
        across, up = _domain(column, columns, gap[0]), _domain(rows - 1 - row, rows, gap[1])
        figure.add_traces(
            [_moved(trace.to_plotly_json(), number, ("xaxis", "yaxis")) for trace in panel.figure.data]
        )
        drawn = panel.figure.layout.to_plotly_json()
        axes = {"x": drawn.get("xaxis", {}), "y": drawn.get("yaxis", {})}
        if outer_labels:
            below = i + columns < len(panels)
            axes["x"] = _fewer_ticks(axes["x"]) | {"showticklabels": not below}
            axes["y"] = axes["y"] | {"showticklabels": column == 0}
        layout[f"xaxis{number}"] = axes["x"] | {"domain": across, "anchor": f"y{number}", "automargin": False}
        layout[f"yaxis{number}"] = axes["y"] | {"domain": up, "anchor": f"x{number}", "automargin": False}
        for kind in ("shapes", "annotations"):
            layout[kind] += [_moved(part, number) for part in drawn.get(kind, ())]
        layout["annotations"].append(_text(heading(panel), across[0], up[1], "bottom", 12, INK))
    return figure.update_layout(layout)


def composite(block: Figure) -> go.Figure:
    """A figure of the report for a file: its panels on white, side by side or in a grid, with their titles."""
    if len(block.panels) == 1:
        only = block.panels[0].figure
        own = only.layout.margin
        margin = {"l": 20, "r": 20 if own.r is None else own.r, "t": own.t, "b": own.b}
        return go.Figure(only).update_layout(width=WIDTH, paper_bgcolor=PAPER, margin=margin)
    is_grid = block.layout == "grid"
    columns = COLUMNS if is_grid else 1
    inner = PANEL if is_grid else max(panel.figure.layout.height for panel in block.panels)
    left, right, top, bottom = (40, 20, 64, 40) if is_grid else (120, 140, 64, 40)
    plot_width = WIDTH - left - right
    plot_height = math.ceil(len(block.panels) / columns) * (inner + GAP_Y) - GAP_Y
    gap = GAP_X / plot_width, GAP_Y / plot_height
    figure = compose(
        block.panels, columns, gap, lambda p: f"<b>{label_text(p.title)}</b> {label_text(p.note)}"
    )
    axes = _text(label_text(block.axes or block.title), 0, 1, "top", 13, MUTED) | {"yshift": 44}
    figure.add_annotation(axes)
    margin = {"l": left, "r": right, "t": top, "b": bottom}
    height = plot_height + top + bottom
    return figure.update_layout(blank(height, width=WIDTH, paper_bgcolor=PAPER, margin=margin).layout)


def boxed(panels: Sequence[Panel]) -> go.Figure:
    """Small panels with the same axes as one figure for a box that is wider than high."""
    columns = min(len(panels), math.ceil(math.sqrt(1.3 * len(panels))))
    figure = compose(panels, columns, (0.02, 0.07), lambda p: label_text(shorten(p.title)), outer_labels=True)
    figure.update_annotations(font={"size": 11})
    return figure.update_layout(margin={"l": 46, "r": 12, "t": 14, "b": 30})


def _domain(at: int, of: int, gap: float) -> list[float]:
    """Where cell `at` of `of` begins and ends, as shares of the whole."""
    size = (1 - gap * (of - 1)) / of
    return [at * (size + gap), min(1.0, at * (size + gap) + size)]


def _fewer_ticks(axis: dict[str, Any]) -> dict[str, Any]:
    """The axis with few of the ticks that it names: more would be turned on their side."""
    step = math.ceil(len(axis.get("tickvals", ())) / FEW_TICKS) or 1
    return axis | {key: list(axis[key])[::step] for key in ("tickvals", "ticktext") if key in axis}


def _moved(part: dict[str, Any], number: str, keys: tuple[str, str] = ("xref", "yref")) -> dict[str, Any]:
    """A trace, shape or note of a figure of its own, on the axes of that number; `keys` are where it says its axes.
    What stood at "paper" stands in the panel's own domain."""
    found = {key: str(part.get(key, key[0])).replace("paper", f"{key[0]} domain") for key in keys}
    return part | {key: re.sub(r"^([xy])\b", rf"\g<1>{number}", on) for key, on in found.items()}


def _text(text: str, x: float, y: float, anchor: str, size: int, colour: str) -> dict[str, Any]:
    at = {"x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": anchor}
    return at | {"text": text, "font": {"size": size, "color": colour}, "showarrow": False}
