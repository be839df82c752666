"""Figures of the joint search, and of the latent space of its best model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from study.report.blocks import Panel
from study.report.figures_arms import PANEL_HEIGHT
from study.report.tables_search import axis_kind
from study.report.theme import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    RULE,
    SYMBOLS,
    VERMILLION,
    blank,
    escape,
    lines,
    log_ticks,
    plain,
    shorten,
)
from study.space import Space

#: How a search trial is drawn, by its outcome; anything else as the last.
ENDS = {
    "completed": ("circle", BLUE),
    "stopped": ("square", BLUE),
    "pruned": ("x-thin", GREY),
    "collapsed": ("triangle-down-open", ORANGE),
    "diverged": ("triangle-up-open", VERMILLION),
    "failed": ("cross-thin", VERMILLION),
}
#: Trials that parallel coordinates show: the best ones; more would be a grey mat.
MOST_LINES = 150


def history(found: pd.DataFrame) -> go.Figure:
    """Every trial's best loss in order, and the best complete one so far."""
    figure = blank(340, showlegend=True)
    _by_outcome(figure, found, found["number"].tolist(), found["best_valid_loss"])
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
        yaxis={"title": {"text": "best validation loss, nats"}, "range": _most(found["best_valid_loss"])},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        margin={"t": 34, "b": 44},
    )
    return figure


def _by_outcome(figure: go.Figure, found: pd.DataFrame, x: list[Any], y: pd.Series, size: float = 8) -> None:
    """One trace of markers an outcome."""
    values = plain(y)
    for outcome in dict.fromkeys(found["outcome"]):
        own = [i for i, other in enumerate(found["outcome"]) if other == outcome]
        symbol, colour = ENDS.get(str(outcome), ("diamond-open", GREY))
        figure.add_scatter(
            x=[x[i] for i in own],
            y=[values[i] for i in own],
            mode="markers",
            name=escape(outcome),
            marker={
                "symbol": symbol,
                "color": colour,
                "size": size,
                "line": {"width": 1.5 if symbol.endswith(("open", "thin")) else 0.8, "color": colour
                         if symbol.endswith(("open", "thin")) else PAPER},
            },
            hovertext=[_trial_hover(row) for row in found.iloc[own].to_dict("records")],
            hoverinfo="text",
        )  # fmt: skip


def _trial_hover(row: dict[Any, Any]) -> str:
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


def _most(losses: pd.Series) -> list[float] | None:
    """A range that a few bad trials don't stretch: up to 1.5 interquartile ranges above the third quartile."""
    finite = losses[np.isfinite(losses.astype(float))]
    if finite.empty:
        return None
    q1, q3 = float(finite.quantile(0.25)), float(finite.quantile(0.75))
    low, high = float(finite.min()), min(float(finite.max()), q3 + 1.5 * (q3 - q1))
    pad = 0.06 * (high - low) or 1.0
    return [low - pad, high + pad]


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
            y=[escape(field) for field in order],
            x=plain(part["mean"], 4),
            orientation="h",
            name=f"{evaluator} ({frame[frame['evaluator'] == evaluator]['run'].nunique()} forests)"
            if forests
            else evaluator,
            marker={
                "color": colour,
                "pattern": {"shape": pattern, "fgcolor": PAPER, "size": 6, "solidity": 0.25},
            },
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
    for field in fields(found, space):
        own = found[found[f"params_{field}"].notna()]
        values = own[f"params_{field}"]
        figure = blank(PANEL_HEIGHT, margin={"l": 6, "r": 6, "t": 6, "b": 6})
        kind = axis_kind(space, field)
        axis: dict[str, Any] = {"tickfont": {"size": 11}, "nticks": 4}
        if kind == "category":
            labels = list(dict.fromkeys(str(choice) for choice in space[field].choices or ()))
            at = {label: i for i, label in enumerate(labels)}
            # A third of the room between two choices, by trial number, keeps points of one choice apart.
            spread = (own["number"].to_numpy(dtype=float) * 0.618) % 1.0 - 0.5
            x = [at.get(brief_choice(v), 0) + round(0.5 * s, 3) for v, s in zip(values, spread, strict=True)]
            axis |= {
                "tickvals": list(at.values()),
                "ticktext": [escape(shorten(label, 11)) for label in labels],
            }
            axis |= {"range": [-0.6, len(labels) - 0.4], "tickangle": 0 if len(labels) < 4 else -28}
        else:
            x = plain(values.astype(float))
            axis |= (
                log_ticks(float(min(values)), float(max(values))) if kind == "log" and min(values) > 0 else {}
            )
        _by_outcome(figure, own, x, own["best_valid_loss"], size=6)
        figure.update_layout(xaxis=axis, yaxis={"range": _most(found["best_valid_loss"]), "nticks": 5})
        figure.update_yaxes(tickfont={"size": 11})
        panels.append(Panel(f"slice-{field}", field, figure, "log" if kind == "log" else ""))
    return panels


