"""Figures of the joint search that join fields or terms: parallel coordinates, rate and distortion, latent map."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from study.analysis.search import axis_kind
from study.design.space import Space
from study.figures.search import brief_choice, by_outcome, fields, most, trial_hover
from study.figures.theme import (
    COLOURS,
    GREY,
    INK,
    MUTED,
    PAPER,
    RULE,
    SYMBOLS,
    VERMILLION,
    blank,
    label_text,
    plain,
    shorten,
)

#: Trials that parallel coordinates show: the best ones; more would be a grey mat.
MOST_LINES = 150


def parallel(found: pd.DataFrame, space: Space) -> go.Figure:
    """Parallel coordinates of the complete trials: a line a trial over its fields, the best in colour.

    A field that a trial wasn't asked for is passed over. Plain lines: plotly's own `parcoords` needs WebGL and
    code made at run time, which the page forbids."""
    complete = found[(found["state"] == "COMPLETE") & found["best_valid_loss"].notna()]
    complete = complete.nsmallest(MOST_LINES, "best_valid_loss")
    names = fields(found, space)
    places = {field: _places(complete, space, field) for field in names}
    losses = complete.set_index("number")["best_valid_loss"]
    # The upper half of its axis would be the bad trials': they end where the others no longer differ.
    least, most_shown = float(losses.min()), min(float(losses.max()), 2.0 * losses.median() - losses.min())
    span = most_shown - least or 1.0
    places["loss"] = {int(str(n)): min(1.0, (float(loss) - least) / span) for n, loss in losses.items()}
    top = f"{most_shown:.3g}" if most_shown == losses.max() else f"≥ {most_shown:.3g}"
    best = max(1, min(len(complete), max(3, round(len(complete) / 10))))
    figure = blank(430, showlegend=True)
    _lines(figure, "other trials", complete.iloc[best:], places, GREY, 1.0, 0.5)
    _lines(figure, f"best {best}", complete.iloc[:best], places, VERMILLION, 2.2, 1.0)
    notes = []
    for i, field in enumerate(places):
        low, high = (least, top) if field == "loss" else _ends(space, field)
        figure.add_shape(type="line", x0=i, x1=i, y0=0, y1=1, line={"color": RULE, "width": 1}, layer="below")
        for y, anchor, end in ((1.04, "bottom", high), (-0.04, "top", low)):
            notes.append(_label(i, y, anchor, shorten(_brief(end), 11), MUTED, 11))
        notes.append(_label(i, -0.14, "top", shorten(field, 14), INK, 12))
    figure.update_layout(
        xaxis={"visible": False, "range": [-0.4, len(places) - 0.6]},
        yaxis={"visible": False, "range": [-0.24, 1.12]},
        annotations=notes,
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        margin={"t": 34},
    )
    return figure


def _lines(
    figure: go.Figure,
    name: str,
    part: pd.DataFrame,
    places: dict[str, dict[int, float]],
    colour: str,
    width: float,
    opacity: float,
) -> None:
    x: list[float | None] = []
    y: list[float | None] = []
    hover: list[str] = []
    for row in part.to_dict("records"):
        text = trial_hover(row)
        points = [
            (i, place[row["number"]]) for i, place in enumerate(places.values()) if row["number"] in place
        ]
        x += [*(float(i) for i, _ in points), None]
        y += [*(round(value, 4) for _, value in points), None]
        hover += [text] * len(points) + [""]
    if x:
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines+markers",
            name=name,
            opacity=opacity,
            hovertext=hover,
            hoverinfo="text",
            line={"color": colour, "width": width},
            marker={"size": 4, "color": colour},
        )


def _label(x: float, y: float, anchor: str, text: str, colour: str, size: int) -> dict[str, Any]:
    note = {"x": x, "y": y, "yanchor": anchor, "text": label_text(text), "showarrow": False}
    return note | {"font": {"size": size, "color": colour}}


def _brief(value: Any) -> str:
    return value if isinstance(value, str) else f"{float(value):.3g}"


def _ends(space: Space, field: str) -> tuple[Any, Any]:
    dimension = space[field]
    if dimension.choices:
        return str(dimension.choices[0]), str(dimension.choices[-1])
    return dimension.low, dimension.high


def _places(found: pd.DataFrame, space: Space, field: str) -> dict[int, float]:
    """Trial number -> place of its value on the field's axis, 0..1; absent where it has none."""
    dimension = space[field]
    own = found[found[f"params_{field}"].notna()]
    numbers = [int(number) for number in own["number"]]
    if axis_kind(space, field) == "category":
        labels = [str(choice) for choice in dimension.choices or ()]
        top = max(1, len(labels) - 1)
        shown = [brief_choice(value) for value in own[f"params_{field}"]]
        return {
            n: labels.index(label) / top for n, label in zip(numbers, shown, strict=True) if label in labels
        }
    assert dimension.low is not None
    assert dimension.high is not None
    scale = math.log if dimension.log else float
    low, high = scale(dimension.low), scale(dimension.high)
    values = [scale(float(value)) for value in own[f"params_{field}"]]
    return {n: (value - low) / (high - low) for n, value in zip(numbers, values, strict=True)}


