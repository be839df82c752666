"""Figures of the answer: the forest plot, and examples against throughput."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import plotly.graph_objects as go

from study.analysis.arm import ArmResult, CombinedArm, Measure, sorted_arms
from study.analysis.words import AT_MOST
from study.figures.arms import Family
from study.figures.theme import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    PAPER,
    RULE,
    VERMILLION,
    Mark,
    blank,
    label_text,
    lines,
    mark,
    numbers_below,
    plain,
    ratio_axis,
    rule,
    shorten,
)
from study.statistics.speed_up import Estimate

Unit = Literal["examples", "seconds"]
_NAN = float("nan")

#: Height of a row in pixels.
ROW, NARROW_ROW = 25, 40


class Row(NamedTuple):
    """What one line of the forest plot shows."""

    arm: str
    family: str
    hits: int
    seeds: int
    measure: Measure | None
    truncated: tuple[float, float, float] = (_NAN, _NAN, _NAN)
    """A censored arm's ratio truncated at tau and its interval."""
    timed: bool = True
    params: Mapping[str, Any] | None = None
    at_most: float | None = None
    """See `ArmResult`; in examples alone."""

    @property
    def ratio(self) -> float:
        """The speed-up; NaN without one."""
        return _NAN if self.measure is None else self.measure.ratio

    @property
    def ends(self) -> tuple[float, float]:
        """Its 95 % interval."""
        return (
            (_NAN, _NAN) if self.measure is None else (self.measure.estimate.low, self.measure.estimate.high)
        )

    @property
    def simultaneous(self) -> tuple[float, float]:
        """Its interval over the family."""
        return (_NAN, _NAN) if self.measure is None else self.measure.simultaneous


def arm_rows(arms: Iterable[ArmResult], unit: Unit = "examples") -> list[Row]:
    """The comparison's arms in the plot's order; the baseline is the line at 1x."""
    rows = []
    for arm in sorted_arms(arms):
        if arm.is_baseline:
            continue
        timed = unit == "examples" or arm.timed
        # In seconds times the throughput factor, whose own uncertainty is small beside it.
        factor = 1.0 if unit == "examples" else arm.throughput.ratio if arm.throughput is not None else _NAN
        rmst = arm.rmst
        truncated = (_NAN,) * 3 if rmst is None else (rmst.ratio, rmst.low, rmst.high)
        ratio, low, high = (value * factor for value in truncated)
        measure = arm.examples if unit == "examples" else arm.seconds
        bound = arm.at_most if unit == "examples" else None
        counted = arm.hits, arm.seeds
        rows.append(Row(arm.arm, arm.family, *counted, measure, (ratio, low, high), timed, arm.params, bound))
    return rows


def combined_rows(arms: Iterable[CombinedArm], family: Family) -> list[Row]:
    """The combine block's arms by speed-up."""
    rows = [Row(arm.arm, family(arm.arm), arm.hits, arm.seeds, arm.examples) for arm in arms]
    return sorted(rows, key=lambda row: (math.isnan(row.ratio), -row.ratio, row.arm))


def forest(rows: Sequence[Row], unit: str = "examples", margin: float = 0.05) -> go.Figure:
    """The forest plot of speed-ups in a unit, as it is called.

    Thick bars are 95 % intervals, thin ones simultaneous. A censored arm keeps its row: an open symbol at the
    ratio truncated at tau, which is too kind to it, and a dotted bar."""
    figure = blank(ROW * len(rows) + 62)
    figure.add_vrect(1 / (1 + margin), 1 + margin, fillcolor=GREY, opacity=0.13, line_width=0, layer="below")
    _one(figure, len(rows))
    held = [_held(row) for row in rows]
    axis = ratio_axis(
        [value for points, _ in held for value in points], [end for _, ends in held for end in ends]
    )
    left = 10 ** (axis["range"][0] + 0.025 * (axis["range"][1] - axis["range"][0]))
    for family in dict.fromkeys(row.family for row in rows):
        _family_rows(figure, rows, family, left)
    notes = [_right_note(i, row) for i, row in enumerate(rows)]
    ticks = {
        "tickvals": list(range(len(rows))),
        "ticktext": [label_text(shorten(row.arm)) for row in rows],
    }
    figure.update_layout(
        xaxis=axis | {"title": {"text": f"speed-up in {label_text(unit)}, log scale"}, "side": "bottom"},
        yaxis=ticks
        | {"range": [len(rows) - 0.4, -0.6], "showgrid": False, "tickfont": {"size": 13, "color": INK}},
        margin={
            "r": max(132, 30 + 7 * max((_width(note["text"]) for note in notes), default=0)),
            "t": 6,
            "b": 44,
            "l": 8,
        },
        annotations=notes,
    )
    return figure


