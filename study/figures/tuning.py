"""Figures of the tuning: its points, the response that guided it, and the winners."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from study.figures.arms import Family
from study.figures.panel import Panel
from study.figures.theme import (
    GREY,
    INK,
    MUTED,
    PAPER,
    RULE,
    Mark,
    blank,
    faint,
    label_text,
    lines,
    log_ticks,
    mark,
    numbers_below,
    plain,
    rule,
    shorten,
    small,
)
from study.terms import Phase

ROW, NARROW_ROW = 22, 36


def tuning(frame: pd.DataFrame, tau: int, n_train: int, points: int, family: Family) -> list[Panel]:
    """One panel an arm: its tuning points in the order they were planned, and the best so far, in epochs to target.
    `points` are the coarse ones; guided ones stand right of a dotted line.

    Filled: reached it. Open: did not within the budget, or was capped there. A block has a line of its own."""
    points = max(points, int(frame["point"].max()))
    top, step = tau / n_train, -(-points // 6)
    ticks = list(range(step, points + 1, step))
    panels = []
    for arm, own in frame.groupby("arm", sort=False):
        look = mark(family(str(arm)))
        figure = small()
        for block, part in own.groupby("block", sort=True):
            best = part["best"] / n_train
            figure.add_scatter(
                x=part["point"].tolist(),
                y=plain(best),
                mode="lines",
                line={"color": look.colour, "width": 1.6, "shape": "hv"},
                name=f"best so far, block {block}",
                hoverinfo="skip",
            )
        for hit, suffix in ((True, ""), (False, "-open")):
            part = own[own["hit"].astype(bool) == hit]
            if part.empty:
                continue
            won = part["won"].astype(bool)
            figure.add_scatter(
                x=part["point"].tolist(),
                y=plain(part["examples"] / n_train),
                mode="markers",
                marker={
                    "symbol": f"{look.symbol}{suffix}",
                    "color": look.colour,
                    "size": [11 if w else 7.5 for w in won],
                    "line": {"width": 1.2, "color": look.colour if suffix else PAPER},
                },
                hovertext=[_point_hover(row, n_train) for row in part.to_dict("records")],
                hoverinfo="text",
            )
        figure.update_layout(
            xaxis={"range": [0.5, points + 0.5], "tickvals": ticks, "showgrid": False},
            yaxis={"range": [0, top * 1.08], "nticks": 4},
        )
        if (own["phase"] == Phase.GUIDED).any():
            rule(figure, x=float(own.loc[own["phase"] == Phase.GUIDED, "point"].min()) - 0.5, dash="dot")
        hits = int(own["hit"].sum())
        panels.append(
            Panel(
                f"tuning-{arm}", str(arm), figure, f"{hits} of {len(own)} points reach it", family(str(arm))
            )
        )
    return panels


def _point_hover(row: dict[Any, Any], n_train: int) -> str:
    epochs = float(row["examples"]) / n_train
    how = (
        f"target after {epochs:.2f} epochs"
        if row["hit"]
        else f"{row['outcome']} after {epochs:.2f} epochs, no hit"
    )
    return lines(
        (
            f"{row['arm']}, point {row['point']}, block {row['block']} (trial {row['number']})",
            how,
            str(row["recipe"]),
            "the arm's winner" if row["won"] else None,
        )
    )


#: How the coarse points and the rounds of guided tuning are told apart.
ROUNDS = ("circle-open", "triangle-up", "square")


def response(runs: pd.DataFrame, curves: pd.DataFrame, family: Family) -> list[Panel]:
    """One panel an arm and axis, of the frames `response_runs` and `responses`: how far behind the best run each run
    was at E0, the process's mean with its 95 % band, and the vertex, which is what was confirmed.

    Open circles are the coarse points, triangles the first guided round, squares the second. The range is shaded where
    it was added by widening. Several blocks have a curve each. All panels have one scale, that of the runs, and those
    of a field one range."""
    top = 1.08 * float(max(runs["behind"].max(), 0.2))
    bottom = min(-0.15, 1.08 * float(min(runs["behind"].min(), curves["vertex_mean"].min())))
    panels = []
    for (arm, field), own in curves.groupby(["arm", "field"], sort=False):
        look = mark(family(str(arm)))
        figure = small()
        tried = runs[(runs["arm"] == arm) & (runs["field"] == field)]
        for low, high in _widened(own):
            figure.add_vrect(low, high, fillcolor=GREY, opacity=0.16, line_width=0, layer="below")
        for _, part in own.groupby("block", sort=True):
            _curve(figure, part, look.colour)
        for number, symbol in enumerate(ROUNDS):
            part = tried[tried["round"] == number]
            figure.add_scatter(
                x=plain(part["value"]),
                y=plain(part["behind"]),
                mode="markers",
                marker={
                    "symbol": symbol,
                    "size": 7,
                    "color": INK if number else GREY,
                    "line": {"width": 1.4 if number == 0 else 0.6, "color": PAPER if number else GREY},
                },
                hovertext=[_run_hover(row) for row in part.to_dict("records")],
                hoverinfo="text",
                name=f"guided round {number}" if number else "coarse points",
            )
        for _, part in own.groupby("block", sort=True):
            _vertex(figure, part, look)
        alike = curves.loc[curves["field"] == field, "value"]
        axis = _value_axis(float(alike.min()), float(alike.max()), log=bool(own["log"].iloc[0]))
        figure.update_layout(xaxis=axis | {"showgrid": False}, yaxis={"range": [bottom, top], "nticks": 4})
        title = str(arm) if field == "lr" else f"{arm} · {field}"
        best = ", ".join(f"{vertex:.3g}" for vertex in own.groupby("block")["vertex"].first())
        sides = " and ".join(side for side in own["edge"].unique() if side)
        note = ("lr " if field == "lr" else "") + best + (f", {sides} edge" if sides else "")
        panels.append(Panel(f"response-{arm}-{field}", title, figure, note, family(str(arm))))
    return panels


def _value_axis(low: float, high: float, *, log: bool) -> dict[str, Any]:
    """From low to high with room for a mark at each end."""
    if log:
        return log_ticks(low, high, pad=0.05)
    pad = 0.05 * (high - low)
    return {"range": [low - pad, high + pad], "nticks": 4}


def _widened(curve: pd.DataFrame) -> list[tuple[float, float]]:
    """What was added to the range, at its ends."""
    first_low, first_high = float(curve["first_low"].min()), float(curve["first_high"].max())
    low, high = float(curve["value"].min()), float(curve["value"].max())
    added = []
    if low < first_low * (1 - 1e-9):
        added.append((low, first_low))
    if high > first_high * (1 + 1e-9):
        added.append((first_high, high))
    return added


def _curve(figure: go.Figure, part: pd.DataFrame, colour: str) -> None:
    x = plain(part["value"])
    figure.add_scatter(
        x=x + x[::-1],
        y=plain(part["high"]) + plain(part["low"])[::-1],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faint(colour),
        hoverinfo="skip",
        name="band",
    )
    hover = [
        lines(
            (f"{row['field']} {row['value']:.3g}", f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
        )
        for row in part.to_dict("records")
    ]
    figure.add_scatter(
        x=x,
        y=plain(part["mean"]),
        mode="lines",
        line={"color": colour, "width": 1.6},
        hovertext=hover,
        hoverinfo="text",
        name="mean of the process",
    )


def _vertex(figure: go.Figure, part: pd.DataFrame, look: Mark) -> None:
    row = part.iloc[0]
    what = f"{row['arm']}, vertex of block {row['block']}: what was confirmed"
    compared = f"runs compared at {row['E0']:,.0f} examples"
    edge = f"on the {row['edge']} edge of its range" if row["edge"] else None
    figure.add_scatter(
        x=plain([row["vertex"]]),
        y=plain([row["vertex_mean"]]),
        mode="markers",
        marker={
            "symbol": "star-diamond",
            "size": 15,
            "color": look.colour,
            "line": {"width": 1.2, "color": PAPER},
        },
        hovertext=[lines((what, f"{row['field']} {row['vertex']:.4g}", compared, edge))],
        hoverinfo="text",
        name="vertex",
    )


def _run_hover(row: dict[Any, Any]) -> str:
    what = f"guided round {row['round']}" if row["round"] else "coarse point"
    return lines(
        (
            f"{row['arm']}, {what}, block {row['block']}",
            f"{row['field']} {row['value']:.4g}",
            f"{row['e_folds']:.3g} e-folds of examples behind the best run (drawn at {row['behind']:.3g})",
        )
    )


def winners(frame: pd.DataFrame, family: Family) -> go.Figure:
    """Where each arm's tuning points and winners lie in their ranges; the shaded twentieths are the edges."""
    keys = list(dict.fromkeys(zip(frame["arm"], frame["field"], strict=True)))
    rows = {key: i for i, key in enumerate(keys)}
    figure = blank(ROW * len(keys) + 66)
    for low, high in ((-0.02, 0.05), (0.95, 1.02)):
        figure.add_vrect(low, high, fillcolor=GREY, opacity=0.16, line_width=0, layer="below")
    y = [rows[key] for key in zip(frame["arm"], frame["field"], strict=True)]
    won = frame["won"].astype(bool).to_numpy()
    tried = frame[~won]
    figure.add_scatter(
        x=plain(tried["position"], 4),
        y=[place for place, w in zip(y, won, strict=True) if not w],
        mode="markers",
        marker={"symbol": "line-ns", "size": 9, "line": {"width": 1.4, "color": GREY}},
        hovertext=[_space_hover(row) for row in tried.to_dict("records")],
        hoverinfo="text",
        name="tuning point",
    )
    for name in dict.fromkeys(family(str(arm)) for arm in frame["arm"]):
        part = frame[won & (frame["arm"].map(family) == name).to_numpy()]
        if part.empty:
            continue
        look = mark(name)
        figure.add_scatter(
            x=plain(part["position"], 4),
            y=[rows[key] for key in zip(part["arm"], part["field"], strict=True)],
            mode="markers",
            marker={
                "symbol": look.symbol,
                "color": look.colour,
                "size": 11,
                "line": {"width": 0.8, "color": PAPER},
            },
            hovertext=[_space_hover(row) for row in part.to_dict("records")],
            hoverinfo="text",
            name=label_text(name),
        )
    ends = {key: part.iloc[0] for key, part in frame.groupby(["arm", "field"], sort=False)}
    notes = [
        {
            "xref": "paper",
            "x": 1.0,
            "xanchor": "left",
            "xshift": 10,
            "y": i,
            "text": f"{ends[key]['low']:.3g} to {ends[key]['high']:.3g}",
            "showarrow": False,
            "font": {"size": 12, "color": MUTED},
        }
        for key, i in rows.items()
    ]
    figure.update_layout(
        xaxis={
            "range": [-0.02, 1.02],
            "tickvals": [0, 0.5, 1],
            "ticktext": ["low end", "middle", "high end"],
            "title": {"text": "place in the tuned range, on its own scale"},
        },
        yaxis={
            "tickvals": list(rows.values()),
            "ticktext": [label_text(shorten(f"{arm} · {field}", 30)) for arm, field in keys],
            "range": [len(keys) - 0.4, -0.6],
            "gridcolor": RULE,
        },
        margin={"r": 118, "b": 44},
        annotations=notes,
    )
    return figure


def winners_narrow(figure: go.Figure) -> dict[str, Any]:
    """The same on a phone: the ranges at its right stand below the names."""
    return numbers_below(figure, NARROW_ROW - ROW)


def _space_hover(row: dict[Any, Any]) -> str:
    what = "winner" if row["won"] else "tuning point"
    value, low, high = (float(row[key]) for key in ("value", "low", "high"))
    return lines(
        (
            f"{row['arm']}, {what}, block {row['block']}",
            f"{row['field']} {value:.4g}",
            f"range {low:.3g} to {high:.3g}",
        )
    )
