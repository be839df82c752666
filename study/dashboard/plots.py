"""The report's figures as the dashboard's custom plots: each fits one box and brings its own title and paper."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from study.analysis.comparison import Comparison
from study.analysis.evidence import NO_FAMILY, curves_of
from study.analysis.frames import bands, confirmed, seeds, speeds
from study.analysis.frames import survival as survival_table
from study.cli.tables import sorted_arms
from study.figures.arms import learning_curves, survival
from study.figures.forest import forest
from study.figures.theme import INK, MUTED, PAPER, TEMPLATE, escape, shorten
from study.protocol.history import State
from study.report.blocks import Panel
from study.store.store import Store

#: Pixels: the dashboard's box for a custom plot, which it doesn't make larger for a higher figure; its title.
HEIGHT = 450
TITLE_HEIGHT = 64
#: Fixed, so that publishing again replaces a plot.
FOREST, SURVIVAL, CURVES = "vae-forest", "vae-survival", "vae-curves"


def figures(store: Store, comparison: Comparison) -> dict[str, go.Figure]:
    """Graph id -> forest plot, Kaplan-Meier curves and learning curves, as far as there is something to draw."""
    experiment = comparison.experiment
    state = State(store, experiment, comparison.workload)
    runs = {str(arm): confirmed(state, arm) for arm in sorted_arms(comparison.arms)["arm"]}
    runs = {arm: own for arm, own in runs.items() if own}
    if not runs:
        return {}

    def family(arm: str) -> str:
        technique = experiment.technique(arm)
        return technique.family if technique else NO_FAMILY.get(arm, "reference")

    trial_ids = [run.trial_id for own in runs.values() for run in own]
    speed = speeds(store.throughput(experiment.name))
    hits = seeds(state, runs, speed)
    band = bands(runs, curves_of(store.curves(experiment.name, trial_ids)), speed)
    found = {}
    if len(runs) > 1:
        marks = "thick: 95 % intervals, thin: simultaneous; open: censored, truncated at the budget"
        figure = forest(comparison.arms[comparison.arms["seeds"] > 0], margin=experiment.margin)
        found[FOREST] = _framed(_set_small(figure), "Speed-up in examples over the tuned baseline", marks)
    if not hits.empty:
        figure = grid(survival(survival_table(hits), family))
        title = "Seeds that have not reached the target yet, by examples"
        found[SURVIVAL] = _framed(figure, title, "Kaplan-Meier; dotted: baseline")
    if not band.empty:
        figure = grid(learning_curves(band, hits, comparison.target, family))
        marks = "median and middle 80 % of seeds; dotted: baseline; dashed: target"
        found[CURVES] = _framed(figure, "Validation loss by examples, nats", marks)
    return found


def grid(panels: Sequence[Panel]) -> go.Figure:
    """One figure of small panels with the same axes, about as wide as high; only outer axes have tick labels."""
    columns = min(len(panels), math.ceil(math.sqrt(1.3 * len(panels))))
    rows = math.ceil(len(panels) / columns)
    figure = go.Figure(layout={"template": TEMPLATE, "showlegend": False})
    layout: dict[str, Any] = {"annotations": [], "shapes": [], "margin": {"l": 46, "r": 12, "t": 14, "b": 30}}
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        number = "" if i == 0 else str(i + 1)
        across = _domain(column, columns, 0.02)
        up = _domain(rows - 1 - row, rows, 0.07)
        figure.add_traces([_moved(trace.to_plotly_json(), number) for trace in panel.figure.data])
        drawn = panel.figure.to_plotly_json()["layout"]
        below = i + columns < len(panels)
        layout[f"xaxis{number}"] = _fewer_ticks(drawn["xaxis"]) | {
            "domain": across,
            "automargin": False,
            "anchor": f"y{number}",
            "showticklabels": not below,
        }
        layout[f"yaxis{number}"] = drawn["yaxis"] | {
            "domain": up,
            "automargin": False,
            "anchor": f"x{number}",
            "showticklabels": column == 0,
        }
        layout["shapes"] += [_moved(shape, number) for shape in drawn.get("shapes", ())]
        layout["annotations"].append(_heading(panel.title, across[0], up[1]))
    figure.update_layout(layout)
    return figure


def _framed(figure: go.Figure, title: str, subtitle: str) -> go.Figure:
    """The figure in the dashboard's box. Its paper is opaque: the ink is dark, the dashboard may be too."""
    text = f"{escape(title)}<br><span style='font-size:12px;color:{MUTED}'>{escape(subtitle)}</span>"
    figure.update_layout(
        title={
            "text": text,
            "font": {"size": 16, "color": INK},
            "x": 0.01,
            "xanchor": "left",
            "y": 0.97,
            "yanchor": "top",
        },
        height=HEIGHT,
        paper_bgcolor=PAPER,
    )
    figure.update_layout(margin={"t": (figure.layout.margin.t or 0) + TITLE_HEIGHT})
    return figure


def _set_small(figure: go.Figure) -> go.Figure:
    """The forest plot with text that fits its rows in the height that is left."""
    row = (HEIGHT - TITLE_HEIGHT - 50) / max(1, len(figure.layout.yaxis.ticktext))
    size = max(7.0, min(13.0, 0.85 * row))
    figure.update_yaxes(tickfont={"size": size})
    figure.update_annotations(font={"size": min(12.0, size)})
    return figure


def _domain(at: int, of: int, gap: float) -> list[float]:
    size = (1 - gap * (of - 1)) / of
    return [at * (size + gap), at * (size + gap) + size]


def _fewer_ticks(axis: dict[str, Any], most: int = 4) -> dict[str, Any]:
    """The axis with at most so many of the ticks that it names: more would be turned on their side."""
    step = math.ceil(len(axis.get("tickvals", ())) / most) or 1
    return axis | {key: list(axis[key])[::step] for key in ("tickvals", "ticktext") if key in axis}


def _moved(part: dict[str, Any], number: str) -> dict[str, Any]:
    """A trace or shape of a figure of its own, on the axes of that number."""
    keys = ("xaxis", "yaxis") if "type" in part and part["type"] == "scatter" else ("xref", "yref")
    moved = {key: re.sub(r"^([xy])\b", rf"\g<1>{number}", part.get(key, key[0])) for key in keys}
    return part | moved


def _heading(text: str, x: float, y: float) -> dict[str, Any]:
    at = {"x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    return at | {"text": escape(shorten(text)), "font": {"size": 11, "color": INK}, "showarrow": False}