def rate_distortion(frame: pd.DataFrame) -> go.Figure:
    """Rate against distortion at each trial's best evaluation, with lines of equal loss (Alemi et al. 2018)."""
    figure = blank(400, showlegend=True)
    complete = frame[frame["state"] == "COMPLETE"]
    judged = complete if len(complete) else frame
    (left, right), (bottom, top) = (most(judged[key]) or (0.0, 1.0) for key in ("rate", "distortion"))
    for level in _levels(left + bottom, right + top):
        figure.add_scatter(
            x=plain([left, right]),
            y=plain([level - left, level - right]),
            mode="lines",
            line={"color": GREY, "width": 1, "dash": "dot"},
            hoverinfo="skip",
            showlegend=False,
        )
        # The label stands where the line leaves the plot at its right, less room for arrows, or its bottom.
        x = min(right - 0.04 * (right - left), level - bottom)
        figure.add_annotation(
            x=x,
            y=level - x,
            text=f"{level:g} nats",
            showarrow=False,
            xanchor="right",
            yanchor="bottom",
            bgcolor=PAPER,
            font={"size": 11, "color": MUTED},
        )
    shown = frame.rename(columns={"loss": "best_valid_loss"})
    across, down = (left, right), (bottom, top)
    by_outcome(figure, shown, plain(frame["rate"]), frame["distortion"], across=across, down=down)
    figure.update_layout(
        xaxis={"title": {"text": "rate: KL, nats"}, "range": [left, right]},
        yaxis={"title": {"text": "distortion, nats"}, "range": [bottom, top]},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        margin={"t": 34, "b": 44},
    )
    return figure


def _levels(low: float, high: float) -> list[float]:
    """Three to eight round numbers between low and high."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2.0))
    step = next(step * factor for factor in (1, 2, 5) if (high - low) / (step * factor) <= 8)
    first = math.ceil(low / step + 0.2)
    return [round(i * step, 9) for i in range(first, math.floor(high / step - 0.2) + 1)]


def latent_map(frame: pd.DataFrame, names: tuple[str, str]) -> go.Figure:
    """Posterior means of test examples on two axes; colour and symbol by label where there are labels.

    Columns x, y, label (NaN without labels)."""
    labels: list[float] = sorted(frame["label"].dropna().unique().tolist())
    figure = blank(520, showlegend=bool(labels))
    for i, label in enumerate(labels or [np.nan]):
        own = frame[frame["label"] == label] if labels else frame
        # A second round through colours and symbols is drawn open.
        suffix = "-open" if (i // len(COLOURS)) % 2 else ""
        colour = COLOURS[i % len(COLOURS)]
        figure.add_scatter(
            x=plain(own["x"], 4),
            y=plain(own["y"], 4),
            mode="markers",
            name=f"{label:g}" if labels else "example",
            marker={
                "symbol": SYMBOLS[i % len(COLOURS)] + suffix,
                "color": colour,
                "size": 7,
                "line": {"width": 1.5 if suffix else 0.7, "color": colour if suffix else PAPER},
            },
            hovertemplate=f"label {label:g}<extra></extra>" if labels else "example<extra></extra>",
        )
    figure.update_layout(
        # Margins that hang on the labels would move the scales, and these the labels, without an end.
        xaxis={"title": {"text": names[0]}, "automargin": False},
        yaxis={"title": {"text": names[1]}, "scaleanchor": "x", "automargin": False},
        legend={"title": {"text": "label"}},
        margin={"b": 48, "l": 58},
    )
    return figure
