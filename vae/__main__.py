"""`python -m vae`: train one recipe, then evaluate it, compress with it and generate from it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from vae import look
from vae.command import Debug, command_line, run
from vae.errors import FailureError, UserError
from vae.images import in_words
from vae.options import (
    Data,
    DataDir,
    Device,
    Model,
    OfSplit,
    OtherData,
    Out,
    Shape,
    SplitSeed,
    data_of,
    load_on,
    progress,
    require_one_of,
    split_of,
    write_array,
    write_images,
)

# torch and all that imports it come with the command that needs them: --help is quick.

app = command_line("vae", "Train one recipe, then evaluate it, compress with it and generate from it.")


#: What a model file keeps of its last evaluation.
KEPT_METRICS = ("examples", "valid_loss", "rate", "distortion", "active_units")


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
    device: Device = "auto",
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the split (--set seed=N is the training's).")
    ] = 0,
    debug: Debug = False,
) -> None:
    """Train one recipe on one data set; write the model and, beside it, MODEL.training.png: the curve,
    reconstructions and samples."""
    from dataclasses import asdict

    from rich.console import Console

    from vae.checkpoint import load_model, save_model
    from vae.data.dataset import load
    from vae.devices import pick_device
    from vae.diagnosis import explain
    from vae.display import Display, write_picture
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
    if network is not None and chosen.model != network:
        raise UserError(f"--model {network} and --set model={chosen.model}: say one network.")
    require_writable(out)
    picture = out.with_name(f"{out.stem}.training.png")
    require_writable(picture)
    dataset = load(data, seed=seed, likelihood=chosen.likelihood, data_dir=data_dir)
    n_train = len(dataset.train)
    if not budget * n_train < 2**53:
        raise UserError(f"--budget {budget:g}: at most {2**53 / n_train:.3g} epochs of {n_train} examples.")
    tau = max(1, round(budget * n_train))
    training = train(chosen, dataset, tau, on)
    with Display(Console(), n_train) as display:
        for evaluation in training:
            display.show(evaluation, last=training.outcome != "running")
    why = explain(training, display.evaluations, dataset, lambda: train(chosen, dataset, tau, on))
    if training.outcome == "diverged":
        raise FailureError(f"The training diverged: its loss became NaN or infinite. In detail: {why}")
    scores = training.evaluate(dataset.test)
    ended = {name: value for name, value in asdict(display.evaluations[-1]).items() if name in KEPT_METRICS}
    save_model(out, training, dataset, metrics=ended | {"test_loss": scores.loss})
    write_picture(picture, load_model(out), dataset.test, display.evaluations)
    bits = (
        f", {bits_per_dim(scores.loss, dataset.size):.4f} bits per dim" if training.likelihood.levels else ""
    )
    print(f"{training.outcome}; test {scores.loss:.3f} nats per example{bits}; model: {out}")
    print(f"curve, reconstructions and samples: {picture}")
    if why:
        typer.echo(f"Note: the training {training.outcome}: {why}", err=True)


@app.command()
def evaluate(
    model: Model,
    data: OtherData = None,
    split: OfSplit = "test",
    k: Annotated[int, typer.Option("--k", min=1, help="Importance samples of the IWAE bound.")] = 64,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Images to look at, at most.")] = 2_000,
    data_dir: DataDir = None,
    seed: SplitSeed = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """ELBO, rate, distortion and the IWAE bound of a model."""
    from vae import use

    trained = load_on(model, device)
    part = split_of(trained, data, split, data_dir, seed)
    n = min(len(part), limit)
    found = use.evaluate(trained, part, k=k, limit=limit, through=lambda batches: progress(batches, n))
    scores = found.scores
    print(
        f"{found.n} images of {split}: negative ELBO {scores.loss:.3f} nats "
        f"(rate {scores.rate:.3f} + {scores.distortion:.3f})"
    )
    print(f"IWAE bound, k = {k}: {found.iwae:.3f} nats, {found.bits_per_dim:.4f} bits per dim")
    if not found.is_likelihood:
        print(
            f"{trained.recipe.likelihood} on pixels between black and white is no likelihood: compare these "
            "figures with its own kind only."
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
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Compress images to their posterior: an .npz with mean, log_var, z (drawn with the noise of `evaluate`), rows
    (where in its file each image stands) and, if known, labels. A file named by --data is encoded whole, in its
    order."""
    from vae import use
    from vae.data.dataset import load_whole
    from vae.data.sources import NAMES
    from vae.files import require_writable

    trained = load_on(model, device)
    require_writable(out)
    chosen = split or ("all" if data is not None and data not in NAMES else "test")
    require_one_of(chosen, (*use.SPLITS, "all"))
    if chosen == "all":
        source = data or data_of(trained, None, data_dir, seed).source
        part, shape = load_whole(source, likelihood=trained.recipe.likelihood, data_dir=data_dir)
        if shape != trained.shape:
            raise UserError(f"The model takes images of shape {trained.shape}; {source} has {shape}.")
    else:
        part = split_of(trained, data, chosen, data_dir, seed)
    size = trained.recipe.latent_size
    batches = progress(use.encoded_batches(trained, part), len(part), lambda batch: len(batch.mean))
    use.write_codes(out, part, size, batches)
    print(f"{len(part)} {in_words(trained.shape)} -> {size} numbers each: {out}")


