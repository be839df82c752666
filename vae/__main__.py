"""`python -m vae`: train one recipe, then evaluate it, compress with it and generate from it."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from vae.command import Debug, command_line, run
from vae.errors import FailureError, UserError

if TYPE_CHECKING:
    import numpy as np

    from vae.checkpoint import TrainedModel
    from vae.code import Source
    from vae.data.dataset import Dataset

# torch and all that imports it come with the command that needs them: --help is quick.

app = command_line("vae", "Train one recipe, then evaluate it, compress with it and generate from it.")

Data = Annotated[
    str,
    typer.Option("--data", metavar="NAME|PATH|CODE", help="Data set, .npy/.npz file, or file.py:factory."),
]
OtherData = Annotated[
    str | None,
    typer.Option("--data", metavar="NAME|PATH", help="Default: what the model was trained on."),
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder that is searched for data first.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors file of this project.")]
Out = Annotated[Path, typer.Option("--out", help="File to write.")]
SplitSeed = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of the split; default: the one that the model was trained with."),
]
Shape = Annotated[
    str | None,
    typer.Option("--shape", metavar="H,W[,3]", help="Shape of an image, where the model knows none: 28,28."),
]

#: Images of a sheet, at most: they are all in memory at once.
SHEET_IMAGES = 10_000


@app.command("train")
def train_command(
    out: Out,
    data: Data = "digits",
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Recipe as TOML or JSON.")] = None,
    fix: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Recipe field.")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME|CODE", help="The network: mlp, conv, or file.py:factory of your own."
        ),
    ] = None,
    budget: Annotated[float, typer.Option("--budget", min=0.0, help="Epochs.")] = 10.0,
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the split (--set seed=N is the training's).")
    ] = 0,
    debug: Debug = False,
) -> None:
    """Train one recipe on one data set and write the model."""
    from vae.checkpoint import save_model
    from vae.data.dataset import load
    from vae.devices import pick_device
    from vae.diagnosis import explain
    from vae.evaluation import bits_per_dim
    from vae.files import require_writable
    from vae.recipe import Recipe, parse_value
    from vae.training import train

    on = pick_device(device)
    chosen = Recipe.load(recipe) if recipe else Recipe()
    if network is not None:
        chosen = chosen.replace(model=network)
    for assignment in fix or []:
        field, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: write FIELD=VALUE, for example --set lr=3e-4.")
        chosen = chosen.replace(**{field: parse_value(field, text)})
    require_writable(out)
    dataset = load(data, seed=seed, likelihood=chosen.likelihood, data_dir=data_dir)
    n_train = len(dataset.train)
    if not budget * n_train < 2**53:
        raise UserError(f"--budget {budget:g}: at most {2**53 / n_train:.3g} epochs of {n_train} examples.")
    tau = max(1, round(budget * n_train))
    training = train(chosen, dataset, tau, on)
    last = -10
    evaluations = []
    for evaluation in training:
        evaluations.append(evaluation)
        if evaluation.number - last >= 10 or training.outcome != "running":
            last = evaluation.number
            print(
                f"epoch {evaluation.examples / n_train:7.2f}  valid {evaluation.valid_loss:9.3f}  "
                f"rate {evaluation.rate:7.3f}  distortion {evaluation.distortion:9.3f}  "
                f"active units {evaluation.active_units:3d}  {evaluation.train_seconds:7.1f} s",
                flush=True,
            )
    why = explain(training, evaluations, dataset, lambda: train(chosen, dataset, tau, on))
    if training.outcome == "diverged":
        raise FailureError(f"The training diverged: its loss became NaN or infinite. In detail: {why}")
    scores = training.evaluate(dataset.test)
    save_model(out, training, dataset)
    bits = (
        f", {bits_per_dim(scores.loss, dataset.size):.4f} bits per dim" if training.likelihood.levels else ""
    )
    print(f"{training.outcome}; test {scores.loss:.3f} nats per example{bits}; model: {out}")
    if why:
        typer.echo(f"Note: the training {training.outcome}: {why}", err=True)


@app.command()
def evaluate(
    model: Model,
    data: OtherData = None,
    split: Annotated[str, typer.Option("--split", help="train, valid or test.")] = "test",
    k: Annotated[int, typer.Option("--k", min=1, help="Importance samples of the IWAE bound.")] = 64,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Images to look at, at most.")] = 2_000,
    data_dir: DataDir = None,
    seed: SplitSeed = None,
    debug: Debug = False,
) -> None:
    """ELBO, rate, distortion and the IWAE bound of a model."""
    from vae import use

    trained = _load(model)
    _require_one_of(split, use.SPLITS)
    dataset = _data(trained, data, data_dir, seed)
    found = use.evaluate(trained, getattr(dataset, split), k=k, limit=limit)
    scores = found.scores
    print(
        f"{found.n} images of {split}: negative ELBO {scores.loss:.3f} nats "
        f"(rate {scores.rate:.3f} + {scores.distortion:.3f})"
    )
    print(f"IWAE bound, k = {k}: {found.iwae:.3f} nats, {found.bits_per_dim:.4f} bits per dim")
    if not found.is_likelihood:
        print(
            f"{trained.recipe.likelihood} on grey pixels is no likelihood: compare these figures with its own kind "
            "only."
        )


@app.command()
def encode(
    model: Model,
    out: Out,
    data: OtherData = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="train, valid, test, or all; default: all of a file named by --data, else test."
        ),
    ] = None,
    data_dir: DataDir = None,
    seed: SplitSeed = None,
    debug: Debug = False,
) -> None:
    """Compress images to posterior means and log variances: an .npz with mean, log_var, rows (where in its file each
    image stands) and, if known, labels. A file named by --data is encoded whole, in its order."""
    import numpy as np

    from vae import use
    from vae.data.dataset import load_whole
    from vae.data.sources import NAMES
    from vae.files import require_writable, write_whole

    trained = _load(model)
    require_writable(out)
    chosen = split or ("all" if data is not None and data not in NAMES else "test")
    _require_one_of(chosen, (*use.SPLITS, "all"))
    if chosen == "all":
        source = data or use.training_data(trained, data_dir, seed).source
        part, shape = load_whole(source, likelihood=trained.recipe.likelihood, data_dir=data_dir)
        if shape != trained.shape:
            raise UserError(f"The model takes images of shape {trained.shape}; {source} has {shape}.")
    else:
        part = getattr(_data(trained, data, data_dir, seed), chosen)
    codes = use.codes_of(trained, part)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would add .npz to it
            np.savez(file, **codes)

    write_whole(out, write)
    n, size = codes["mean"].shape
    print(f"{n} images of {math.prod(trained.shape)} pixels -> {size} numbers each: {out}")


@app.command()
def decode(
    model: Model,
    codes: Annotated[Path, typer.Argument(help="From encode, or .npy (N, latent).")],
    out: Out,
    shape: Shape = None,
    debug: Debug = False,
) -> None:
    """Images from codes: the expected pixels, an .npy (N, ...) of float32 or a .png sheet."""
    from vae import use

    trained = _load(model)
    z = use.read_codes(codes, trained.recipe.latent_size)
    shown = _write_images(out, trained, use.decoded_batches(trained, z), len(z), shape)
    print(f"{len(z)} images of shape {shown}: {out}")


@app.command()
def sample(
    model: Model,
    out: Out,
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draws.")] = 0,
    pixels: Annotated[
        bool,
        typer.Option("--draw-pixels", help="Draw the pixels from p(x|z) too; else what is expected of them."),
    ] = False,
    shape: Shape = None,
    debug: Debug = False,
) -> None:
    """Generate new images from the prior: a .png sheet or an .npy array."""
    from vae import use

    if not -(2**63) <= seed < 2**64:
        raise UserError(f"--seed {seed}: a whole number of 64 bits, for example one from 0 to 2^64 - 1.")
    trained = _load(model)
    shown = _write_images(out, trained, use.draws(trained, n, seed, pixels), n, shape)
    print(f"{n} samples of shape {shown}: {out}")


@app.command()
def compress(
    images: Annotated[
        str,
        typer.Argument(metavar="IMAGES", help="Data set or file of images of 8 bits, as --data of train."),
    ],
    model: Annotated[Path, typer.Option("--model", help="A .safetensors file of this project.")],
    out: Out,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="train, valid, test, or all; default: all of a file, the test part of a named set.",
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--beside", help="Also say what PNG, WebP, zstd and bz2 take for the same images.")
    ] = False,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """Compress images without loss by a model of 8-bit or black-and-white pixels: bits-back coding."""
    from vae.compression.bits_back import require_discrete
    from vae.compression.file import Written, compress, sha256_of
    from vae.data.dataset import load_whole
    from vae.data.sources import NAMES
    from vae.evaluation import bits_per_dim
    from vae.files import require_writable, write_whole
    from vae.use import is_black_and_white, negative_elbo

    trained = _load(model)
    of = require_discrete(trained)
    require_writable(out)
    chosen = split or ("test" if images in NAMES else "all")
    _require_one_of(chosen, ("train", "valid", "test", "all"))
    if chosen == "all":
        part, shape = load_whole(images, likelihood=of.name, data_dir=data_dir)
        if shape != trained.shape:
            raise UserError(f"The model takes images of shape {trained.shape}; {images} has {shape}.")
    else:
        part = getattr(_data(trained, images, data_dir, None), chosen)
    written: list[Written] = []

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            written.append(compress(trained, sha256_of(model), part, file))

    began = time.perf_counter()
    write_whole(out, write)
    seconds = time.perf_counter() - began
    done = written[0]
    size = math.prod(trained.shape)
    n_dims = done.n_images * size
    loss = negative_elbo(trained, part)
    elbo, net = bits_per_dim(loss, size), 8 * done.n_bytes / n_dims
    print(
        f"{done.n_images} images of shape {trained.shape}: {done.n_bytes} bytes, {net:.4f} bits per dim, "
        f"{net / elbo - 1:+.2%} of the negative ELBO's {elbo:.4f}; {seconds:.1f} s; {out}"
    )
    print(f"{done.n_initial} of the bytes are initial bits; {done.n_notes} roundings are noted.")
    if compare:
        from vae.compression.beside import beside, pictures_of

        for other in beside(pictures_of(trained, part), of.levels == 2):
            print(f"{other.name:<14}{other.n_bytes:>12} bytes, {8 * other.n_bytes / n_dims:.4f} bits per dim")
    if of.levels == 2 and not is_black_and_white(part):
        typer.echo(
            f"Note: {images} has grey pixels; of them the black and white that {of.name} makes is kept.",
            err=True,
        )


@app.command()
def decompress(
    compressed: Annotated[Path, typer.Argument(metavar="FILE", help="From compress.")],
    model: Annotated[Path, typer.Option("--model", help="The model that it was compressed with.")],
    out: Out,
    debug: Debug = False,
) -> None:
    """The images that compress was given, bit by bit: an .npy (N, ...) of uint8."""
    import numpy as np

    from vae.compression.file import decompress, read_header, sha256_of
    from vae.files import require_writable, write_whole

    trained = _load(model)
    if out.suffix != ".npy":
        raise UserError(f"--out {out}: end it with .npy.")
    require_writable(out)
    try:
        file = compressed.open("rb")
    except OSError as error:
        raise UserError(f"{compressed} can't be read: {error.strerror or error}.") from None
    with file:
        header = read_header(file, compressed)
        blocks = decompress(trained, sha256_of(model), header, file, compressed)

        def write(temporary: Path) -> None:
            shape = {"descr": "|u1", "fortran_order": False, "shape": (header.count, *trained.shape)}
            with temporary.open("wb") as array:
                np.lib.format.write_array_header_1_0(array, shape)
                for block in blocks:
                    array.write(block.tobytes())

        write_whole(out, write)
    print(f"{header.count} images of shape {trained.shape}: {out}")


def _load(path: Path) -> TrainedModel:
    """The model in a file. Code of the user's own that this runs is named on stderr."""
    from vae.checkpoint import load_model

    trained = load_model(path)
    for source in trained.sources:
        if source.reference == trained.recipe.model:
            _name(source)
    return trained


