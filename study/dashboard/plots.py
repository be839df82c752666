"""The report's figures as the dashboard's custom plots: each fits one box and brings its own title and paper."""

from __future__ import annotations

import plotly.graph_objects as go

from study.analysis.comparison import Comparison
from study.analysis.evidence import Evidence
from study.figures.arms import learning_curves, survival
from study.figures.compose import boxed
from study.figures.forest import arm_rows, forest
from study.figures.theme import INK, MUTED, PAPER, label_text
from study.figures.tuning import response

#: Pixels: the dashboard's box for a custom plot, which it doesn't make larger for a higher figure; its title.
HEIGHT = 450
TITLE_HEIGHT = 64
#: Fixed, so that publishing again replaces a plot.
FOREST, SURVIVAL, CURVES, RESPONSE = "vae-forest", "vae-survival", "vae-curves", "vae-response"


def figures(evidence: Evidence, comparison: Comparison) -> dict[str, go.Figure]:
    """Graph id -> forest plot, Kaplan-Meier curves, learning curves and guided tuning's response curves, as far as
    there is something to draw."""
    found: dict[str, go.Figure] = {}
    # The box has room for one panel an arm, all on one axis: the learning rate's. The report has the others.
    curves, runs = (frame[frame["field"] == "lr"] for frame in (evidence.responses, evidence.response_runs))
    if not curves.empty:
        panels = response(runs, curves, evidence.family)
        marks = "line and band: Gaussian process, 95 %; star: the vertex, which is confirmed; shaded: widened"
        found[RESPONSE] = _framed(
            boxed(panels), "Tuning: e-folds of examples behind the best run, by lr", marks
        )
    if not evidence.confirmed:
        return found
    if len(evidence.confirmed) > 1:
        marks = "thick: 95 % intervals, thin: simultaneous; open: censored, truncated at the budget"
        rows = arm_rows(arm for arm in comparison.arms if arm.seeds)
        figure = forest(rows, margin=comparison.terms.margin)
        found[FOREST] = _framed(_set_small(figure), "Speed-up in examples over the tuned baseline", marks)
    if not evidence.seeds.empty:
        figure = boxed(survival(evidence.survival, evidence.family))
        title = "Seeds that have not reached the target yet, by examples"
        found[SURVIVAL] = _framed(figure, title, "Kaplan-Meier; dotted: baseline")
    if not evidence.bands.empty:
        panels = learning_curves(evidence.bands, evidence.seeds, comparison.target, evidence.family)
        marks = "median and middle 80 % of seeds; dotted: baseline; dashed: target"
        found[CURVES] = _framed(boxed(panels), "Validation loss by examples, nats", marks)
    return found


def _framed(figure: go.Figure, title: str, subtitle: str) -> go.Figure:
    """The figure in the dashboard's box. Its paper is opaque: the ink is dark, the dashboard may be too."""
    text = f"{label_text(title)}<br><span style='font-size:12px;color:{MUTED}'>{label_text(subtitle)}</span>"
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
