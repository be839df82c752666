"""A trained model at work: judged, encoding images to codes, decoding codes to images, sampling."""

from __future__ import annotations

import math
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

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
from vae.evaluation import (
    EVALUATION_BATCH,
    EVALUATION_SEED,
    Scores,
    bits_per_dim,
    evaluation_generator,
    evaluation_inputs,
    scores,
)
from vae.files import write_whole
from vae.gaussian import reparameterise
from vae.likelihoods import likelihood

#: Images whose bound is computed at a time.
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


def evaluate(
    trained: TrainedModel,
    split: Split,
    *,
    k: int = 64,
    limit: int | None = 2_000,
    through: Callable[[Iterable[Tensor]], Iterable[Tensor]] = iter,
) -> Judgement:
    """Negative ELBO and IWAE bound of a model on the first `limit` images of a split: `load("digits").test`.

    The noise is that of every evaluation, so two models are judged by the same. through: gives the batches of images
    whose bound is computed back one by one, for whoever shows how far it is. Raises UserError for k < 1 and
    for images of another size than the model's."""
    of, model = likelihood(trained.recipe.likelihood), cast(Model, trained.model)
    _require_size(trained, split.base.shape[1])
    generator = evaluation_generator()
    x, noise = evaluation_inputs(of, trained.recipe.latent_size, split.all(limit), generator)
    on = trained.device
    x, noise = x.to(on), noise.to(on)
    found = scores(model, of, x, noise)
    if on.type != "cpu":  # a generator draws where it is
        generator = torch.Generator(on).manual_seed(EVALUATION_SEED)
    bound = sum(
        float(iwae_bound(model, of, part, k, generator).sum()) for part in through(torch.split(x, BATCH))
    )
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
    """Posterior means and log variances (n, L), float32 on the CPU, of prepared images (n, D)."""
    with torch.inference_mode():
        pairs = [
            cast(Model, trained.model).encode(part.to(trained.device))
            for part in torch.split(x, EVALUATION_BATCH)
        ]
    mean, log_var = (torch.cat([pair[i].cpu() for pair in pairs]).float() for i in (0, 1))
    return mean, log_var


def decoded(trained: TrainedModel, z: Tensor) -> Tensor:
    """Expected pixels (n, D) of codes (n, L), float32 on the CPU."""
    return torch.cat([torch.from_numpy(part) for part in decoded_batches(trained, z)])


class Codes(NamedTuple):
    """What a split's images are encoded to, a batch."""

    mean: Tensor  # (B, L)
    log_var: Tensor  # (B, L)
    z: Tensor  # (B, L), drawn from q(z|x) with the noise that every evaluation has


def encoded_batches(trained: TrainedModel, split: Split) -> Iterator[Codes]:
    """The codes of a split's images, which are read a batch at a time; decoded, their z has exactly the distortion that
    `evaluate` finds for all of them. Raises UserError for another size than the model's."""
    _require_size(trained, split.base.shape[1])
    of, generator = likelihood(trained.recipe.likelihood), evaluation_generator()
    noise = torch.randn(len(split), trained.recipe.latent_size, generator=generator)
    for index in torch.split(torch.arange(len(split)), EVALUATION_BATCH):
        mean, log_var = encoded(trained, of.prepare_eval(split.batch(index), generator))
        yield Codes(mean, log_var, reparameterise(mean, log_var, noise[index]))


def write_codes(path: Path, split: Split, latent_size: int, batches: Iterable[Codes]) -> None:
    """An .npz of the codes of a split: mean, log_var and z (n, L), `rows` (n,), where in its source each example
    stands, and its labels (n,) if it has any. What it is made of lies beside it, not in memory."""

    def write(temporary: Path) -> None:
        with tempfile.TemporaryDirectory(dir=temporary.parent, prefix=".codes-") as folder:
            parts = {name: Path(folder, f"{name}.npy") for name in Codes._fields}
            shape = (len(split), latent_size)
            maps = [np.lib.format.open_memmap(part, "w+", np.dtype("<f4"), shape) for part in parts.values()]
            start = 0
            for batch in batches:
                stop = start + len(batch.mean)
                for target, values in zip(maps, batch, strict=True):
                    target[start:stop] = values.numpy()
                start = stop
            for target in maps:
                target.flush()
            with zipfile.ZipFile(temporary, "w") as archive:
                for name, part in parts.items():
                    archive.write(part, f"{name}.npy")
                whole_numbers = {"rows": split.numbers, "labels": split.labels}
                for name, numbers in whole_numbers.items():
                    if numbers is not None:
                        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                            np.lib.format.write_array(file, numbers.cpu().numpy(), allow_pickle=False)

    write_whole(path, write)


