"""A trained model at work: judged, encoding images to codes, decoding codes to images, sampling."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from vae import code
from vae.checkpoint import TrainedModel
from vae.code import is_reference
from vae.data.dataset import Dataset, Split, load
from vae.data.sources import NAMES
from vae.elbo import Model, iwae_bound
from vae.errors import UserError
from vae.evaluation import Scores, bits_per_dim, evaluation_generator, evaluation_inputs, scores
from vae.likelihoods import likelihood

#: Images or codes that go through a model at a time.
BATCH = 1_000
#: Codes that are drawn at a time: samples beyond are drawn anew, so that their number needs no memory.
DRAWN_AT_ONCE = 2**20
#: Parts of a data set.
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Judgement:
    """What a model is worth on some images: nats per example, lower is better."""

    n: int
    """Images looked at."""
    scores: Scores
    iwae: float
    """-IWAE_k, a tighter bound than `scores.loss` (Burda et al. 2016, eq. 8)."""
    bits_per_dim: float
    """The same in bits per pixel."""
    is_likelihood: bool
    """False for grey-pixel cross-entropy: its figures compare with their own kind only."""


def evaluate(trained: TrainedModel, split: Split, *, k: int = 64, limit: int | None = 2_000) -> Judgement:
    """Negative ELBO and IWAE bound of a model on the first `limit` images of a split: `load("digits").test`.

    The noise is that of every evaluation, so two models are judged by the same. Raises UserError for k < 1 and
    for images of another size than the model's."""
    of, model = likelihood(trained.recipe.likelihood), cast(Model, trained.model)
    _require_size(trained, split.base.shape[1])
    generator = evaluation_generator()
    x, noise = evaluation_inputs(of, trained.recipe.latent_size, split.all(limit), generator)
    found = scores(model, of, x, noise)
    bound = sum(float(iwae_bound(model, of, part, k, generator).sum()) for part in torch.split(x, BATCH))
    iwae = -bound / len(x)
    return Judgement(len(x), found, iwae, bits_per_dim(iwae, x.shape[1]), of.is_likelihood)


def negative_elbo(trained: TrainedModel, split: Split) -> float:
    """The mean negative ELBO of a split, nats per example, by one sample of the evaluation's noise; read a batch at a
    time."""
    of, generator, total = likelihood(trained.recipe.likelihood), evaluation_generator(), 0.0
    for index in torch.split(torch.arange(len(split)), BATCH):
        inputs = evaluation_inputs(of, trained.recipe.latent_size, split.batch(index), generator)
        total += scores(cast(Model, trained.model), of, *inputs).loss * len(index)
    return total / len(split)


def is_black_and_white(split: Split) -> bool:
    """Whether no pixel of a split is grey."""
    parts = (split.batch(index) for index in torch.split(torch.arange(len(split)), BATCH))
    return all(bool(((x == 0) | (x == 1)).all()) for x in parts)


