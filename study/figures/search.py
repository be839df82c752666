"""Figures of the joint search, field by field: history, importance, slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from study.analysis.search import axis_kind
from study.design.space import Space
from study.figures.panel import Panel
from study.figures.theme import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PAPER,
    VERMILLION,
    blank,
    hatched,
    label_text,
    lines,
    log_ticks,
    plain,
    shorten,
    small,
)

#: How a search trial is drawn, by its outcome, and by any other.
ENDS = {
    "completed": ("circle", BLUE),
    "stopped": ("square", BLUE),
    "pruned": ("x-thin", GREY),
    "collapsed": ("triangle-down-open", ORANGE),
    "diverged": ("triangle-up-open", VERMILLION),
    "failed": ("cross-thin", VERMILLION),
}
ENDS_OTHERWISE = ("diamond-open", GREY)


def history(found: pd.DataFrame) -> go.Figure:
    """Every trial's best loss in order, and the best complete one so far."""
    figure = blank(340, showlegend=True)
    axis = loss_axis(found)
    by_outcome(figure, found, found["number"].tolist(), found["best_valid_loss"], down=axis)
    figure.add_scatter(
        x=found["number"].tolist(),
        y=plain(found["best"]),
        mode="lines",
        line={"color": INK, "width": 1.6, "shape": "hv"},
        name="best complete so far",
        hoverinfo="skip",
    )
    figure.update_layout(
        xaxis={"title": {"text": "trial"}},
        yaxis={"title": {"text": "best validation loss, nats"}, "range": axis},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        margin={"t": 34, "b": 44},
    )
    return figure


Range = tuple[float, float]
EVERYTHING: Range = (-np.inf, np.inf)


def by_outcome(
    figure: go.Figure,
    found: pd.DataFrame,
    x: Sequence[Any],
    y: pd.Series,
    size: float = 8,
    *,
    down: Range | None,
    across: Range | None = None,
) -> None:
    """One trace of markers an outcome. What lies beyond the range `across` of the x axis or `down` of the y axis is
    an arrow at the edge, so that no trial is out of sight."""
    (left, right), (bottom, top) = across or EVERYTHING, down or EVERYTHING
    points = [(x[i], value) for i, value in enumerate(plain(y))]
    arrows = [_arrow(point, left, right, bottom, top) for point in points]
    for outcome in dict.fromkeys(found["outcome"]):
        within = [i for i, other in enumerate(found["outcome"]) if other == outcome and not arrows[i]]
        symbol, colour = ENDS.get(str(outcome), ENDS_OTHERWISE)
        thin = symbol.endswith(("open", "thin"))
        line = {"width": 1.5 if thin else 0.8, "color": colour if thin else PAPER}
        figure.add_scatter(
            x=[points[i][0] for i in within],
            y=[points[i][1] for i in within],
            mode="markers",
            name=label_text(outcome),
            marker={"symbol": symbol, "color": colour, "size": size, "line": line},
            hovertext=[trial_hover(row) for row in found.iloc[within].to_dict("records")],
            hoverinfo="text",
        )
    beyond = [i for i, arrow in enumerate(arrows) if arrow]
    if not beyond:
        return
    worst = found["best_valid_loss"].iloc[beyond].max()
    colours = [ENDS.get(str(outcome), ENDS_OTHERWISE)[1] for outcome in found["outcome"].iloc[beyond]]
    figure.add_scatter(
        x=[_held(points[i][0], left, right) for i in beyond],
        y=[_held(points[i][1], bottom, top) for i in beyond],
        mode="markers",
        name=f"off the scale, up to {worst:.4g} nats",
        marker={"symbol": [arrows[i] for i in beyond], "color": colours, "size": size},
        hovertext=[trial_hover(row) for row in found.iloc[beyond].to_dict("records")],
        hoverinfo="text",
    )


def _arrow(point: tuple[Any, float | None], left: float, right: float, bottom: float, top: float) -> str:
    """The symbol of a point beyond the ranges, pointing to where it lies; "" within them."""
    x, y = point
    if y is None or x is None:
        return ""
    if y > top or y < bottom:
        return "arrow-up" if y > top else "arrow-down"
    if x > right or x < left:
        return "arrow-right" if x > right else "arrow-left"
    return ""


def _held(value: float | None, low: float, high: float) -> float | None:
    """The value, or the nearest one a little within the range that it lies beyond."""
    if value is None or not math.isfinite(high - low):
        return value
    return min(max(value, low + 0.025 * (high - low)), high - 0.025 * (high - low))


def trial_hover(row: dict[Any, Any]) -> str:
    loss = row.get("best_valid_loss", row.get("loss"))
    shown = f"{float(loss):.3f} nats" if loss is not None and pd.notna(loss) else "no loss"
    recipe = str(row["changes"]).split(", ")
    return lines(
        (
            f"trial {row['number']}, seed {row['seed']}, {row['outcome']}",
            shown,
            *(", ".join(recipe[i : i + 3]) for i in range(0, len(recipe), 3)),
        )
    )


