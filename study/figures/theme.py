"""What all figures share: colours for a light and a dark page, symbols of the families, the template."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

#: Height of a panel of a grid in pixels.
PANEL_HEIGHT = 178
#: Pixels of the shortest axis there is: that of a panel, two in a row, on a phone.
NARROWEST = 110
FONT = '"Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'

PAPER = "#fdfdfc"
INK = "#1f2328"
MUTED = "#5b626d"
RULE = "#e5e4de"
GREY = "#737a85"
BLUE = "#0072b2"
ORANGE = "#b57500"
GREEN = "#00805c"
PURPLE = "#a8508a"
VERMILLION = "#c84e00"
SKY = "#3a8fc4"
OLIVE = "#7d7000"

#: Okabe & Ito (2008), in a light and a dark edition with at least 3:1 against the page (WCAG 1.4.11). A figure
#: is made of the light ones; the page puts the dark ones in their place where the reader prefers them.
DARK = {
    PAPER: "#15181b",
    INK: "#e9e7e2",
    MUTED: "#a6adb7",
    RULE: "#2d3238",
    GREY: "#959da8",
    BLUE: "#58a9e0",
    ORANGE: "#e69f00",
    GREEN: "#2dbb8f",
    PURPLE: "#d98bba",
    VERMILLION: "#f2803f",
    SKY: "#9ad5fa",
    OLIVE: "#e3d63b",
}


#: The same colours as the page's CSS variables.
COLOUR_NAMES = {
    "paper": PAPER,
    "ink": INK,
    "muted": MUTED,
    "rule": RULE,
    "grey": GREY,
    "blue": BLUE,
    "orange": ORANGE,
    "green": GREEN,
    "purple": PURPLE,
    "vermillion": VERMILLION,
    "sky": SKY,
    "olive": OLIVE,
}


class Mark(NamedTuple):
    """How a family is told apart: by symbol first, by colour as well."""

    symbol: str  # plotly's name
    colour: str
    path: str  # the same symbol as an SVG path in a box of 16 x 16

    @property
    def variable(self) -> str:
        """The CSS variable that holds the colour."""
        return next(f"--{name}" for name, colour in COLOUR_NAMES.items() if colour == self.colour)


FAMILIES = {
    "initialisation": Mark("circle", BLUE, "M8 2.5a5.5 5.5 0 1 0 .01 0z"),
    "mini-batches": Mark("square", ORANGE, "M3 3h10v10H3z"),
    "learning-rate decay": Mark("diamond", GREEN, "M8 1.5 14.5 8 8 14.5 1.5 8z"),
    "regularisation": Mark("triangle-up", PURPLE, "M8 2l6.5 11.5h-13z"),
    "optimizer": Mark("triangle-down", VERMILLION, "M8 14 1.5 2.5h13z"),
    "precision": Mark("star", SKY, "M8 1l2.1 4.7 5.1.5-3.8 3.4 1.1 5L8 12l-4.5 2.6 1.1-5L.8 6.2l5.1-.5z"),
    "compilation": Mark("pentagon", OLIVE, "M8 1.5l6.5 4.8-2.5 7.7H4L1.5 6.3z"),
    "architecture": Mark("hexagon", INK, "M8 1.5l5.6 3.2v6.6L8 14.5l-5.6-3.2V4.7z"),
    "null": Mark("cross", GREY, "M6 2h4v4h4v4h-4v4H6v-4H2V6h4z"),
    "arm": Mark("circle", BLUE, "M8 2.5a5.5 5.5 0 1 0 .01 0z"),  # of curves from elsewhere
    "reference": Mark(
        "x", GREY, "M4.2 2 8 5.8 11.8 2 14 4.2 10.2 8l3.8 3.8-2.2 2.2L8 10.2 4.2 14 2 11.8 5.8 8 2 4.2z"
    ),
    "baseline": Mark("circle", GREY, "M8 2.5a5.5 5.5 0 1 0 .01 0z"),
}

#: Symbols and colours for categories without a meaning of their own, such as class labels.
SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "triangle-down",
    "x",
    "star",
    "pentagon",
    "cross",
    "hexagon",
)
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY, OLIVE, INK, GREY)

_AXIS: dict[str, Any] = {
    "gridcolor": RULE,
    "linecolor": GREY,
    "tickcolor": GREY,
    "zeroline": False,
    "tickfont": {"size": 12, "color": MUTED},
    "title": {"font": {"size": 13, "color": MUTED}, "standoff": 8},
    "automargin": True,
    "ticklabelstandoff": 3,
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": _AXIS | {"tickangle": 0},
        "yaxis": _AXIS,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": PAPER,
            "bordercolor": GREY,
            "align": "left",
            "font": {"family": FONT, "size": 12, "color": INK},
        },
        "legend": {"font": {"size": 12}, "itemsizing": "constant"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": INK},
        "colorway": COLOURS,
    }
)


def blank(height: int, **layout: Any) -> go.Figure:
    """An empty figure in the report's template, `height` in pixels; its width is the reader's."""
    return go.Figure(layout={"template": TEMPLATE, "height": height, "showlegend": False} | layout)


def rule(
    figure: go.Figure, x: float | None = None, y: float | None = None, colour: str = INK, dash: str = "solid"
) -> None:
    """A line across the figure at x or at y. Plotly's own add_hline costs twenty times as much."""
    across = {"x0": 0, "x1": 1, "xref": "x domain"} if x is None else {"x0": x, "x1": x}
    along = {"y0": 0, "y1": 1, "yref": "y domain"} if y is None else {"y0": y, "y1": y}
    line = {"color": colour, "width": 1, "dash": dash}
    figure.add_shape(
        {"type": "line", "line": line, "layer": "below" if colour == RULE else "above"} | across | along
    )


