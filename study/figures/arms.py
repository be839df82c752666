"""Figures with a panel an arm: learning curves, survival, other targets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from study.figures.panel import Panel
from study.figures.theme import (
    GREY,
    MUTED,
    Mark,
    faint,
    label_text,
    lines,
    log_ticks,
    mark,
    plain,
    ratio_axis,
    rule,
    small,
    thinned,
)

#: Points of a curve that a small panel can show.
POINTS = 90

Family = Callable[[str], str]


def learning_curves(
    bands: pd.DataFrame,
    seeds: pd.DataFrame,
    target: float | None,
    family: Family,
    unit: str = "examples",
    *,
    clock: str = "examples",
    value: str = "nats",
    maximise: bool = False,
) -> list[Panel]:
    """One panel an arm: median and middle 80 % of the validation loss over seeds, the baseline's in grey, the
    target, and where each seed reaches it. `unit` is the x axis: "examples", called `clock`, or "seconds"; the arm of
    the family "baseline" is the baseline, `value` what the losses' unit is called. With `maximise` the bands hold
    negated values and the target is as it was recorded, as everything is shown."""
    x_name = clock if unit == "examples" else unit
    sign = -1.0 if maximise else 1.0
    shown = bands[bands[unit].notna()]
    ends = _loss_range(bands, None if target is None else sign * target)
    bottom, top = sorted(sign * end for end in ends)
    if maximise:
        shown = shown.assign(median=-shown["median"], low=-shown["high"], high=-shown["low"])
    panels = []
    baseline = _baseline(shown, family)
    for arm, own in shown.groupby("arm", sort=False):
        figure = small()
        look = mark(family(str(arm)))
        if family(str(arm)) != "baseline":
            _band(figure, baseline, unit, GREY, "baseline", x_name, value, dash="dot", fill=False)
        colour = look.colour if family(str(arm)) != "baseline" else GREY
        _band(figure, own, unit, colour, str(arm), x_name, value)
        if target is not None:
            rule(figure, y=target, dash="dash")
            hits = seeds[(seeds["arm"] == arm) & seeds["hit"].astype(bool)]
            _seed_marks(figure, hits, unit, target, look, x_name)
        figure.update_layout(
            xaxis=log_ticks(*_ends(shown[unit])),
            yaxis={"range": [bottom, top], "nticks": 5},
        )
        is_off = own["median"].max() < bottom if maximise else own["median"].min() > top
        if is_off:
            side, edge, anchor = ("below", bottom, "bottom") if maximise else ("above", top, "top")
            text = f"{side}: ends at {own['median'].iloc[-1]:.1f}"
            figure.add_annotation(xref="x domain", x=0.97, y=edge, yanchor=anchor, text=text, **_OFF)
        own_seeds = seeds[seeds["arm"] == arm]
        note = f"{int(own_seeds['hit'].sum())} of {len(own_seeds)} seeds reach it"
        panels.append(Panel(f"{unit}-{arm}", str(arm), figure, note, family(str(arm))))
    return panels


def _baseline(frame: pd.DataFrame, family: Family) -> pd.DataFrame:
    """The baseline's rows."""
    return frame[[family(str(arm)) == "baseline" for arm in frame["arm"]]]


def _seed_marks(
    figure: go.Figure, hits: pd.DataFrame, unit: str, target: float, look: Mark, x_name: str
) -> None:
    if hits.empty:
        return
    hover = [
        lines((f"{row['arm']}, seed {row['seed']}", f"target after {row[unit]:,.4g} {x_name}", row["recipe"]))
        for row in hits.to_dict("records")
    ]
    line = {"width": 1.3, "color": look.colour}
    figure.add_scatter(
        x=plain(hits[unit]),
        y=[round(target, 5)] * len(hits),
        mode="markers",
        marker={"symbol": "line-ns", "size": 9, "line": line},
        hovertext=hover,
        hoverinfo="text",
    )


def _band(
    figure: go.Figure,
    band: pd.DataFrame,
    unit: str,
    colour: str,
    name: str,
    x_name: str,
    value: str,
    dash: str = "solid",
    fill: bool = True,
) -> None:
    """A median line over its band; losses that a diverged seed makes infinite are left out of the band."""
    if band.empty:
        return
    part = band.iloc[thinned(len(band), POINTS)]
    if fill:
        whole = part[np.isfinite(part["low"]) & np.isfinite(part["high"])]
        _filled(figure, whole[unit], whole["low"], whole["high"], colour)
    figure.add_scatter(
        x=plain(part[unit]),
        y=plain(part["median"]),
        mode="lines",
        line={"color": colour, "width": 1.4 if dash != "solid" else 1.9, "dash": dash},
        hovertemplate=f"{label_text(name)}<br>%{{x:,.4s}} {label_text(x_name)}"
        f"<br>%{{y:.3f}} {label_text(value)}<extra></extra>",
    )


def _filled(
    figure: go.Figure, x: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike, colour: str
) -> None:
    """The area between two lines over the same x, as a trace that nothing hovers."""
    there, lower, upper = np.asarray(x), np.asarray(low), np.asarray(high)
    figure.add_scatter(
        x=plain(np.concatenate([there, there[::-1]])),
        y=plain(np.concatenate([upper, lower[::-1]])),
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faint(colour),
        hoverinfo="skip",
    )