def encoded(trained: TrainedModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior means and log variances (n, L), float32, of prepared images (n, D)."""
    with torch.inference_mode():
        parts = [cast(Model, trained.model).encode(part) for part in torch.split(x, BATCH)]
    return torch.cat([mean for mean, _ in parts]).float(), torch.cat(
        [log_var for _, log_var in parts]
    ).float()


def decoded(trained: TrainedModel, z: Tensor) -> Tensor:
    """Expected pixels (n, D) of codes (n, L), float32."""
    of, model = likelihood(trained.recipe.likelihood), cast(Model, trained.model)
    with torch.inference_mode():
        return torch.cat([of.mean(model.decode(part)).float() for part in torch.split(z, BATCH)])


def codes_of(trained: TrainedModel, split: Split) -> dict[str, Any]:
    """A split's mean and log_var (n, L), `rows` (n,), where in its file each example stands, and its labels (n,)
    if it has any; the images are read a batch at a time. Raises UserError for another size than the model's."""
    _require_size(trained, split.base.shape[1])
    of, generator = likelihood(trained.recipe.likelihood), evaluation_generator()
    batches = torch.split(torch.arange(len(split)), BATCH)
    parts = [encoded(trained, of.prepare_eval(split.batch(index), generator)) for index in batches]
    codes = {
        "mean": torch.cat([mean for mean, _ in parts]).numpy(),
        "log_var": torch.cat([log_var for _, log_var in parts]).numpy(),
        "rows": split.numbers.numpy(),
    }
    return codes if split.labels is None else codes | {"labels": split.labels.numpy()}


def draws(trained: TrainedModel, n: int, seed: int, pixels: bool = False) -> Iterator[np.ndarray[Any, Any]]:
    """Expected pixels (B, D) of n draws from the prior, batch by batch; the same for the same seed. pixels: draw the
    pixels from p(x|z) too, in place of what is expected of them."""
    generator = torch.Generator().manual_seed(seed)
    of, model = likelihood(trained.recipe.likelihood), cast(Model, trained.model)
    for start in range(0, n, DRAWN_AT_ONCE):
        z = torch.randn(min(DRAWN_AT_ONCE, n - start), trained.recipe.latent_size, generator=generator)
        if not pixels:
            yield from decoded_batches(trained, z)
            continue
        for part in torch.split(z, BATCH):
            with torch.inference_mode():
                drawn = of.sample(model.decode(part), generator)
            yield drawn.float().numpy()


def decoded_batches(trained: TrainedModel, z: Tensor) -> Iterator[np.ndarray[Any, Any]]:
    """Expected pixels (B, D) of codes (n, L), batch by batch."""
    for part in torch.split(z, BATCH):
        yield decoded(trained, part).numpy()


def training_data(trained: TrainedModel, data_dir: Path | None, seed: int | None) -> Dataset:
    """The data that the model was trained on, split as it was then.

    A file is looked for where it was, then by its name in `data_dir`. seed: for a model file of before, which
    doesn't say how its data was split; default 0. Raises UserError where it is not there or not the same, and for
    another seed than the training's, which would judge the model by images that it was trained on.
    """
    source = trained.data_source or trained.data_name
    if is_reference(source):
        dataset = same_split(trained, _code_again(trained, source), data_dir, seed)
        if not is_training_data(trained, dataset):
            raise UserError(f"{source} gives other data than the model was trained on: name that by --data.")
        return dataset
    if source not in NAMES and trained.data_source is None:
        raise UserError(
            f"The model was trained on a file called '{source}' and, being of an earlier version, doesn't say "
            "where that is: name it by --data."
        )
    if source not in NAMES and not Path(source).exists():
        moved = None if data_dir is None else data_dir / Path(source).name
        if moved is None or not moved.exists():
            raise UserError(
                f"The model was trained on {source}, which is not there: bring it back, or name it by --data."
            )
        source = str(moved)
    dataset = same_split(trained, source, data_dir, seed)
    if trained.split_seed is not None and not is_training_data(trained, dataset):
        raise UserError(
            f"{source} is not what the model was trained on any more: bring that back, or name this by --data {source}."
        )
    return dataset


def _code_again(trained: TrainedModel, source: str) -> str:
    """The code that made the data, with the SHA-256 that it had. Raises UserError for any other."""
    then = next((own for own in trained.sources if source in (own.reference, own.absolute)), None)
    if then is None:
        raise UserError(
            f"The model was trained on what {source} gives, but doesn't say which: name it by --data."
        )
    return code.find_again(then.reference, str(then.path), then.sha256).absolute


def same_split(trained: TrainedModel, source: str, data_dir: Path | None, seed: int | None) -> Dataset:
    """The data of that name or path, split as the model's training split it if it is the same data, and by `seed`
    if it is other data than the model's (`is_training_data`). Raises UserError as `training_data` does."""

    def split_by(chosen: int) -> Dataset:
        of = trained.recipe.likelihood
        dataset = load(source, seed=chosen, likelihood=of, data_dir=data_dir)
        if dataset.shape != trained.shape:
            raise UserError(f"The model takes images of shape {trained.shape}; {source} has {dataset.shape}.")
        return dataset

    asked = 0 if seed is None else seed
    if trained.split_seed is None:
        return split_by(asked)
    dataset = split_by(trained.split_seed)
    if seed is None or seed == trained.split_seed:
        return dataset
    if is_training_data(trained, dataset):
        raise UserError(
            f"--seed {seed} splits {source} otherwise than this model's training did (seed {trained.split_seed}), "
            "so that the model was trained on most of its test images: leave --seed away."
        )
    return split_by(asked)


def is_training_data(trained: TrainedModel, dataset: Dataset) -> bool:
    """Whether it is what the model was trained on, and split in the same way."""
    return dataset.fingerprint == trained.data_fingerprint


def read_codes(path: Path, latent_size: int) -> Tensor:
    """Codes (N, L), float32, from an .npz of `encode` or an .npy. Raises UserError."""
    try:
        with path.open("rb") as file:
            array = _array_of(file, path)
    except (OSError, EOFError, KeyError, ValueError, NotImplementedError, RuntimeError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _no_codes(path, reason) from None
    except (zipfile.BadZipFile, zlib.error):
        raise _no_codes(path, "it is a damaged .npz file") from None
    if array.ndim != 2 or array.shape[1] != latent_size or array.dtype.kind not in "fiu":
        raise UserError(
            f"{path} has {array.dtype} of shape {array.shape}; this model's codes are numbers of shape "
            f"(N, {latent_size})."
        )
    codes = np.ascontiguousarray(array, dtype=np.float32)
    if not len(codes) or not np.isfinite(codes).all():
        found = "NaN, infinite or too large numbers" if len(codes) else "no code"
        raise UserError(f"{path} has {found} in it; this model's codes are finite, at least one.")
    return torch.from_numpy(codes)


def _array_of(file: IO[bytes], path: Path) -> np.ndarray[Any, Any]:
    magic = file.read(6)
    file.seek(0)
    if magic[:4] == b"PK\x03\x04":
        with np.load(file, allow_pickle=False) as archive:
            return cast("np.ndarray[Any, Any]", archive["mean"])
    if magic != np.lib.format.MAGIC_PREFIX:
        raise ValueError("it is no .npz and no .npy")
    # Mapped, a header that promises more than the file has is refused before any memory is taken.
    return cast("np.ndarray[Any, Any]", np.load(path, mmap_mode="r", allow_pickle=False))


def _no_codes(path: Path, reason: str) -> UserError:
    line = " ".join(reason.split()) or "it can't be read"
    return UserError(f"{path} holds no codes ({line}): give an .npz of `encode` or an .npy.")


def _require_size(trained: TrainedModel, size: int) -> None:
    if size != math.prod(trained.shape):
        raise UserError(
            f"The model takes images of shape {trained.shape}, {math.prod(trained.shape)} pixels, not {size}."
        )