def small(bottom: int = 24) -> go.Figure:
    """An empty panel of a grid, with margins that don't hang on its labels, so that neighbours line up."""
    axis = {"automargin": False, "tickfont": {"size": 11}, "nticks": 5}
    margin = {"l": 42, "r": 8, "t": 6, "b": bottom}
    return blank(PANEL_HEIGHT, margin=margin, xaxis=axis, yaxis=axis)


def mark(family: str) -> Mark:
    """The mark of a family; the reference's for one that is unknown."""
    return FAMILIES.get(family, FAMILIES["reference"])


def faint(colour: str) -> str:
    """The colour as the fill of a band; the dark edition is found by the same six digits."""
    return f"{colour}2b"


def hatched(shape: str, colour: str) -> dict[str, Any]:
    """A bar's pattern in its colour, so that bars differ in grey print too; "" is plain."""
    return {"shape": shape, "bgcolor": colour, "fgcolor": PAPER, "size": 6, "solidity": 0.25}


def label_text(text: object) -> str:
    """Text for plotly, which renders a subset of HTML in labels and %{...} in templates."""
    return html.escape(str(text), quote=False).replace("%{", "%&#123;")


def shorten(text: str, length: int = 26) -> str:
    """Text that fits a tick label; the whole is in the hover and in the table."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def lines(parts: Iterable[str | None]) -> str:
    """A hover label: one escaped line a part, those that are None left out."""
    return "<br>".join(label_text(part) for part in parts if part is not None)


def numbers_below(figure: go.Figure, more: int) -> dict[str, Any]:
    """Layout values for a narrow page, where nothing fits right of a plot with a row a name: the notes there, one a
    row and in order, stand as second lines below the names. `more` is what that adds to a row's pixels."""
    names, notes = figure.layout.yaxis.ticktext, figure.layout.annotations
    told = [
        f'{name}<br><span style="font-size:11px">{note.text}</span>'
        for name, note in zip(names, notes, strict=True)
    ]
    return {
        "annotations": [],
        "height": figure.layout.height + more * len(told),
        "margin.r": 10,
        "yaxis.ticktext": told,
        "yaxis.tickfont.size": 12,
    }


def plain(values: npt.ArrayLike, digits: int = 5) -> list[float | None]:
    """Numbers for a figure: rounded to significant digits, None (a gap) where they are not finite."""
    return [
        float(f"{value:.{digits}g}") if math.isfinite(value) else None
        for value in np.asarray(values, dtype=np.float64).tolist()
    ]


def thinned(n: int, keep: int) -> npt.NDArray[np.int64]:
    """Indices of at most `keep` of n points, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, keep)).round().astype(np.int64))


def ratio_axis(points: Sequence[float], ends: Sequence[float] = (), most: float = 10.0) -> dict[str, Any]:
    """A log axis for ratios with readable ticks, round 1. It holds every finite one of `points`; of `ends`, such as
    limits of wide intervals, those between 1 / most and most."""
    held = [1.0 / 1.05, 1.05, *(value for value in points if math.isfinite(value) and value > 0)]
    held += [min(max(value, 1.0 / most), most) for value in ends if math.isfinite(value)]
    low, high = min(held), max(held)
    span = math.log2(high / low)
    if span < 1.0:
        ticks = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0]
    elif span < 2.4:
        ticks = [0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0]
    elif span < 6.0:
        ticks = [2.0**power for power in range(-6, 7)]
    else:
        ticks = [step * 10.0**power for power in range(-6, 7) for step in ((1, 3) if span < 10 else (1,))]
    pad = 0.04 * math.log10(high / low)
    return {
        "type": "log",
        "range": [math.log10(low) - pad, math.log10(high) + pad],
        "tickvals": ticks,
        "ticktext": [f"{tick:.3g}x" for tick in ticks],
    }


def log_ticks(low: float, high: float, pad: float = 0.015) -> dict[str, Any]:
    """A log axis from low to high, both positive, with about four round ticks such as 3k, 10k, 30k; `pad` is the
    share of its length added at each end."""
    high = max(high, low * 1.01)
    decades = math.log10(high / low)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low * 0.98 <= tick <= high * 1.02]
        if len(ticks) > 2:
            break
    ticks = _apart(ticks, decades)
    return {
        "type": "log",
        "range": [math.log10(low) - pad * decades, math.log10(high) + pad * decades],
        "tickvals": plain(ticks),
        "ticktext": [short_number(tick) for tick in ticks],
    }


def _apart(ticks: Sequence[float], decades: float) -> list[float]:
    """Those ticks of a log axis whose labels don't touch the one before, on a phone."""
    kept: list[float] = []
    for tick in ticks:
        if kept:
            room = math.log10(tick / kept[-1]) / decades * NARROWEST
            letters = (len(short_number(tick)) + len(short_number(kept[-1]))) / 2.0
        if not kept or room > 6.5 * letters + 6.0:
            kept.append(tick)
    return kept


def short_number(value: float) -> str:
    """12000 as "12k", 0.03 as "0.03"."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"
