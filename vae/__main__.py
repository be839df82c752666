"""`python -m vae`: train one recipe, then evaluate it, compress with it and generate from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import torch
import typer

from vae.checkpoint import TrainedModel, load_model, save_model
from vae.command import command_line, run
from vae.data.checks import scaling_hint
from vae.data.dataset import Dataset, load
from vae.devices import pick_device
from vae.elbo import iwae_bound
from vae.errors import FailureError, UserError
from vae.evaluation import EVALUATION_SEED, evaluation_generator, evaluation_inputs, scores
from vae.likelihoods import likelihood
from vae.model.mlp import VAE
from vae.recipe import Recipe, parse_value
from vae.training import train

app = command_line("vae", "Train one recipe, then evaluate it, compress with it and generate from it.")

Data = Annotated[str, typer.Option("--data", metavar="NAME|PATH", help="Data set or .npy/.npz file.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder that is searched for data first.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors file of this project.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed.")]
Out = Annotated[Path, typer.Option("--out", help="File to write.")]
Part = Annotated[str, typer.Option("--split", help="train, valid or test.")]

BATCH = 1_000


@app.command("train")
def train_command(
    out: Out,
    data: Data = "digits",
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Recipe as TOML or JSON.")] = None,
    fix: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Recipe field.")
    ] = None,
    budget: Annotated[float, typer.Option("--budget", min=0.0, help="Epochs.")] = 10.0,
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    seed: Seed = 0,
) -> None:
    """Train one recipe on one data set and write the model."""
    on = pick_device(device)
    chosen = Recipe.load(recipe) if recipe else Recipe()
    for assignment in fix or []:
        field, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: write FIELD=VALUE, for example --set lr=3e-4.")
        chosen = chosen.replace(**{field: parse_value(field, text)})
    dataset = load(data, seed=seed, likelihood=chosen.likelihood, data_dir=data_dir)
    tau = max(1, round(budget * len(dataset.train)))
    training = train(chosen, dataset, tau, on)
    last = -10
    for evaluation in training:
        if evaluation.number - last >= 10 or training.outcome != "running":
            last = evaluation.number
            print(
                f"epoch {evaluation.examples / len(dataset.train):7.2f}  valid {evaluation.valid_loss:9.3f}  "
                f"rate {evaluation.rate:7.3f}  distortion {evaluation.distortion:9.3f}  "
                f"active units {evaluation.active_units:3d}  {evaluation.train_seconds:7.1f} s",
                flush=True,
            )
    if training.outcome == "diverged":
        raise FailureError(
            "The training diverged: its loss became NaN or infinite. "
            + (scaling_hint(dataset.pixel_moments()) or "Try a smaller lr, or clip_norm.")
        )
    scores = training.evaluate(dataset.test)
    save_model(out, training, dataset)
    typer.echo(f"{training.outcome}; test {scores.loss:.3f} nats per example; model: {out}")


@app.command()
def evaluate(
    model: Model,
    data: Annotated[
        str | None, typer.Option("--data", help="Default: what the model was trained on.")
    ] = None,
    split: Part = "test",
    k: Annotated[int, typer.Option("--k", min=1, help="Importance samples of the IWAE bound.")] = 64,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Images to look at, at most.")] = 2_000,
    data_dir: DataDir = None,
    seed: Seed = 0,
) -> None:
    """ELBO, rate, distortion and the IWAE bound of a model."""
    trained = load_model(model)
    x, _ = _images(trained, data, split, data_dir, seed, limit)
    kind = likelihood(trained.recipe.likelihood)
    generator = evaluation_generator()
    x, noise = evaluation_inputs(kind, trained.recipe.latent_size, x, generator)
    found = scores(_vae(trained), kind, x, noise)
    with torch.inference_mode():
        parts = torch.split(x, BATCH)
        bound = sum(float(iwae_bound(_vae(trained), kind, part, k, generator).sum()) for part in parts)
    n = len(x)
    typer.echo(
        f"{n} images of {split}: negative ELBO {found.loss:.3f} nats "
        f"(rate {found.rate:.3f} + {found.distortion:.3f})"
    )
    typer.echo(
        f"IWAE bound, k = {k}: {-bound / n:.3f} nats, {-bound / n / x.shape[1] / math.log(2):.4f} bits per dim"
    )
    if not kind.is_likelihood:
        typer.echo(
            f"{kind.name} on grey pixels is no likelihood: compare these figures with its own kind only."
        )


@app.command()
def encode(
    model: Model,
    out: Out,
    data: Annotated[
        str | None, typer.Option("--data", help="Default: what the model was trained on.")
    ] = None,
    split: Part = "test",
    data_dir: DataDir = None,
    seed: Seed = 0,
) -> None:
    """Compress images to posterior means and log variances: an .npz with mean, log_var and, if known, labels."""
    trained = load_model(model)
    x, labels = _images(trained, data, split, data_dir, seed, None)
    kind = likelihood(trained.recipe.likelihood)
    x = kind.prepare_eval(x, torch.Generator().manual_seed(EVALUATION_SEED))
    with torch.inference_mode():
        parts = [_vae(trained).encode(part) for part in torch.split(x, BATCH)]
    arrays = {
        "mean": _numpy([mean for mean, _ in parts]),
        "log_var": _numpy([log_var for _, log_var in parts]),
    }
    if labels is not None:
        arrays["labels"] = labels.numpy()
    _write_npz(out, arrays)
    typer.echo(f"{len(x)} images of {x.shape[1]} pixels -> {arrays['mean'].shape[1]} numbers each: {out}")


@app.command()
def decode(
    model: Model, codes: Annotated[Path, typer.Argument(help="From encode, or .npy (N, latent).")], out: Out
) -> None:
    """Images from codes: the expected pixels as .npy (N, ...), float32 in [0, 1]."""
    trained = load_model(model)
    z = _read_codes(codes, trained.recipe.latent_size)
    images = _decode(trained, z)
    np.save(out, images)
    typer.echo(f"{len(images)} images of shape {images.shape[1:]}: {out}")


@app.command()
def sample(
    model: Model,
    out: Out,
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")] = 64,
    seed: Seed = 0,
) -> None:
    """Generate new images from the prior: a .png sheet or an .npy array of expected pixels."""
    trained = load_model(model)
    z = torch.randn(n, trained.recipe.latent_size, generator=torch.Generator().manual_seed(seed))
    images = _decode(trained, z)
    if out.suffix == ".npy":
        np.save(out, images)
    elif out.suffix == ".png":
        _sheet(images, out)
    else:
        raise UserError(f"--out {out}: end it with .png or .npy.")
    typer.echo(f"{n} samples of shape {images.shape[1:]}: {out}")


def _vae(trained: TrainedModel) -> VAE:
    assert isinstance(trained.model, VAE)
    return trained.model


def _images(
    trained: TrainedModel, source: str | None, split: str, data_dir: Path | None, seed: int, limit: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images (n, D) of a split and their labels. Raises UserError where they don't fit the model."""
    name = source or trained.data_name
    dataset: Dataset = load(name, seed=seed, likelihood=trained.recipe.likelihood, data_dir=data_dir)
    if split not in ("train", "valid", "test"):
        raise UserError(f"--split {split}: choose train, valid or test.")
    if dataset.shape != trained.shape:
        raise UserError(f"The model takes images of shape {trained.shape}; {name} has {dataset.shape}.")
    part = getattr(dataset, split)
    labels = part.labels[:limit] if part.labels is not None else None
    return part.all(limit), labels