def brief_choice(value: Any) -> str:
    """A category's value as its label: 64.0 is 64."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def parallel(found: pd.DataFrame, space: Space) -> go.Figure:
    """Parallel coordinates of the complete trials: a line a trial over its fields, the best tenth in colour.

    Drawn as plain lines: plotly's own `parcoords` needs WebGL and code made at run time, which the page forbids."""
    complete = found[(found["state"] == "COMPLETE") & found["best_valid_loss"].notna()]
    complete = complete.nsmallest(MOST_LINES, "best_valid_loss")
    names = [*fields(found, space), "loss"]
    units = {field: _unit(found, space, field) for field in names[:-1]}
    losses = complete["best_valid_loss"]
    span = float(losses.max() - losses.min()) or 1.0
    best = max(1, round(len(complete) / 10))
    figure = blank(430, showlegend=True)
    groups = (
        ("other trials", complete.iloc[best:], GREY, 1.0, 0.45),
        ("best tenth", complete.iloc[:best], VERMILLION, 2.2, 1.0),
    )
    for name, part, colour, width, opacity in groups:
        x: list[float | None] = []
        y: list[float | None] = []
        hover: list[str] = []
        for row in part.to_dict("records"):
            text = _trial_hover(row)
            for i, field in enumerate(names):
                value = (
                    (row["best_valid_loss"] - losses.min()) / span
                    if field == "loss"
                    else units[field].get(row["number"])
                )
                x.append(float(i))
                y.append(None if value is None else round(float(value), 4))
                hover.append(text)
            x.append(None)
            y.append(None)
            hover.append("")
        figure.add_scatter(
            x=x, y=y, mode="lines+markers", name=name, opacity=opacity, connectgaps=False, hovertext=hover,
            hoverinfo="text", line={"color": colour, "width": width}, marker={"size": 4, "color": colour},
        )  # fmt: skip
    notes = []
    for i, field in enumerate(names):
        low, high = (losses.min(), losses.max()) if field == "loss" else _ends(found, space, field)
        figure.add_vline(i, line={"color": RULE, "width": 1}, layer="below")
        for y0, anchor, text in ((1.04, "bottom", high), (-0.04, "top", low)):
            notes.append(_label(i, y0, anchor, brief_end(text), MUTED, 11))
        notes.append(_label(i, -0.15, "top", shorten(field, 14), INK, 12))
    figure.update_layout(
        xaxis={"visible": False, "range": [-0.4, len(names) - 0.6]},
        yaxis={"visible": False, "range": [-0.28, 1.14]},
        annotations=notes,
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        margin={"t": 34},
    )
    return figure


def _label(x: float, y: float, anchor: str, text: str, colour: str, size: int) -> dict[str, Any]:
    note = {"x": x, "y": y, "yanchor": anchor, "text": escape(text), "showarrow": False, "textangle": 0}
    return note | {"font": {"size": size, "color": colour}}


def brief_end(value: Any) -> str:
    """The label of an end of an axis."""
    return shorten(value if isinstance(value, str) else f"{float(value):.3g}", 11)


