"""The report's figures as PNG and SVG files, drawn by kaleido in a browser without a window."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from study.analysis.evidence import Evidence
from study.figures.compose import composite
from study.figures.panel import Figure
from study.report.blocks import Picture
from study.report.sections import answer, sections
from study.store.locations import Location
from vae.errors import FailureError, UserError
from vae.files import write_bytes

FORMATS = ("png", "svg")
#: Pixels of a PNG for one of the figure.
SCALE = 2


def write_figures(evidence: Evidence, folder: Path, artifacts: Location, data_dir: Path | None) -> list[Path]:
    """Write every figure of an experiment's report to `folder`, each as PNG and SVG; the paths written.

    Raises UserError without kaleido or a browser; FailureError where the browser or the folder fails."""
    _require_kaleido()
    name = evidence.name
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
