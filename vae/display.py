"""What `vae train` shows while it trains, and the picture that it leaves: plain lines where nobody watches."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vae.checkpoint import TrainedModel
from vae.data.dataset import Split
from vae.evaluation import Evaluation
from vae.files import write_bytes
from vae.images import image_shape
from vae.live import LiveDisplay
from vae.pictures import enlarged, one_thread, reconstructions, samples

#: Evaluations between two plain lines.
EVERY = 10
#: Last evaluations in the live table; rows and columns of the curve under it, 80 columns with its labels.
ROWS, HEIGHT, WIDTH = 8, 10, 68
#: Nats from which a loss is told by its power of ten.
LARGE = 1e6
#: The picture: size of the curve and the margin round each part, in pixels.
CURVE_SIZE, MARGIN = (640, 320), 16


class Display(LiveDisplay):
    """Shows a training's evaluations: on a terminal the last of them and the curve so far, else a line for each
    tenth."""

    def __init__(self, console: Console, n_train: int) -> None:
        super().__init__(console)
        self.evaluations: list[Evaluation] = []
        self._n_train = n_train
        self._last = -EVERY

    def show(self, evaluation: Evaluation, last: bool) -> None:
        """Add an evaluation, the training's last one or not."""
        self.evaluations.append(evaluation)
        if self._live is not None:
            self._live.update(Group(self._table(), Text("\n".join(curve(self.evaluations)))))
        elif last or evaluation.number - self._last >= EVERY:
            self._last = evaluation.number
            self._console.print(self._line(evaluation), soft_wrap=True, markup=False, highlight=False)

    def _line(self, evaluation: Evaluation) -> str:
        return (
            f"epoch {evaluation.examples / self._n_train:7.2f}  valid {_nats(evaluation.valid_loss):>9}  "
            f"rate {_nats(evaluation.rate):>7}  distortion {_nats(evaluation.distortion):>9}  "
            f"active units {evaluation.active_units:3d}  {evaluation.train_seconds:7.1f} s"
        )

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in (
            "epoch",
            "train",
            "valid",
            "rate",
            "distortion",
            "active",
            "lr",
            "gradient",
            "seconds",
        ):
            table.add_column(name, justify="right")
        for row in self.evaluations[-ROWS:]:
            table.add_row(
                f"{row.examples / self._n_train:.2f}",
                *(_nats(value) for value in (row.train_loss, row.valid_loss, row.rate, row.distortion)),
                str(row.active_units),
                f"{row.lr:.2g}",
                f"{row.grad_norm:.3g}",
                f"{row.train_seconds:.1f}",
            )
        return table


def _nats(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if abs(value) < LARGE else f"{value:.2e}"


class Scaled(NamedTuple):
    """A curve in the unit square, and what the square's edges are."""

    points: list[tuple[float, float]]
    """Of each evaluation with a finite loss: the share of the examples, the height between least and most."""
    least: float
    most: float
    """Nats per example; the axis is cut there."""
    examples: int


def scaled(evaluations: list[Evaluation]) -> Scaled | None:
    """The validation loss over the examples seen, to be drawn at any size; the axis is cut where the first evaluations
    would press the others flat (at the median's distance from the least, twice). None for fewer than two finite
    losses."""
    finite = [row for row in evaluations if math.isfinite(row.valid_loss)]
    if len(finite) < 2:
        return None
    losses = sorted(row.valid_loss for row in finite)
    least, median, most = losses[0], losses[len(losses) // 2], losses[-1]
    if median > least:
        most = min(most, median + 2 * (median - least))
    last, height = finite[-1].examples, max(most - least, 1e-12)
    points = [(row.examples / last, (min(row.valid_loss, most) - least) / height) for row in finite]
    return Scaled(points, least, most, last)


def curve(evaluations: list[Evaluation], width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """`scaled` in characters, a line each; none where there is nothing to draw."""
    of = scaled(evaluations)
    if of is None:
        return []
    cells = [[" "] * width for _ in range(height)]
    for across, up in of.points:
        cells[height - 1 - round(up * (height - 1))][round(across * (width - 1))] = "*"
    most, least = (f"{_nats(value, 2):>9}" for value in (of.most, of.least))
    labels = [most, *[" " * 9] * (height - 2), least]
    lines = [f"{label} |{''.join(cell).rstrip()}" for label, cell in zip(labels, cells, strict=True)]
    end = f"{of.examples:,} examples"
    return [*lines, f"{'valid':>9} +{'-' * width}", f"{'':11}{end:>{width}}"]


def write_picture(path: Path, trained: TrainedModel, split: Split, evaluations: list[Evaluation]) -> None:
    """One PNG: the curve, below it the first images of a split with their reconstructions, and samples; the curve alone
    of examples that are no images. Raises FailureError."""
    parts = [_drawn_curve(evaluations)]
    if image_shape(trained.shape) is not None:
        with one_thread():
            sheets = (reconstructions(trained, split), samples(trained))
        parts += [Image.open(io.BytesIO(enlarged(sheet))).convert("RGBA") for sheet in sheets]
    titles = ("validation loss, nats per example", "images and their reconstructions", "samples")
    width = max(part.width for part in parts) + 2 * MARGIN
    step = 2 * MARGIN
    height = sum(part.height + step for part in parts) + MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(canvas), 0
    for part, title in zip(parts, titles, strict=False):
        draw.text((MARGIN, top + MARGIN // 2), title, fill="black")
        canvas.paste(part, (MARGIN, top + step), part)
        top += part.height + step
    file = io.BytesIO()
    canvas.save(file, format="PNG")
    write_bytes(path, file.getvalue())


def _drawn_curve(evaluations: list[Evaluation]) -> Image.Image:
    """Loss over examples, with the least and the cut-off of the axis written at it."""
    picture = Image.new("RGBA", CURVE_SIZE, "white")
    of = scaled(evaluations)
    if of is None:
        return picture
    draw = ImageDraw.Draw(picture)
    left, right, top, bottom = 64, CURVE_SIZE[0] - 8, 8, CURVE_SIZE[1] - 28
    points = [(left + across * (right - left), bottom - up * (bottom - top)) for across, up in of.points]
    draw.line([(left, top), (left, bottom), (right, bottom)], fill="gray")
    draw.line(points, fill="#1f77b4", width=2, joint="curve")
    draw.text((left - 6, top), _nats(of.most, 2), fill="black", anchor="rt")
    draw.text((left - 6, bottom), _nats(of.least, 2), fill="black", anchor="rb")
    draw.text((left, bottom + 8), "0", fill="black", anchor="lt")
    draw.text((right, bottom + 8), f"{of.examples:,} examples", fill="black", anchor="rt")
    return picture