def _read_codes(path: Path, latent_size: int) -> torch.Tensor:
    try:
        loaded: Any = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            array = loaded
        else:  # a file of several arrays, read as they are asked for
            with loaded:
                array = loaded["mean"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} holds no codes ({error}): give an .npz of `encode` or an .npy.") from None
    if array.ndim != 2 or array.shape[1] != latent_size or not np.isfinite(array).all():
        raise UserError(
            f"{path} has shape {array.shape}; this model's codes are finite numbers of shape (N, {latent_size})."
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _decode(trained: TrainedModel, z: torch.Tensor) -> np.ndarray[Any, Any]:
    kind = likelihood(trained.recipe.likelihood)
    with torch.inference_mode():
        images = _numpy([kind.mean(_vae(trained).decode(part)) for part in torch.split(z, BATCH)])
    return images.reshape(len(z), *trained.shape)


def _numpy(parts: list[torch.Tensor]) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = torch.cat(parts).numpy().astype(np.float32)
    return array


def _write_npz(path: Path, arrays: dict[str, Any]) -> None:
    try:
        with path.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise FailureError(f"{path} can't be written: {error.strerror}") from None


def _sheet(images: np.ndarray[Any, Any], path: Path) -> None:
    """A square sheet of grey images."""
    from PIL import Image

    if images.ndim == 2:
        raise UserError("These examples are vectors, not images: use --out samples.npy.")
    flat = images.reshape(len(images), images.shape[1], -1).clip(0.0, 1.0)
    columns = math.ceil(math.sqrt(len(flat)))
    rows = math.ceil(len(flat) / columns)
    height, width = flat.shape[1:]
    sheet = np.zeros((rows * height, columns * width), dtype=np.uint8)
    for i, image in enumerate(flat):
        top, left = divmod(i, columns)
        sheet[top * height : (top + 1) * height, left * width : (left + 1) * width] = np.round(image * 255)
    scale = max(1, 400 // sheet.shape[1])
    Image.fromarray(sheet).resize(
        (sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.NEAREST
    ).save(path)


def main() -> NoReturn:
    """Run the command line (see `vae.command.run`)."""
    run(app)


if __name__ == "__main__":
    main()