def _one(figure: go.Figure, rows: int) -> None:
    """The line at 1x: a trace, since a shape below the traces would be below the grid too."""
    line = {"color": INK, "width": 1.3}
    figure.add_scatter(
        x=[1, 1], y=[-0.6, rows - 0.4], mode="lines", line=line, hoverinfo="skip", showlegend=False
    )


def forest_narrow(figure: go.Figure) -> dict[str, Any]:
    """The forest plot on a phone: the numbers at its right stand below the arms' names."""
    return numbers_below(figure, NARROW_ROW - ROW)


def _held(row: Row) -> tuple[list[float], list[float]]:
    """(the ratio, its interval's ends) that the axis should hold; nothing of an arm that never hits, which goes
    where the axis begins."""
    if math.isfinite(row.ratio):
        return [row.ratio], [*row.ends, *row.simultaneous]
    if row.hits:
        ratio, low, high = row.truncated
        return [ratio], [low, high]
    return [], []


def _width(text: str) -> int:
    """Characters of a note, without its markup."""
    return len(text.replace("<b>", "").replace("</b>", ""))


def _family_rows(figure: go.Figure, rows: Sequence[Row], family: str, left: float) -> None:
    """The traces of one family: simultaneous and 95 % bars, symbols, and the censored arms."""
    look = mark(family)
    mine = [(i, row) for i, row in enumerate(rows) if row.family == family]
    whole = [(i, row) for i, row in mine if math.isfinite(row.ratio)]
    censored = [
        (i, row) for i, row in mine if not math.isfinite(row.ratio) and math.isfinite(row.truncated[0])
    ]
    _bars(figure, [(i, *row.simultaneous) for i, row in whole], {"color": look.colour, "width": 1.3})
    _bars(figure, [(i, *row.ends) for i, row in whole], {"color": look.colour, "width": 4.0})
    spans = [(i, *row.truncated[1:]) for i, row in censored if row.hits]
    _bars(figure, spans, {"color": look.colour, "width": 1.6, "dash": "dot"})
    for name, part, suffix in (("", whole, ""), (" (censored)", censored, "-open")):
        if not part:
            continue
        ratio = [row.truncated[0] if suffix else row.ratio for _, row in part]
        never = [bool(suffix) and not row.hits for _, row in part]
        figure.add_scatter(
            x=plain([left if none else value for none, value in zip(never, ratio, strict=True)], 6),
            y=[i for i, _ in part],
            mode="markers",
            name=label_text(f"{family}{name}"),
            marker={
                "symbol": ["triangle-left-open" if none else f"{look.symbol}{suffix}" for none in never],
                "color": look.colour,
                "size": 13 if "triangle" in look.symbol else 11.5,
                "line": {"width": 1.8 if suffix else 1.2, "color": look.colour if suffix else PAPER},
            },
            hovertext=[_forest_hover(row) for _, row in part],
            hoverinfo="text",
            showlegend=not suffix,
        )


def _bars(figure: go.Figure, spans: list[tuple[int, float, float]], line: dict[str, Any]) -> None:
    spans = [(i, low, high) for i, low, high in spans if math.isfinite(low) and math.isfinite(high)]
    if not spans:
        return
    x = [value for _, low, high in spans for value in (*plain([low, high], 6), None)]
    y = [value for i, _, _ in spans for value in (i, i, None)]
    figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False)


