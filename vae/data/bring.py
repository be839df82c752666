"""Data that code of the user's own makes: a factory by name, file.py:NAME or package.module:NAME.

The factory is called without arguments and gives one of

- images: an array (N, ...), one image a row, of uint8 (0..255) or float, as a .npy file holds them; a tenth is held out
  for validation and a tenth for testing, by the experiment's seed;
- (images, labels): labels (N,) are whole numbers, for pictures alone;
- (train, valid, test): each of them images or (images, labels); the splits are as they are given.

NumPy arrays, memory maps and torch tensors will do. Every process that trains calls it anew: what it gives must be the
same each time, which its SHA-256 checks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vae import code
from vae.data.sources import (
    IN_MEMORY_BYTES,
    Array,
    Arrays,
    check_images,
    check_labels,
    check_test,
    native,
)
from vae.errors import UserError


def made(reference: str) -> Arrays:
    """The arrays that a factory gives. Raises UserError: an error of its own, or what is no data."""
    source = code.find(reference)
    factory = code.load(reference, source.sha256)
    try:
        given = factory()
    except code.RAISED as error:
        raise UserError(f"{reference} fails: {code.told(error, str(source.path))}") from error
    parts = given if isinstance(given, tuple) and len(given) == 3 else (given,)
    names = ("training", "validation", "test") if len(parts) == 3 else ("",)
    read = [
        _part(part, f"{reference}{': ' if name else ''}{name}")
        for part, name in zip(parts, names, strict=True)
    ]
    (images, labels), *held_out = read
    for (others, _), name in zip(held_out, names[1:], strict=True):
        check_test(images, others, reference, name)
    n_valid = 0 if held_out else len(images) // 10
    (valid, valid_labels), (test, test_labels) = held_out or ((None, None), (None, None))
    return Arrays(
        name=code.label(reference),
        origin=reference,
        images=images,
        labels=labels,
        scale=255.0 if images.dtype == np.uint8 else 1.0,
        n_valid=n_valid,
        n_test=n_valid,
        test_images=test,
        test_labels=test_labels,
        valid_images=valid,
        valid_labels=valid_labels,
        code=source,
    )


def _part(given: Any, origin: str) -> tuple[Array, Array | None]:
    """Images and labels of a whole or a split."""
    is_pair = isinstance(given, tuple)
    if is_pair and len(given) != 2:
        raise UserError(
            f"{origin} gives {len(given)} things: give images, (images, labels), or (train, valid, test) of these."
        )
    images = _array(given[0] if is_pair else given, origin)
    check_images(images, origin)
    images = native(images, origin)
    if not images.flags.writeable and images.nbytes > IN_MEMORY_BYTES:
        raise UserError(
            f"{origin} is a memory map that can't be written: open it with mode='c', copy-on-write."
        )
    if not is_pair or given[1] is None:
        return images, None
    labels = _array(given[1], f"{origin} labels")
    check_labels(labels, len(images), f"{origin} labels")
    return images, labels.astype(np.int64)


def _array(given: Any, origin: str) -> Array:
    if hasattr(given, "detach"):  # a torch tensor
        given = given.detach().cpu()
    try:
        array = np.asarray(given)
    except code.RAISED as error:  # lists of unequal lengths, objects that don't convert
        raise UserError(f"{origin} gives no array: {code.told(error)}") from error
    if array.dtype.hasobject or array.ndim == 0:
        raise UserError(f"{origin} gives a {type(given).__name__}, not an array of numbers (N, ...).")
    return array
