"""Figures of the answer: the forest plot, and examples against throughput."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from study.cli.tables import sorted_arms
from study.figures.panel import as_float
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
from study.statistics.verdicts import Verdict

Row = dict[Any, Any]

#: Height of a row in pixels.
ROW, NARROW_ROW = 25, 40


def forest(arms: pd.DataFrame, unit: str = "", margin: float = 0.05) -> go.Figure:
    """The forest plot of a frame of arms (`Comparison.arms`), in examples (unit "") or "_seconds".

    Thick bars are 95 % intervals, thin ones simultaneous. A censored arm keeps its row: an open symbol at the
    ratio truncated at tau, which is too kind to it, and a dotted bar."""
    rows = [row for row in sorted_arms(arms).to_dict("records") if row["kind"] != "baseline"]
    figure = blank(ROW * len(rows) + 62)
    figure.add_vrect(1 / (1 + margin), 1 + margin, fillcolor=GREY, opacity=0.13, line_width=0, layer="below")
    _one(figure, len(rows))
    held = [_held(row, unit) for row in rows]
    axis = ratio_axis(
        [value for points, _ in held for value in points], [end for _, ends in held for end in ends]
    )
    left = 10 ** (axis["range"][0] + 0.025 * (axis["range"][1] - axis["range"][0]))
    for family in dict.fromkeys(str(row["family"]) for row in rows):
        _family_rows(figure, rows, family, unit, left)
    notes = [_right_note(i, row, unit) for i, row in enumerate(rows)]
    ticks = {
        "tickvals": list(range(len(rows))),
        "ticktext": [label_text(shorten(str(row["arm"]))) for row in rows],
    }
    words = "seconds" if unit else "examples"
    figure.update_layout(
        xaxis=axis | {"title": {"text": f"speed-up in {words}, log scale"}, "side": "bottom"},
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


def _held(row: Row, unit: str) -> tuple[list[float], list[float]]:
    """(the ratio, its interval's ends) that the axis should hold; nothing of an arm that never hits, which goes
    where the axis begins."""
    ratio = as_float(row.get(f"speed_up{unit}"))
    if math.isfinite(ratio):
        return [ratio], [*_ends(row, "", unit), *_ends(row, "simultaneous_", unit)]
    if row["hits"]:
        ratio, low, high = _truncated(row, unit)
        return [ratio], [low, high]
    return [], []


def _width(text: str) -> int:
    """Characters of a note, without its markup."""
    return len(text.replace("<b>", "").replace("</b>", ""))


def _truncated(row: Row, unit: str) -> tuple[float, float, float]:
    """A censored arm's ratio truncated at tau and its interval; in seconds times the throughput factor, whose
    own uncertainty is small beside it."""
    factor = as_float(row.get("throughput")) if unit else 1.0
    ratio, low, high = (as_float(row.get(f"rmst{end}")) * factor for end in ("", "_low", "_high"))
    return ratio, low, high


def _family_rows(figure: go.Figure, rows: list[Row], family: str, unit: str, left: float) -> None:
    """The traces of one family: simultaneous and 95 % bars, symbols, and the censored arms."""
    look = mark(family)
    whole: list[tuple[int, Row]] = []
    censored: list[tuple[int, Row]] = []
    for i, row in enumerate(rows):
        if row["family"] == family and math.isfinite(as_float(row.get(f"speed_up{unit}"))):
            whole.append((i, row))
        elif row["family"] == family and math.isfinite(_truncated(row, unit)[0]):
            censored.append((i, row))
    bars: dict[str, tuple[float, list[tuple[int, float, float]]]] = {
        "simultaneous_": (1.3, [(i, *_ends(row, "simultaneous_", unit)) for i, row in whole]),
        "": (4.0, [(i, *_ends(row, "", unit)) for i, row in whole]),
    }
    for width, ends in bars.values():
        _bars(figure, ends, {"color": look.colour, "width": width})
    spans = [(i, *_truncated(row, unit)[1:]) for i, row in censored if row["hits"]]
    _bars(figure, spans, {"color": look.colour, "width": 1.6, "dash": "dot"})
    for name, part, suffix in (("", whole, ""), (" (censored)", censored, "-open")):
        if not part:
            continue
        ratio = [
            as_float(row.get(f"speed_up{unit}")) if not suffix else _truncated(row, unit)[0]
            for _, row in part
        ]
        never = [bool(suffix) and not row["hits"] for _, row in part]
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
            hovertext=[_forest_hover(row, unit) for _, row in part],
            hoverinfo="text",
            showlegend=not suffix,
        )


def _ends(row: Row, kind: str, unit: str) -> tuple[float, float]:
    return as_float(row.get(f"{kind}low{unit}")), as_float(row.get(f"{kind}high{unit}"))


def _bars(figure: go.Figure, spans: list[tuple[int, float, float]], line: dict[str, Any]) -> None:
    spans = [(i, low, high) for i, low, high in spans if math.isfinite(low) and math.isfinite(high)]
    if not spans:
        return
    x = [value for _, low, high in spans for value in (*plain([low, high], 6), None)]
    y = [value for i, _, _ in spans for value in (i, i, None)]
    figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False)


def _right_note(i: int, row: Row, unit: str) -> dict[str, Any]:
    ratio, (low, high) = as_float(row.get(f"speed_up{unit}")), _ends(row, "", unit)
    strong = row.get(f"verdict{unit}") in (Verdict.FASTER, Verdict.SLOWER)
    colour = INK
    if math.isfinite(ratio):
        text = f"{ratio:.2f}x [{low:.2f}, {high:.2f}]" if math.isfinite(low) else f"{ratio:.2f}x, no interval"
        text = f"<b>{text}</b>" if strong else text
    else:
        colour = MUTED
        text = (
            f"{row['hits']} of {row['seeds']} reach it"
            if row["hits"]
            else f"none of {row['seeds']} reaches it"
        )
        text = text if row["seeds"] else "not measured yet"
        if unit and row["seeds"] and math.isnan(as_float(row.get("throughput"))):
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


def _forest_hover(row: Row, unit: str) -> str:
    ratio, (low, high) = as_float(row.get(f"speed_up{unit}")), _ends(row, "", unit)
    wide = _ends(row, "simultaneous_", unit)
    if math.isfinite(ratio):
        shown = f"{ratio:.3f}x" + (
            f", 95 % [{low:.3f}, {high:.3f}]" if math.isfinite(low) else ", no interval"
        )
        also = f"simultaneous [{wide[0]:.3f}, {wide[1]:.3f}]" if math.isfinite(wide[0]) else None
    else:
        ratio, low, high = _truncated(row, unit)
        shown = f"censored; truncated at the budget {ratio:.3f}x" + (
            f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) else ""
        )
        also = None if row["hits"] else "never reaches the target: at most this"
    params = str(row.get("params") or "{}").strip("{}").replace('"', "")
    verdict = row.get(f"verdict{unit}")
    return lines(
        (
            f"{row['arm']} ({row['family']})",
            shown,
            also,
            f"target reached on {row['hits']} of {row['seeds']} seeds",
            f"verdict: {verdict}" if isinstance(verdict, str) else None,
            f"tuned: {params}" if params else None,
        )
    )


def decomposition(arms: pd.DataFrame) -> go.Figure:
    """Examples factor, throughput factor and their product on one log axis, a row an arm."""
    rows = [
        row for row in sorted_arms(arms).to_dict("records") if math.isfinite(as_float(row.get("throughput")))
    ]
    parts = (
        ("fewer examples", "speed_up", ("low", "high"), Mark("circle", BLUE, ""), -0.24),
        (
            "examples per second",
            "throughput",
            ("throughput_low", "throughput_high"),
            Mark("square", GREEN, ""),
            0.0,
        ),
        (
            "product: seconds",
            "speed_up_seconds",
            ("low_seconds", "high_seconds"),
            Mark("diamond", VERMILLION, ""),
            0.24,
        ),
    )
    figure = blank(46 * len(rows) + 96, showlegend=True)
    _one(figure, len(rows))
    values: list[float] = []
    for name, column, ends, look, shift in parts:
        ratio = [as_float(row.get(column)) for row in rows]
        low, high = ([as_float(row.get(end)) for row in rows] for end in ends)
        values += [value for value in (*ratio, *low, *high) if math.isfinite(value)]
        y = [i + shift for i in range(len(rows))]
        spans = list(zip(y, low, high, strict=True))
        _bars(figure, spans, {"color": look.colour, "width": 2.5})  # type: ignore[arg-type]
        words = "examples" if column == "speed_up" else name
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
                lines((str(row["arm"]), f"{words}: {r:.3f}x [{a:.3f}, {b:.3f}]"))
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
            "ticktext": [label_text(shorten(str(row["arm"]))) for row in rows],
            "range": [len(rows) - 0.5, -0.5],
            "showgrid": False,
            "tickfont": {"size": 13, "color": INK},
        },
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        margin={"t": 34, "b": 44},
    )
    return figure
