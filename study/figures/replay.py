"""Figures of a replay: what was used against what was lost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from study.figures.theme import BLUE, GREEN, GREY, INK, MUTED, ORANGE, PURPLE, blank, label_text, lines, plain
from study.replay.policies import Kind
from study.replay.score import Score, front

#: Symbol and colour of each kind of policy.
LOOKS = {
    Kind.NONE: ("x", GREY),
    Kind.ACROSS: ("circle", BLUE),
    Kind.STAGE: ("square", ORANGE),
    Kind.WITHIN: ("triangle-up", PURPLE),
}


def pareto(scores: Sequence[Score], chosen: Score, limit: float, clock: str) -> go.Figure:
    """Share used against the 90th percentile of the regret, a mark a policy; the front is a line, the recommended
    policy has a ring, and `limit` is the largest regret that counts as small."""
    shown = [s for s in scores if s.policy.kind.selects_by_value and math.isfinite(s.regret_p90)]
    figure = blank(380, margin={"l": 64, "r": 20, "t": 26, "b": 58})
    best = front(shown)
    if limit > 0.0:
        figure.add_hrect(y0=0.0, y1=limit, fillcolor=GREEN, opacity=0.1, line_width=0)
    figure.add_scatter(
        x=plain([100 * s.share for s in best]),
        y=plain([s.regret_p90 for s in best]),
        mode="lines",
        line={"color": INK, "width": 1.2, "dash": "dot"},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=plain([100 * chosen.share]),
        y=plain([chosen.regret_p90]),
        mode="markers",
        marker={"symbol": "circle-open", "size": 20, "color": GREEN, "line": {"width": 2}},
        hoverinfo="skip",
    )
    for kind, (symbol, colour) in LOOKS.items():
        own = [s for s in shown if s.policy.kind is kind]
        figure.add_scatter(
            x=plain([100 * s.share for s in own]),
            y=plain([s.regret_p90 for s in own]),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": plain([s.regret_p90_interval[1] - s.regret_p90 for s in own]),
                "arrayminus": plain([s.regret_p90 - s.regret_p90_interval[0] for s in own]),
                "thickness": 1,
                "width": 0,
                "color": colour,
            },
            mode="markers+text",
            marker={"symbol": symbol, "size": 9, "color": colour},
            text=[label_text(s.policy.name) if s in best else "" for s in own],
            textposition="top center",
            textfont={"size": 11, "color": MUTED},
            customdata=[_hover(s, clock) for s in own],
            hovertemplate="%{customdata}<extra></extra>",
            name=str(kind),
        )
    figure.update_layout(
        xaxis={"title": {"text": f"Share of {clock} used, %"}, "range": [0, 108]},
        yaxis={"title": {"text": "Regret, 90th percentile over orders"}, "rangemode": "tozero"},
    )
    return figure


def _hover(s: Score, clock: str) -> str:
    low, high = s.regret_p90_interval
    return lines(
        [
            s.policy.name,
            s.policy.use,
            f"{s.share:.0%} of the {clock}",
            f"regret: median {s.regret:.4g}, 90th percentile {s.regret_p90:.4g} [{low:.4g}, {high:.4g}]",
            f"cuts the best run and finds a worse one in {s.best_cut:.0%} of orders",
        ]
    )