@app.command()
def decode(
    model: Model,
    codes: Annotated[Path, typer.Argument(help="From encode, or .npy (N, latent).")],
    out: Out,
    drawn: Annotated[
        bool, typer.Option("--drawn", help="Of an .npz, decode z, the codes drawn, and not their means.")
    ] = False,
    parameters: Annotated[
        bool,
        typer.Option(
            "--parameters", help="An .npy (N, P * D) of the numbers that the likelihood takes, not of pixels."
        ),
    ] = False,
    shape: Shape = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Images from codes: the expected pixels, an .npy (N, ...) of float32 or a .png sheet."""
    from vae import use
    from vae.files import require_writable
    from vae.likelihoods import likelihood

    trained = load_on(model, device)
    z = use.read_codes(codes, trained.recipe.latent_size, "z" if drawn else "mean")
    batches = use.decoded_batches(trained, z, parameters)
    if not parameters:
        shown = write_images(out, trained, batches, len(z), shape)
        print(f"{len(z)} images of shape {shown}: {out}")
        return
    if out.suffix != ".npy":
        raise UserError(f"--out {out}: --parameters are no pixels; end it with .npy.")
    require_writable(out)
    size = math.prod(trained.shape) * likelihood(trained.recipe.likelihood).parameters_per_pixel
    write_array(out, progress(batches, len(z)), (len(z), size))
    print(f"{len(z)} x {size} parameters of {trained.recipe.likelihood}: {out}")


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
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Generate new images from the prior: a .png sheet or an .npy array."""
    from vae import use

    if not -(2**63) <= seed < 2**64:
        raise UserError(f"--seed {seed}: a whole number of 64 bits, for example one from 0 to 2^64 - 1.")
    trained = load_on(model, device)
    shown = write_images(out, trained, use.draws(trained, n, seed, pixels), n, shape)
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

    trained = load_on(model, "cpu")
    of = require_discrete(trained)
    require_writable(out)
    chosen = split or ("test" if images in NAMES else "all")
    require_one_of(chosen, ("train", "valid", "test", "all"))
    if chosen == "all":
        part, shape = load_whole(images, likelihood=of.name, data_dir=data_dir)
        if shape != trained.shape:
            raise UserError(f"The model takes images of shape {trained.shape}; {images} has {shape}.")
    else:
        part = split_of(trained, images, chosen, data_dir, None)
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
            f"Note: {images} has pixels between black and white; of them the 0 and 255 that {of.name} makes is kept.",
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

    trained = load_on(model, "cpu")
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


for command in (look.reconstruct, look.traverse, look.interpolate, look.info):
    app.command()(command)


def main() -> NoReturn:
    """Run the command line (see `vae.command.run`)."""
    run(app)


if __name__ == "__main__":
    main()
