"""Options that several commands of `python -m vae` share, and where an image goes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vae.errors import FailureError, UserError

if TYPE_CHECKING:
    import numpy as np

    from vae.checkpoint import TrainedModel
    from vae.code import Source
    from vae.data.dataset import Dataset, Split

# torch and all that imports it come with the command that needs them: --help is quick.

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="NAME|PATH|CODE",
        help="Data set, .npy/.npz file, folder of images, or file.py:factory.",
    ),
]
OtherData = Annotated[
    str | None,
    typer.Option("--data", metavar="NAME|PATH", help="Default: what the model was trained on."),
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder that is searched for data first.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors file of this project.")]
Out = Annotated[Path, typer.Option("--out", help="File to write.")]
Images = Annotated[Path, typer.Option("--out", help="File to write: a .png sheet or an .npy array.")]
SplitSeed = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of the split; default: the one that the model was trained with."),
]
OfSplit = Annotated[str, typer.Option("--split", help="train, valid or test.")]
Shape = Annotated[
    str | None,
    typer.Option("--shape", metavar="H,W[,3]", help="Shape of an image, where the model knows none: 28,28."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]


@dataclass(frozen=True)
class ImageOptions:
    """Which images of which data, how they are drawn, and where the model runs: for commands that look at a model."""

    data: OtherData = None
    split: OfSplit = "test"
    data_dir: DataDir = None
    seed: SplitSeed = None
    shape: Shape = None
    device: Device = "auto"

    def images(self, trained: TrainedModel) -> Split:
        """The split meant. Raises UserError."""
        return split_of(trained, self.data, self.split, self.data_dir, self.seed)


Batch = TypeVar("Batch")

#: Images of a sheet, at most: they are all in memory at once.
SHEET_IMAGES = 10_000


def load_on(model: Path, device: str) -> TrainedModel:
    """The model of a file, on the device of that name; code of the user's own that this runs is named on stderr. Raises
    UserError."""
    from vae.checkpoint import load_model
    from vae.devices import pick_device

    on = pick_device(device)
    trained = load_model(model)
    for source in trained.sources:
        if source.reference == trained.recipe.model:
            name_source(source)
    trained.model.to(on)
    return trained


def name_source(source: Source) -> None:
    """Say on stderr which code of the user's own is run."""
    typer.echo(
        f"Note: runs {source.reference}, SHA-256 {source.sha256[:12]}... as in the model file.", err=True
    )


def data_of(trained: TrainedModel, source: str | None, data_dir: Path | None, seed: int | None) -> Dataset:
    """The data that a command means. What may be misread is said on stderr."""
    from vae import use

    if source is None:
        dataset = use.training_data(trained, data_dir, seed)
        if dataset.code is not None:
            name_source(dataset.code)
    else:
        dataset = use.same_split(trained, source, data_dir, seed)
    if dataset.name == trained.data_name and not use.is_training_data(trained, dataset):
        reason = "though it has its name"
        if trained.split_seed is None:
            reason = (
                "or it is split by another seed (--seed), and then its test images may have been trained on"
            )
        typer.echo(f"Note: {dataset.name} is not the data that the model was trained on, {reason}.", err=True)
    return dataset


def split_of(
    trained: TrainedModel, source: str | None, split: str, data_dir: Path | None, seed: int | None
) -> Split:
    """The split of that name, of the data that a command means. Raises UserError."""
    from vae.use import SPLITS

    require_one_of(split, SPLITS)
    found: Split = getattr(data_of(trained, source, data_dir, seed), split)
    return found


def require_one_of(split: str, splits: tuple[str, ...]) -> None:
    """Raises UserError for a --split that there isn't."""
    if split not in splits:
        raise UserError(f"--split {split}: choose {', '.join(splits[:-1])} or {splits[-1]}.")


def whole_numbers(flag: str, text: str, below: int, of: str) -> tuple[int, ...]:
    """The value of a flag such as --rows 0,3,5, each at least 0 and less than `below`. Raises UserError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 16 and int(part) < below for part in parts):
        raise UserError(f"{flag} {text}: whole numbers from 0 to {below - 1}, {of}, for example 0,1.")
    return tuple(int(part) for part in parts)


def write_images(
    out: Path,
    trained: TrainedModel,
    batches: Iterable[np.ndarray[Any, Any]],
    n: int,
    shape: str | None = None,
    columns: int | None = None,
) -> tuple[int, ...]:
    """Write n images, given as batches (B, D), as .npy or as a sheet of so many columns, by default a square; the shape
    that an image has there. Progress is shown on a terminal. Raises UserError, FailureError."""
    stored = stored_shape(shape, trained)
    require_images(out, n, stored)
    shown = progress(batches, n)
    if out.suffix == ".npy":
        write_array(out, shown, (n, *stored))
        return stored
    import numpy as np

    from vae.files import write_bytes
    from vae.pictures import enlarged, limits, sheet

    pixels = np.concatenate(list(shown))
    columns = columns or math.ceil(math.sqrt(n))
    write_bytes(out, enlarged(sheet(pixels, columns, stored, limits(pixels, trained.recipe.likelihood))))
    return stored


def require_images(out: Path, n: int, stored: tuple[int, ...]) -> None:
    """Refuse, before anything is computed, what can't be written: n examples of that shape as .npy or .png."""
    from vae.files import require_writable
    from vae.images import image_shape

    require_writable(out)
    array = out.with_suffix(".npy")
    if out.suffix == ".png":
        if image_shape(stored) is None:
            raise UserError(
                f"Examples of shape {stored} are no images that can be drawn: say how by --shape 28,28, or use "
                f"--out {array}."
            )
        if n > SHEET_IMAGES:
            raise UserError(f"A sheet has at most {SHEET_IMAGES} images, not {n}: use --out {array}.")
    elif out.suffix != ".npy":
        raise UserError(f"--out {out}: end it with .png or .npy.")


def write_array(out: Path, batches: Iterable[np.ndarray[Any, Any]], shape: tuple[int, ...]) -> None:
    """Write an .npy of float32 of that shape in pieces, batches (B, ...) of it, as they come. Raises FailureError."""
    import numpy as np

    from vae.files import write_whole

    _require_space(out, 4 * math.prod(shape))

    def write(temporary: Path) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for batch in batches:
                file.write(batch.astype("<f4").tobytes())

    write_whole(out, write)


def progress(batches: Iterable[Batch], n: int, size: Callable[[Batch], int] = len) -> Iterator[Batch]:  # type: ignore[assignment]
    """The same batches; on a terminal with a bar on stderr that says how many of n images are through.

    size: of how many images a batch is."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=n)
        for batch in batches:
            yield batch
            bar.advance(task, size(batch))


def stored_shape(text: str | None, trained: TrainedModel) -> tuple[int, ...]:
    """The shape in which an image of the model's is written: the value of --shape, else the model's own. Raises
    UserError."""
    if text is None:
        return trained.shape
    size, parts = math.prod(trained.shape), text.split(",")
    shape = tuple(int(part) for part in parts if part.strip().isdecimal() and len(part) < 10)
    if len(shape) != len(parts) or len(shape) not in (2, 3) or math.prod(shape) != size:
        raise UserError(
            f"--shape {text}: height and width (28,28), or with colours 28,28,3, of {size} numbers in all."
        )
    return shape


def _require_space(out: Path, n_bytes: int) -> None:
    """Refuse what the disk has no room for before it is full."""
    there = out.absolute().parent
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if n_bytes > free:
        raise FailureError(
            f"{out} would be {n_bytes / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are free: ask for fewer images."
        )