def _right_note(i: int, row: Row) -> dict[str, Any]:
    low, high = (_NAN, _NAN) if row.measure is None else row.measure.shown
    colour = INK
    if math.isfinite(row.ratio):
        text = (
            f"{row.ratio:.2f}x [{low:.2f}, {high:.2f}]"
            if math.isfinite(low)
            else f"{row.ratio:.2f}x, no interval"
        )
        text = f"<b>{text}</b>" if row.measure is not None and row.measure.verdict.decided else text
    else:
        colour = MUTED
        reach = f"{row.hits} of {row.seeds} reach it" if row.hits else f"none of {row.seeds} reaches it"
        bound = "" if row.at_most is None else f"{AT_MOST} {row.at_most:.2f}x ({row.hits} of {row.seeds} hit)"
        text = (bound or reach) if row.seeds else "not measured yet"
        if row.seeds and not row.timed:
            text = "not timed yet"
    return {
        "xref": "paper",
        "x": 1.0,
        "xanchor": "left",
        "xshift": 10,
        "y": i,
        "yanchor": "middle",
        "text": text,
        "font": {"size": 12, "color": colour},
        "showarrow": False,
    }


def _forest_hover(row: Row) -> str:
    low, high = row.ends
    if math.isfinite(row.ratio):
        shown = f"{row.ratio:.3f}x" + (
            f", 95 % [{low:.3f}, {high:.3f}]" if math.isfinite(low) else ", no interval"
        )
        wide = row.simultaneous
        also = f"simultaneous [{wide[0]:.3f}, {wide[1]:.3f}]" if math.isfinite(wide[0]) else None
    else:
        ratio, low, high = row.truncated
        shown = f"censored; truncated at the budget {ratio:.3f}x" + (
            f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) else ""
        )
        also = None if row.hits else "never reaches the target"
    params = ", ".join(f"{field}: {value}" for field, value in (row.params or {}).items())
    return lines(
        (
            f"{row.arm} ({row.family})",
            shown,
            also,
            f"target reached on {row.hits} of {row.seeds} seeds",
            f"verdict: {row.measure.words}" if row.measure is not None else None,
            f"tuned: {params}" if params else None,
        )
    )


def decomposition(arms: Iterable[ArmResult]) -> go.Figure:
    """Examples factor, throughput factor and their product on one log axis, a row an arm that was timed."""
    rows = [arm for arm in sorted_arms(arms) if arm.throughput is not None]
    parts: tuple[tuple[str, list[Estimate | None], Mark, float], ...] = (
        ("fewer examples", [_estimate(arm.examples) for arm in rows], Mark("circle", BLUE, ""), -0.24),
        ("examples per second", [arm.throughput for arm in rows], Mark("square", GREEN, ""), 0.0),
        ("product: seconds", [_estimate(arm.seconds) for arm in rows], Mark("diamond", VERMILLION, ""), 0.24),
    )
    figure = blank(46 * len(rows) + 96, showlegend=True)
    _one(figure, len(rows))
    values: list[float] = []
    for name, estimates, look, shift in parts:
        ratio = [_NAN if e is None else e.ratio for e in estimates]
        low = [_NAN if e is None else e.low for e in estimates]
        high = [_NAN if e is None else e.high for e in estimates]
        values += [value for value in (*ratio, *low, *high) if math.isfinite(value)]
        y = [i + shift for i in range(len(rows))]
        spans = list(zip(y, low, high, strict=True))
        _bars(figure, spans, {"color": look.colour, "width": 2.5})  # type: ignore[arg-type]
        words = "examples" if name == "fewer examples" else name
        figure.add_scatter(
            x=plain(ratio, 6),
            y=y,
            mode="markers",
            name=name,
            marker={
                "symbol": look.symbol,
                "color": look.colour,
                "size": 9,
                "line": {"width": 0.8, "color": PAPER},
            },
            hovertext=[
                lines((row.arm, f"{words}: {r:.3f}x [{a:.3f}, {b:.3f}]"))
                for row, r, a, b in zip(rows, ratio, low, high, strict=True)
            ],
            hoverinfo="text",
        )
    for i in range(1, len(rows)):
        rule(figure, y=i - 0.5, colour=RULE)
    figure.update_layout(
        xaxis=ratio_axis(values) | {"title": {"text": "ratio to the baseline, log scale; right is faster"}},
        yaxis={
            "tickvals": list(range(len(rows))),
            "ticktext": [label_text(shorten(row.arm)) for row in rows],
            "range": [len(rows) - 0.5, -0.5],
            "showgrid": False,
            "tickfont": {"size": 13, "color": INK},
        },
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        margin={"t": 34, "b": 44},
    )
    return figure


def _estimate(measure: Measure | None) -> Estimate | None:
    return None if measure is None else measure.estimate