def _name(source: Source) -> None:
    typer.echo(
        f"Note: runs {source.reference}, SHA-256 {source.sha256[:12]}... as in the model file.", err=True
    )


def _data(trained: TrainedModel, source: str | None, data_dir: Path | None, seed: int | None) -> Dataset:
    """The data that a command means. What may be misread is said on stderr."""
    from vae import use

    if source is None:
        dataset = use.training_data(trained, data_dir, seed)
        if dataset.code is not None:
            _name(dataset.code)
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


def _require_one_of(split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise UserError(f"--split {split}: choose {', '.join(splits[:-1])} or {splits[-1]}.")


def _write_images(
    out: Path, trained: TrainedModel, batches: Iterator[np.ndarray[Any, Any]], n: int, shape: str | None
) -> tuple[int, ...]:
    """Write n images, given as batches (B, D), as .npy or as a sheet; the shape that an image has there."""
    import numpy as np

    from vae.files import require_writable, write_bytes, write_whole
    from vae.images import image_shape
    from vae.pictures import enlarged, limits, sheet

    stored = _shape_of(shape, math.prod(trained.shape)) or trained.shape
    require_writable(out)
    if out.suffix == ".npy":
        _require_space(out, 4 * n * math.prod(stored))

        def write(temporary: Path) -> None:
            header = {"descr": "<f4", "fortran_order": False, "shape": (n, *stored)}
            with temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for batch in batches:
                    file.write(batch.astype("<f4").tobytes())

        write_whole(out, write)
    elif out.suffix == ".png":
        if image_shape(stored) is None:
            raise UserError(
                f"Examples of shape {stored} are no images that can be drawn: say how by --shape 28,28, or use "
                f"--out {out.with_suffix('.npy')}."
            )
        if n > SHEET_IMAGES:
            raise UserError(
                f"A sheet has at most {SHEET_IMAGES} images, not {n}: use --out {out.with_suffix('.npy')}."
            )
        pixels = np.concatenate(list(batches))
        columns = math.ceil(math.sqrt(n))
        write_bytes(out, enlarged(sheet(pixels, columns, stored, limits(pixels, trained.recipe.likelihood))))
    else:
        raise UserError(f"--out {out}: end it with .png or .npy.")
    return stored


def _shape_of(text: str | None, size: int) -> tuple[int, ...] | None:
    """The value of --shape, for examples of that many pixels."""
    if text is None:
        return None
    parts = text.split(",")
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


def main() -> NoReturn:
    """Run the command line (see `vae.command.run`)."""
    run(app)


if __name__ == "__main__":
    main()
