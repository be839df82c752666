"""A data set as three splits of pixels, ready to be drawn from in batches, and a fingerprint of it all."""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from vae.code import Source, is_reference
from vae.data import sources
from vae.data.bring import made
from vae.data.checks import Survey
from vae.data.sources import Array
from vae.errors import UserError
from vae.likelihoods import Likelihood, PixelMoments
from vae.likelihoods import likelihood as known_likelihood

#: What is read, checked, hashed or moved at a time, so that a memory map never becomes a copy in memory.
CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Split:
    """The training, validation or test examples: rows of stored pixels, made float32 batch by batch.

    base: (N, D) stored values, uint8 or float. Of a source up to 256 MiB it holds this split's rows alone;
    beyond, it is a memory map of the whole file (copy-on-write: the file can't change) that the splits share.
    rows: (n,) int64, which rows of base belong to the split, in the split's order.
    labels: (n,) int64, or None.
    scale: stored value / scale = pixel.
    source_rows: (n,) int64 on the CPU, which rows of the source these are; None where it is `rows`.
    """

    base: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor | None
    scale: float
    source_rows: torch.Tensor | None = None

    @property
    def numbers(self) -> torch.Tensor:
        """Which rows of the source the examples are, (n,) int64 on the CPU."""
        return self.rows.cpu() if self.source_rows is None else self.source_rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: torch.Tensor, device: torch.device | str | None = None) -> torch.Tensor:
        """The pixels (B, D) float32 of the examples at index (B,) int64, 0 <= index < len(self).

        device: where the batch is wanted; default: where the split is. Raises IndexError (CPU).
        """
        rows = self.rows.index_select(0, index.to(self.rows.device))
        stored = self.base.index_select(0, rows)
        if device is not None:
            stored = stored.to(device)  # before the conversion: a uint8 is a quarter of a float
        pixels = stored.to(torch.float32)
        # index_select made a copy, so dividing in place never touches base.
        return pixels if self.scale == 1.0 else pixels.div_(self.scale)

    def all(self, limit: int | None = None) -> torch.Tensor:
        """The first `limit` examples (all without a limit) as (B, D) float32, where the split is."""
        n = len(self) if limit is None else min(limit, len(self))
        return self.batch(torch.arange(n, device=self.rows.device))

    def stored(self) -> Iterator[torch.Tensor]:
        """The stored values of all examples, (B, D) a piece, where the split is."""
        return (self.base.index_select(0, self.rows[rows]) for rows in self._chunks())

    def to(self, device: torch.device | str) -> Split:
        """The split with its stored values on the device, compacted to its rows: uint8 stays uint8, float64
        becomes float32, which a batch is in any case. A split that is there already is returned as it is:
        nothing is copied out of a memory map on the CPU."""
        device = torch.device(device)
        if device.type == self.base.device.type and device.index in (None, self.base.device.index):
            return self
        dtype = torch.float32 if self.base.dtype == torch.float64 else self.base.dtype
        base = torch.empty((len(self), self.base.shape[1]), dtype=dtype, device=device)
        for rows in self._chunks():
            base[rows] = self.base.index_select(0, self.rows[rows]).to(dtype).to(device)
        labels = None if self.labels is None else self.labels.to(device)
        return Split(base, torch.arange(len(self), device=device), labels, self.scale, self.numbers)

    def _chunks(self) -> Iterator[slice]:
        step = max(1, CHUNK_BYTES // max(1, self.base.shape[1] * self.base.element_size()))
        return (slice(start, start + step) for start in range(0, len(self), step))


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits of one source. shape: of one example, e.g. (28, 28); `size` is its product D.

    fingerprint: SHA-256 (hex) of the images' dtype, shape and bytes, the labels, the scale and the rows of
    each split. Equal fingerprints: the same pixels are trained on, and the same are evaluated on.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    shape: tuple[int, ...]
    fingerprint: str
    source: str = ""
    """What `load` finds it by: the name of a set, or a file's absolute path."""
    seed: int | None = None
    """The seed of the split; None where no seed made it."""
    content: str = ""
    """SHA-256 (hex) of what the fingerprint is of, but for the rows: equal for all splits of one source."""
    code: Source | None = None
    """What of the user's own made the data."""

    @property
    def size(self) -> int:
        """D, the number of pixels of one example."""
        return self.train.base.shape[1]

    def pixel_moments(self) -> PixelMoments:
        """Mean and variance of each training pixel, (D,) float32 on the CPU; summed in float64 once and kept."""
        mean, variance = self._pixel_moments
        return PixelMoments(mean.clone(), variance.clone())

    @cached_property
    def _pixel_moments(self) -> PixelMoments:
        n = len(self.train)
        mean = torch.zeros(self.size, dtype=torch.float64)
        for pixels in self._train_pixels():
            mean += pixels.sum(0, dtype=torch.float64)
        mean /= n
        variance = torch.zeros_like(mean)
        for pixels in self._train_pixels():  # a second pass: a difference of squares would cancel far from 0
            variance += (pixels - mean).square_().sum(0)
        return PixelMoments(mean.to(torch.float32), variance.div_(n).to(torch.float32))

    def _train_pixels(self) -> Iterator[torch.Tensor]:
        for rows in self.train._chunks():
            yield self.train.batch(torch.arange(rows.start, min(rows.stop, len(self.train))), "cpu")

    def require_batch(self, batch_size: int) -> None:
        """Refuse (UserError) a batch with more examples than there are to train on."""
        if batch_size > len(self.train):
            raise UserError(
                f"batch_size {batch_size} is more than the {len(self.train)} training examples of "
                f"{self.name}: use at most that, or batch_size full."
            )


def load(
    source: str,
    *,
    seed: int = 0,
    likelihood: str = "cross_entropy",
    data_dir: Path | None = None,
    download: bool = True,
) -> Dataset:
    """The data set named by source, checked, split by seed and fingerprinted.

    source: `digits`, `mnist`, `fashion-mnist`, `kmnist`, the path of a .npy or .npz file with images
    (N, ...) of uint8 (0..255) or float, of a folder of images (`vae.data.folder`), or code of the user's own, which
    is run (`vae.data.bring`). Splits: digits 300 for validation and 300 for testing; a set with a test part of its own
    (the named IDX sets, an .npz with x_test) keeps it and gives a tenth of the rest to validation; any other source
    gives a tenth to each, unless its code splits it. The same seed always makes the same split.
    likelihood: whose support the pixels must be in: [0, 1], or any finite number for gaussian.
    data_dir: searched first for the named sets' files, and for a path that is not in the working folder.
    download: whether a named set that is nowhere may be fetched.

    Raises UserError (one line: what, where, the way out); FailureError where a download failed.
    """
    p_x = known_likelihood(likelihood)  # an unknown one is refused before a file is read
    if not 0 <= seed < 2**32:
        raise UserError(f"seed = {seed}: the seed of a split is a whole number from 0 to 2^32 - 1.")
    arrays = _arrays(source, data_dir, download)
    n, origin = len(arrays.images), arrays.origin
    if arrays.n_valid < 1 and arrays.valid_images is None:
        raise UserError(f"{origin} has {n} examples: at least 10 are needed, as a tenth is for validation.")

    digest = hashlib.sha256(f"scale {arrays.scale}\n".encode())
    _read_through(arrays.images, origin, p_x, digest.update)
    if arrays.test_images is not None:
        _read_through(arrays.test_images, f"{origin}, test images", p_x, digest.update)
    if arrays.valid_images is not None:
        _read_through(arrays.valid_images, f"{origin}, validation images", p_x, digest.update)
        _hash(arrays.valid_labels, digest.update)
    for labels in (arrays.labels, arrays.test_labels):
        _hash(labels, digest.update)
    content = digest.hexdigest()
    train, valid, test = split_rows(n, arrays.n_valid, arrays.n_test, seed)
    if arrays.valid_images is not None:
        # In random order all the same, and always in the same: the first of them are what the grid evaluates.
        train, valid = np.arange(n), split_rows(len(arrays.valid_images), 0, 0, 0)[0]
    if arrays.test_images is not None:
        test = np.arange(len(arrays.test_images))
    for rows in (train, valid, test):
        _hash(rows, digest.update)

    splits = _splits(arrays.images, arrays.labels, arrays.scale)
    valid_splits = test_splits = splits
    if arrays.valid_images is not None:
        valid_splits = _splits(arrays.valid_images, arrays.valid_labels, arrays.scale)
    if arrays.test_images is not None:
        test_splits = _splits(arrays.test_images, arrays.test_labels, arrays.scale)
    return Dataset(
        name=arrays.name,
        train=splits(train),
        valid=valid_splits(valid),
        test=test_splits(test),
        shape=arrays.images.shape[1:],
        fingerprint=digest.hexdigest(),
        content=content,
        source=source if source in sources.NAMES else _found_by(arrays),
        seed=seed if arrays.valid_images is None else None,
        code=arrays.code,
    )


def _arrays(source: str, data_dir: Path | None, download: bool) -> sources.Arrays:
    return (
        made(source) if is_reference(source) else sources.read(source, data_dir=data_dir, download=download)
    )


def _found_by(arrays: sources.Arrays) -> str:
    return os.path.abspath(arrays.origin) if arrays.code is None else arrays.code.absolute


def load_whole(
    source: str, *, likelihood: str = "cross_entropy", data_dir: Path | None = None
) -> tuple[Split, tuple[int, ...]]:
    """All images of a source in their order, however few, and the shape of one: to encode, not to train on.

    Checked as `load` checks them; a test part of its own (`x_test`) is not among them. Raises as `load` does.
    """
    p_x = known_likelihood(likelihood)
    arrays = _arrays(source, data_dir, download=True)
    _read_through(arrays.images, arrays.origin, p_x, lambda _: None)
    whole = _splits(arrays.images, arrays.labels, arrays.scale)(np.arange(len(arrays.images)))
    return whole, arrays.images.shape[1:]


def split_rows(n: int, n_valid: int, n_test: int, seed: int) -> tuple[Array, Array, Array]:
    """The rows, int64, of a random split of n examples: training, validation, test; in random order, so that
    the first k of a split are a sample of it even where a file is sorted."""
    # RandomState and not default_rng: its stream is frozen, so a seed is the same split under every numpy.
    order = np.random.RandomState(seed).permutation(n).astype(np.int64)
    held_out = n_valid + n_test
    return order[held_out:], order[:n_valid], order[n_valid:held_out]


def _splits(images: Array, labels: Array | None, scale: float) -> Callable[[Array], Split]:
    """What makes a Split of rows of the images: over a copy of the rows, or over the shared memory map."""
    flat = images.reshape(len(images), -1)  # (N, D), no copy: sources gives C order
    in_memory = flat.nbytes <= sources.IN_MEMORY_BYTES
    shared = None if in_memory else torch.from_numpy(flat)

    def split(rows: Array) -> Split:
        of_rows = None if labels is None else torch.from_numpy(labels[rows])
        if shared is not None:
            return Split(shared, torch.from_numpy(rows), of_rows, scale)
        # A batch is float32, so float64 would cost its conversion at every step and twice the memory.
        dtype = np.float32 if flat.dtype == np.float64 else flat.dtype
        base = torch.from_numpy(flat[rows].astype(dtype, copy=False))
        return Split(base, torch.arange(len(rows)), of_rows, scale, torch.from_numpy(rows))

    return split


def _read_through(
    images: Array, origin: str, likelihood: Likelihood, update: Callable[[bytes | memoryview], object]
) -> None:
    """Give `update` (a hash's) dtype, shape and bytes, and refuse pixels that can't be trained on: one pass."""
    update(f"{images.dtype.str} {images.shape}\n".encode())
    survey = Survey(images, likelihood)
    step = max(1, CHUNK_BYTES // (images.nbytes // len(images)))
    for start in range(0, len(images), step):
        chunk = images[start : start + step]
        update(chunk.reshape(-1).view(np.uint8).data)
        survey.add(chunk, start)
    survey.refuse(origin)


def _hash(whole_numbers: Array | None, update: Callable[[bytes | memoryview], object]) -> None:
    if whole_numbers is None:
        update(b"none\n")
        return
    update(f"{whole_numbers.dtype.str} {whole_numbers.shape}\n".encode())
    update(np.ascontiguousarray(whole_numbers).view(np.uint8).data)