def _unit(found: pd.DataFrame, space: Space, field: str) -> dict[int, float]:
    """Trial number -> place of its value on the field's axis, 0..1."""
    column = found.set_index("number")[f"params_{field}"].dropna()
    if axis_kind(space, field) == "category":
        labels = [str(choice) for choice in space[field].choices or ()]
        top = max(1, len(labels) - 1)
        return {
            int(n): labels.index(brief_choice(v)) / top if brief_choice(v) in labels else 0.0
            for n, v in column.items()
        }
    dimension = space[field]
    assert dimension.low is not None
    assert dimension.high is not None
    low, high, values = dimension.low, dimension.high, column.astype(float)
    if dimension.log:
        low, high, values = math.log(low), math.log(high), np.log(values)
    return {int(n): (v - low) / (high - low) for n, v in values.items()}


def _ends(found: pd.DataFrame, space: Space, field: str) -> tuple[Any, Any]:
    dimension = space[field]
    if dimension.choices:
        return str(dimension.choices[0]), str(dimension.choices[-1])
    return dimension.low, dimension.high


def rate_distortion(frame: pd.DataFrame) -> go.Figure:
    """Rate against distortion at each trial's best evaluation; lines of equal loss fall at 45 degrees (Alemi et
    al. 2018, fig. 1)."""
    figure = blank(400, showlegend=True)
    x, y = frame["rate"], frame["distortion"]
    x_range, y_range = _most(x) or [0.0, 1.0], _most(y) or [0.0, 1.0]
    corners = [x_range[0] + y_range[0], x_range[1] + y_range[1]]
    for level in np.linspace(corners[0], corners[1], 6)[1:-1]:
        level = float(f"{level:.3g}")
        ends = [x_range[0], x_range[1]]
        figure.add_scatter(
            x=plain(ends), y=plain([level - ends[0], level - ends[1]]), mode="lines", hoverinfo="skip",
            line={"color": GREY, "width": 1, "dash": "dot"}, showlegend=False,
        )  # fmt: skip
        place = min(max(level - y_range[1] + 0.04 * (y_range[1] - y_range[0]), x_range[0]), x_range[1])
        figure.add_annotation(
            x=place, y=level - place, text=f"loss {level:g}", showarrow=False, xanchor="left", xshift=4,
            font={"size": 11, "color": MUTED},
        )  # fmt: skip
    shown = frame.rename(columns={"loss": "best_valid_loss"})
    _by_outcome(figure, shown, plain(x), y)
    figure.update_layout(
        xaxis={"title": {"text": "rate: KL, nats"}, "range": x_range},
        yaxis={"title": {"text": "distortion, nats"}, "range": y_range},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        margin={"t": 34, "b": 44},
    )
    return figure


def latent_map(frame: pd.DataFrame, names: tuple[str, str]) -> go.Figure:
    """Posterior means of test images on two axes; colour and symbol by label where there are labels.

    Columns x, y, label (None without labels)."""
    figure = blank(520, showlegend=bool(frame["label"].notna().any()))
    labels = sorted(frame["label"].dropna().unique().tolist())
    groups: list[Any] = labels or [None]
    for i, label in enumerate(groups):
        own = frame if label is None else frame[frame["label"] == label]
        figure.add_scatter(
            x=plain(own["x"], 4),
            y=plain(own["y"], 4),
            mode="markers",
            name=escape(f"{label:g}" if label is not None else "image"),
            marker={
                "symbol": SYMBOLS[i % len(SYMBOLS)],
                "color": COLOURS[i % len(COLOURS)],
                "size": 7,
                "line": {"width": 0.7, "color": PAPER},
            },
            hovertemplate=f"label {label:g}<extra></extra>" if label is not None else "image<extra></extra>",
        )
    figure.update_layout(
        xaxis={"title": {"text": names[0]}},
        yaxis={"title": {"text": names[1]}, "scaleanchor": "x"},
        legend={"title": {"text": "label"}},
        margin={"b": 44},
    )
    return figure