_OFF = {"showarrow": False, "xanchor": "right", "font": {"size": 11, "color": MUTED}}


def _ends(values: pd.Series) -> tuple[float, float]:
    """A log axis over positive values, from 1/60 of the largest: where the curves differ."""
    largest = float(values.max())
    return max(largest / 60.0, float(values[values > 0].min())), largest


def _loss_range(bands: pd.DataFrame, target: float | None) -> tuple[float, float]:
    """From the least loss to where the baseline is at 3 % of its examples: the first steps would flatten all."""
    finite = bands["low"][np.isfinite(bands["low"])]
    least = float(finite.min()) if len(finite) else 0.0
    first = bands[bands["arm"] == bands["arm"].iloc[0]]
    early = first[first["examples"] >= 0.03 * first["examples"].max()]["median"]
    early = early[np.isfinite(early)]
    top = float(early.iloc[0]) if len(early) else least + 1.0
    bottom = min(least, target) if target is not None else least
    top = max(top, bottom + 1e-6)
    return bottom - 0.06 * (top - bottom), top


def survival(frame: pd.DataFrame, family: Family, *, clock: str = "examples") -> list[Panel]:
    """One panel an arm: Kaplan-Meier curve of the seeds that have not reached the target, with its pointwise
    95 % interval, over the baseline's."""
    baseline = _baseline(frame, family)
    positive = frame["examples"][frame["examples"] > 0]
    panels = []
    for arm, own in frame.groupby("arm", sort=False):
        figure = small()
        look = mark(family(str(arm)))
        if family(str(arm)) != "baseline":
            _steps(figure, baseline, GREY, "baseline", positive, clock, fill=False)
        _steps(figure, own, look.colour, str(arm), positive, clock)
        left, right = 0.8 * float(positive.min()), 1.04 * float(positive.max())
        figure.update_layout(
            xaxis=log_ticks(left, right),
            yaxis={"range": [-0.04, 1.05], "tickvals": [0, 0.5, 1], "ticktext": ["0", "50%", "100%"]},
        )
        last = own["survival"].iloc[-1]
        note = "all reach it" if last == 0 else f"{last:.0%} do not reach it"
        panels.append(Panel(f"km-{arm}", str(arm), figure, note, family(str(arm))))
    return panels


def _steps(
    figure: go.Figure,
    km: pd.DataFrame,
    colour: str,
    name: str,
    positive: pd.Series,
    clock: str,
    fill: bool = True,
) -> None:
    """A step function from the left edge; a log axis has no 0."""
    start = float(positive.min()) * 0.5
    x = km["examples"].where(km["examples"] > 0, start)
    if fill:
        known = km["low"].notna() & km["high"].notna()
        # The corners of the steps: the interval holds until the next event.
        at, low, high = x[known].to_numpy(), km["low"][known].to_numpy(), km["high"][known].to_numpy()
        end = np.append(at[1:], x.iloc[-1])
        corners = np.stack([at, end], 1).ravel()
        _filled(figure, corners, np.repeat(low, 2), np.repeat(high, 2), colour)
    figure.add_scatter(
        x=plain(x),
        y=plain(km["survival"]),
        mode="lines",
        line={
            "color": colour,
            "width": 1.9 if fill else 1.4,
            "shape": "hv",
            "dash": "solid" if fill else "dot",
        },
        hovertemplate=f"{label_text(name)}<br>after %{{x:,.4s}} {label_text(clock)}"
        "<br>%{y:.0%} not there yet<extra></extra>",
    )


def by_target(
    frame: pd.DataFrame,
    target: float | None,
    family: Family,
    *,
    value: str = "nats",
    maximise: bool = False,
) -> list[Panel]:
    """One panel an arm: its speed-up in examples at other targets, harder ones to the right; arms without a
    ratio at any target are left out."""
    ends = pd.concat([frame["low"], frame["high"]]).dropna()
    limits = [float(ends.quantile(q)) for q in (0.02, 0.98)] if len(ends) else []
    axis = ratio_axis(frame["speed_up"].dropna().tolist(), limits, most=4.0)
    panels = []
    for arm, own in frame.groupby("arm", sort=False):
        if own["speed_up"].isna().all():
            continue
        figure = small()
        look = mark(family(str(arm)))
        known = own[own["low"].notna()]
        rule(figure, y=1.0)
        if target is not None:
            rule(figure, x=target, dash="dash")
        _filled(figure, known["target"], known["low"], known["high"], look.colour)
        figure.add_scatter(
            x=plain(own["target"]),
            y=plain(own["speed_up"]),
            mode="lines+markers",
            marker={"size": 3.5, "color": look.colour},
            line={"color": look.colour, "width": 1.7},
            hovertemplate=f"{label_text(arm)}<br>target %{{x:.4g}} {label_text(value)}<br>"
            "%{y:.2f}x<extra></extra>",
        )
        low, high = float(frame["target"].min()), float(frame["target"].max())
        pad = 0.04 * (high - low)
        axis_ends = [low - pad, high + pad] if maximise else [high + pad, low - pad]
        figure.update_layout(
            xaxis={"range": axis_ends, "nticks": 4},
            yaxis=axis,
        )
        lost = int(own["speed_up"].isna().sum())
        note = f"gaps at {lost} of {len(own)} levels" if lost else ""
        panels.append(Panel(f"target-{arm}", str(arm), figure, note, family(str(arm))))
    return panels
