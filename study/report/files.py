"""The report's figures as PNG and SVG files, drawn by kaleido in a browser without a window."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from study.analysis.evidence import collect
from study.figures.theme import INK, MUTED, PAPER, blank, escape
from study.report.blocks import Figure, Picture
from study.report.sections import answer, sections
from study.store.store import Store
from vae.errors import FailureError, UserError
from vae.files import write_bytes

FORMATS = ("png", "svg")
WIDTH = 1000
COLUMNS = 4
#: Pixels of a small panel, and between panels for ticks and titles.
PANEL, GAP_X, GAP_Y = 170, 46, 58
#: Pixels of a PNG for one of the figure.
SCALE = 2


def write_figures(
    store: Store, name: str, folder: Path, artifacts: Path, data_dir: Path | None
) -> list[Path]:
    """Write every figure of experiment NAME's report to `folder`, each as PNG and SVG; the paths written.

    Raises UserError without kaleido or a browser; FailureError where the browser or the folder fails."""
    _require_kaleido()
    evidence = collect(store, name)
    blocks = [
        block
        for part in [answer(evidence), *sections(evidence, artifacts, data_dir)]
        for block in part.blocks
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FailureError(f"{folder} can't be made: {error.strerror or error}.") from None
    written = [
        write_bytes(folder / f"{name}-{block.id}.png", block.png)
        for block in blocks
        if isinstance(block, Picture)
    ]
    specifications: list[dict[str, Any]] = []
    for block in blocks:
        if isinstance(block, Figure):
            figure = composite(block)
            for format in FORMATS:
                path = folder / f"{name}-{block.id}.{format}"
                options = {"format": format, "width": figure.layout.width, "height": figure.layout.height}
                options["scale"] = SCALE if format == "png" else 1
                specifications.append({"fig": figure.to_plotly_json(), "path": path, "opts": options})
                written.append(path)
    _draw(specifications)
    return written


def _require_kaleido() -> None:
    if importlib.util.find_spec("kaleido") is None:
        raise UserError("--figures needs kaleido: pip install 'vae-study[figures]'.")


def _draw(specifications: list[dict[str, Any]]) -> None:
    import kaleido
    from kaleido.errors import ChromeNotFoundError

    try:
        # Without MathJax, which the page would fetch from elsewhere.
        kaleido.write_fig_from_object_sync(specifications, kopts={"mathjax": False})
    except ChromeNotFoundError:
        raise UserError(
            "--figures needs a Chromium or Chrome to draw with: install one (Debian: chromium), or set BROWSER_PATH."
        ) from None
    except (OSError, RuntimeError) as error:
        raise FailureError(f"The browser could not draw the figures: {error}.") from error


def composite(block: Figure) -> go.Figure:
    """A figure's panels as one graph on white, side by side or in a grid, with their titles."""
    if len(block.panels) == 1:
        figure = go.Figure(block.panels[0].figure)
        figure.update_layout(width=WIDTH, paper_bgcolor=PAPER, margin={"l": 20, "r": 20})
        only = block.panels[0].figure.layout.margin
        figure.update_layout(margin={"r": only.r, "t": only.t, "b": only.b})
        return figure
    grid = block.layout == "grid"
    columns = COLUMNS if grid else 1
    rows = -(-len(block.panels) // columns)
    inner = PANEL if grid else max(panel.figure.layout.height for panel in block.panels)
    top, bottom = 64, 40
    height = rows * (inner + GAP_Y) + top + bottom - GAP_Y
    figure = blank(height, width=WIDTH, paper_bgcolor=PAPER)
    right = 20 if grid else 140
    figure.update_layout(margin={"l": 40 if grid else 120, "r": right, "t": top, "b": bottom})
    plot_width = WIDTH - right - (40 if grid else 120)
    plot_height = height - top - bottom
    for i, panel in enumerate(block.panels):
        column, row = i % columns, i // columns
        cell = (plot_width + GAP_X) / columns
        x = (column * cell / plot_width, (column * cell + cell - GAP_X) / plot_width)
        y = 1 - row * (inner + GAP_Y) / plot_height
        _place(figure, panel.figure, str(i + 1) if i else "", x, (y - inner / plot_height, y))
        figure.add_annotation(
            text=f"<b>{escape(panel.title)}</b> {escape(panel.note)}",
            xref="paper",
            yref="paper",
            x=x[0],
            y=y,
            yanchor="bottom",
            xanchor="left",
            showarrow=False,
            font={"size": 12, "color": INK},
        )
    figure.add_annotation(
        text=escape(block.axes or block.title),
        xref="paper",
        yref="paper",
        x=0,
        y=1,
        yshift=44,
        yanchor="top",
        xanchor="left",
        showarrow=False,
        font={"size": 13, "color": MUTED},
    )
    return figure


def _place(
    figure: go.Figure, panel: go.Figure, axis: str, x: tuple[float, float], y: tuple[float, float]
) -> None:
    """Copy a panel's traces, axes, shapes and notes into a part of a larger figure, on axes of their own."""
    x = (max(0.0, x[0]), min(1.0, x[1]))
    y = (max(0.0, y[0]), min(1.0, y[1]))
    for trace in panel.data:
        figure.add_trace(trace.update(xaxis=f"x{axis}", yaxis=f"y{axis}"))
    own = panel.layout.to_plotly_json()
    figure.layout[f"xaxis{axis}"] = own.get("xaxis", {}) | {
        "domain": x,
        "anchor": f"y{axis}",
        "automargin": False,
    }
    figure.layout[f"yaxis{axis}"] = own.get("yaxis", {}) | {
        "domain": y,
        "anchor": f"x{axis}",
        "automargin": False,
    }
    for kind, add in (("shapes", figure.add_shape), ("annotations", figure.add_annotation)):
        for item in own.get(kind, ()):
            refs = {key: _on(item.get(key, key[0]), axis) for key in ("xref", "yref")}
            add(item | refs)


def _on(reference: str, axis: str) -> str:
    """ "x" or "x domain" of a panel, or "paper", which is the panel's own domain, on the larger figure's axes."""
    if reference == "paper":
        return f"x{axis} domain"
    letter, _, domain = reference.partition(" ")
    return f"{letter}{axis} {domain}".strip()
