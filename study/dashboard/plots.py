"""The report's figures as the dashboard's custom plots: each fits one box and brings its own title and paper."""

from __future__ import annotations

import plotly.graph_objects as go

from study.analysis.comparison import Comparison
from study.analysis.evidence import NO_FAMILY, curves_of
from study.analysis.frames import bands, confirmed, seeds, speeds
from study.analysis.frames import survival as survival_table
from study.cli.tables import sorted_arms
from study.figures.arms import learning_curves, survival
from study.figures.compose import boxed
from study.figures.forest import forest
from study.figures.theme import INK, MUTED, PAPER, label_text
from study.protocol.selection import State
from study.store import records
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
    speed = speeds(records.throughput(store, experiment.name))
    hits = seeds(state, runs, speed)
    band = bands(runs, curves_of(records.curves(store, experiment.name, trial_ids)), speed)
    found = {}
    if len(runs) > 1:
        marks = "thick: 95 % intervals, thin: simultaneous; open: censored, truncated at the budget"
        figure = forest(comparison.arms[comparison.arms["seeds"] > 0], margin=experiment.margin)
        found[FOREST] = _framed(_set_small(figure), "Speed-up in examples over the tuned baseline", marks)
    if not hits.empty:
        figure = boxed(survival(survival_table(hits), family))
        title = "Seeds that have not reached the target yet, by examples"
        found[SURVIVAL] = _framed(figure, title, "Kaplan-Meier; dotted: baseline")
    if not band.empty:
        figure = boxed(learning_curves(band, hits, comparison.target, family))
        marks = "median and middle 80 % of seeds; dotted: baseline; dashed: target"
        found[CURVES] = _framed(figure, "Validation loss by examples, nats", marks)
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