def codes_at(trained: TrainedModel, split: Split, numbers: Sequence[int]) -> Tensor:
    """Posterior means (n, L) of the images of a split at these numbers. Raises UserError for another size than the
    model's."""
    _require_size(trained, split.base.shape[1])
    of = likelihood(trained.recipe.likelihood)
    mean, _ = encoded(trained, of.prepare_eval(split.batch(torch.tensor(numbers)), evaluation_generator()))
    return mean


def reconstructed(trained: TrainedModel, split: Split, index: Tensor) -> np.ndarray[Any, Any]:
    """Expected pixels (n, D) at the posterior means of the images at index (n,)."""
    return decoded(trained, codes_at(trained, split, index.tolist())).numpy()


def walked(start: Tensor, dimensions: Sequence[int], steps: int, span: float) -> Tensor:
    """Codes (len(dimensions) * steps, L): each dimension in turn from -span to span, the others at start (L,)."""
    z = start.repeat(len(dimensions), steps, 1)
    for row, dimension in enumerate(dimensions):
        z[row, :, dimension] = torch.linspace(-span, span, steps)
    return z.flatten(0, 1)


def between(a: Tensor, b: Tensor, steps: int, spherical: bool = False) -> Tensor:
    """Codes (steps, L) from a to b, (L,) each, both included: on a line, or spherical, along the arc between them
    (White 2016, "Sampling Generative Networks", sec. 2.1), whose length goes evenly from one to the other."""
    t = torch.linspace(0.0, 1.0, steps)[:, None]
    line = torch.lerp(a, b, t)
    if not spherical:
        return line
    lengths = a.norm(), b.norm()
    cosine = (a @ b / (lengths[0] * lengths[1]).clamp(min=1e-12)).clamp(-1.0, 1.0)
    angle = torch.acos(cosine)
    if float(angle.sin()) < 1e-4:  # one direction or opposite ones: no arc, or none before all others
        return line
    direction = (
        torch.sin((1 - t) * angle) * a / lengths[0] + torch.sin(t * angle) * b / lengths[1]
    ) / angle.sin()
    found: Tensor = direction * torch.lerp(lengths[0], lengths[1], t)
    found[0], found[-1] = a, b
    return found


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
        for part in torch.split(z, EVALUATION_BATCH):
            with torch.inference_mode():
                drawn = of.sample(model.decode(part.to(trained.device)).cpu(), generator)
            yield drawn.float().numpy()


def decoded_batches(
    trained: TrainedModel, z: Tensor, parameters: bool = False
) -> Iterator[np.ndarray[Any, Any]]:
    """Expected pixels (B, D) of codes (n, L), batch by batch, float32. parameters: the numbers (B, P * D) that the
    likelihood takes in place of what they say is to be expected."""
    of, model = likelihood(trained.recipe.likelihood), cast(Model, trained.model)
    for part in torch.split(z, EVALUATION_BATCH):
        with torch.inference_mode():
            found = model.decode(part.to(trained.device))
            found = found if parameters else of.mean(found)
        yield found.float().cpu().numpy()


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


def read_codes(path: Path, latent_size: int, key: str = "mean") -> Tensor:
    """Codes (N, L), float32, from an .npz of `encode`, there under that key, or from an .npy, which is mapped. Raises
    UserError."""
    try:
        with path.open("rb") as file:
            array = _array_of(file, path, key)
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
    chunks = range(0, len(codes), DRAWN_AT_ONCE)
    if not len(codes) or not all(np.isfinite(codes[i : i + DRAWN_AT_ONCE]).all() for i in chunks):
        found = "NaN, infinite or too large numbers" if len(codes) else "no code"
        raise UserError(f"{path} has {found} in it; this model's codes are finite, at least one.")
    return torch.from_numpy(codes)


def _array_of(file: IO[bytes], path: Path, key: str) -> np.ndarray[Any, Any]:
    magic = file.read(6)
    file.seek(0)
    if magic[:4] == b"PK\x03\x04":
        with np.load(file, allow_pickle=False) as archive:
            return cast("np.ndarray[Any, Any]", archive[key])
    if magic != np.lib.format.MAGIC_PREFIX:
        raise ValueError("it is no .npz and no .npy")
    # Mapped, a header that promises more than the file has is refused before any memory is taken.
    # Copy-on-write, as torch has no tensors that can't be written; nothing is.
    return cast("np.ndarray[Any, Any]", np.load(path, mmap_mode="c", allow_pickle=False))


def _no_codes(path: Path, reason: str) -> UserError:
    line = " ".join(reason.split()) or "it can't be read"
    return UserError(f"{path} holds no codes ({line}): give an .npz of `encode` or an .npy.")


def _require_size(trained: TrainedModel, size: int) -> None:
    if size != math.prod(trained.shape):
        raise UserError(
            f"The model takes images of shape {trained.shape}, {math.prod(trained.shape)} pixels, not {size}."
        )
