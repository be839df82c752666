"""How trials ended: by outcome, and what stopping early saved."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from study.figures.theme import (
    BLUE,
    COLOURS,
    INK,
    PAPER,
    blank,
    hatched,
    label_text,
    lines,
    plain,
    shorten,
)

#: How an outcome is drawn: colour from COLOURS in this order, and a pattern, so that grey prints tell them apart.
PATTERNS = ("", "/", ".", "x", "-", "\\", "|", "+")


def savings(frame: pd.DataFrame) -> go.Figure:
    """Shares of the training examples used, and saved by stopping early, a bar an arm."""
    shown = frame.iloc[::-1]
    labels = [label_text(shorten(str(part))) for part in shown["part"]]
    figure = blank(24 * len(shown) + 84, showlegend=True, barmode="stack")
    hover = [
        lines((f"{row['part']} ({row['rule']})", f"{row['stopped']} of {row['trials']} ended before tau"))
        for row in shown.to_dict("records")
    ]
    figure.add_bar(
        y=labels, x=plain(shown["used"], 4), orientation="h", name="examples used", marker={"color": BLUE},
        hovertext=hover, hoverinfo="text",
    )  # fmt: skip
    figure.add_bar(
        y=labels,
        x=plain(shown["saved"], 4),
        orientation="h",
        name="saved",
        marker={
            "color": PAPER,
            "line": {"color": BLUE, "width": 1},
            "pattern": {"shape": "/", "fgcolor": BLUE, "size": 6},
        },
        hovertext=hover,
        hoverinfo="text",
    )
    figure.update_layout(
        xaxis={
            "range": [0, 1.01],
            "tickvals": [0, 0.25, 0.5, 0.75, 1],
            "tickformat": ".0%",
            "title": {"text": "share of the examples to tau"},
        },
        yaxis={"showgrid": False, "tickfont": {"size": 13, "color": INK}},
        bargap=0.3,
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "normal"},
        margin={"t": 34, "b": 44},
    )
    return figure


def outcomes(frame: pd.DataFrame) -> go.Figure:
    """Trials by outcome, a bar an arm."""
    total = frame.groupby(["arm", "outcome"], sort=False)["trials"].sum().reset_index()
    arms = list(dict.fromkeys(total["arm"]))[::-1]
    kinds = list(dict.fromkeys(total["outcome"]))
    figure = blank(24 * len(arms) + 84, showlegend=True, barmode="stack")
    for i, kind in enumerate(kinds):
        part = total[total["outcome"] == kind].set_index("arm")["trials"]
        counts = [int(part.get(arm, 0)) for arm in arms]
        colour = COLOURS[i % len(COLOURS)]
        figure.add_bar(
            y=[label_text(shorten(str(arm))) for arm in arms],
            x=counts,
            orientation="h",
            name=label_text(kind),
            marker={
                "color": colour,
                "line": {"color": PAPER, "width": 1},
                "pattern": hatched(PATTERNS[i % len(PATTERNS)], colour),
            },
            hovertext=[lines((f"{arm}: {n} {kind}",)) for arm, n in zip(arms, counts, strict=True)],
            hoverinfo="text",
        )
    figure.update_layout(
        xaxis={"title": {"text": "trials"}, "rangemode": "tozero"},
        yaxis={"showgrid": False, "tickfont": {"size": 13, "color": INK}},
        bargap=0.3,
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "normal"},
        margin={"t": 34, "b": 44},
    )
    return figure