def most(values: pd.Series) -> Range | None:
    """A range that a few bad trials don't stretch: up to 1.5 interquartile ranges above the third quartile."""
    finite = values[np.isfinite(values.astype(float))]
    if finite.empty:
        return None
    q1, q3 = float(finite.quantile(0.25)), float(finite.quantile(0.75))
    return _padded(float(finite.min()), min(float(finite.max()), q3 + 1.5 * (q3 - q1)))


def loss_axis(found: pd.DataFrame) -> Range | None:
    """A range of losses in which the better half of the complete trials has the lower half: where they differ, not
    where the pruned and the bad ones are."""
    losses = found["best_valid_loss"].astype(float)
    finite = losses[np.isfinite(losses)]
    if finite.empty:
        return None
    complete = finite[found["state"].loc[finite.index] == "COMPLETE"]
    judged = complete if len(complete) else finite
    low = float(finite.min())
    return _padded(low, min(float(finite.max()), low + 2.0 * (float(judged.median()) - low)))


def _padded(low: float, high: float) -> Range:
    pad = 0.06 * (high - low) or 1.0
    return low - pad, high + pad


def importance(frame: pd.DataFrame) -> go.Figure:
    """Importance of each field by PED-ANOVA and by fANOVA (mean of its forests, bars from least to most)."""
    mean = frame.groupby(["evaluator", "field"])["importance"].agg(["mean", "min", "max"]).reset_index()
    order = mean.groupby("field")["mean"].mean().sort_values().index.tolist()
    figure = blank(30 * len(order) + 96, showlegend=True, barmode="group")
    for evaluator, colour, pattern in (("fANOVA", ORANGE, "/"), ("PED-ANOVA", BLUE, "")):
        part = mean[mean["evaluator"] == evaluator].set_index("field").reindex(order)
        forests = evaluator == "fANOVA"
        bars = {"type": "data", "color": INK, "thickness": 1.2, "width": 3, "symmetric": False}
        bars |= {"array": plain(part["max"] - part["mean"]), "arrayminus": plain(part["mean"] - part["min"])}
        figure.add_bar(
            y=[label_text(field) for field in order],
            x=plain(part["mean"], 4),
            orientation="h",
            name=f"{evaluator} ({frame[frame['evaluator'] == evaluator]['run'].nunique()} forests)"
            if forests
            else evaluator,
            marker={"color": colour, "pattern": hatched(pattern, colour)},
            error_x=bars if forests else None,
            hovertemplate=f"%{{y}}<br>{evaluator} %{{x:.1%}}<extra></extra>",
        )
    figure.update_layout(
        xaxis={"tickformat": ".0%", "title": {"text": "share of the importance"}, "rangemode": "tozero"},
        yaxis={"showgrid": False, "tickfont": {"size": 13, "color": INK}},
        bargap=0.3,
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "reversed"},
        margin={"t": 34, "b": 44},
    )
    return figure


def fields(found: pd.DataFrame, space: Space) -> list[str]:
    """The searched fields that some trial has a value of, in the order of the space."""
    columns = [column.removeprefix("params_") for column in found.columns if column.startswith("params_")]
    known = [field for field in space if field in columns]
    return [field for field in known if found[f"params_{field}"].notna().any()]


def slices(found: pd.DataFrame, space: Space) -> list[Panel]:
    """One panel a field: each trial's best loss against its value."""
    panels = []
    losses = loss_axis(found)
    for field in fields(found, space):
        own = found[found[f"params_{field}"].notna()]
        values = own[f"params_{field}"]
        kind = axis_kind(space, field)
        if kind == "category":
            labels = list(dict.fromkeys(str(choice) for choice in space[field].choices or ()))
            figure = small(bottom=24 if len(labels) < 4 else 50)
            x, axis = _categories(own, field, labels)
        else:
            figure = small()
            x = plain(values.astype(float))
            axis = {"nticks": 4}
            if kind == "log":
                axis = log_ticks(float(min(values)), float(max(values)), pad=0.05)
        by_outcome(figure, own, x, own["best_valid_loss"], size=6, down=losses)
        figure.update_layout(xaxis=axis, yaxis={"range": losses})
        panels.append(Panel(f"slice-{field}", f"{field} (log)" if kind == "log" else field, figure))
    return panels


def _categories(own: pd.DataFrame, field: str, labels: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """Places of the trials' choices, spread a little by trial number so that they don't hide each other, and the
    axis they are on."""
    at = {label: i for i, label in enumerate(labels)}
    spread = (own["number"].to_numpy(dtype=float) * 0.618) % 1.0 - 0.5
    values = own[f"params_{field}"]
    x = [at.get(brief_choice(v), 0) + round(0.5 * s, 3) for v, s in zip(values, spread, strict=True)]
    axis = {
        "tickvals": list(at.values()),
        "ticktext": [label_text(shorten(label, 11)) for label in labels],
        "range": [-0.6, len(labels) - 0.4],
        "tickangle": 0 if len(labels) < 4 else -28,
    }
    return x, axis


def brief_choice(value: Any) -> str:
    """A category's value as its label: 64.0 is 64."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
