"""Writes the script, a recipe's numbers and the code of those paths alone that it takes, and the data.

Tests hold the script's losses equal to ours for every technique, likelihood and network: whoever changes one of these
changes the templates beside this file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from vae.data.dataset import Dataset, Split
from vae.errors import UserError
from vae.evaluation import EVALUATION_SEED, GRID_IMAGES
from vae.files import write_whole
from vae.images import colours_first, image_shape
from vae.likelihoods import likelihood
from vae.model.conv import STRIDE, groups_of
from vae.model.init import GAINS
from vae.networks import ConvOptions
from vae.optim.muon import BF16_FROM
from vae.recipe import Recipe
from vae.versions import version_of

#: What makes a likelihood's pixels of grey ones, by the name it has in the script.
PREPARED = {"bernoulli": "binarised", "dynamic_bernoulli": "binarised", "discretised_logistic": "levels"}


class Script(NamedTuple):
    """A recipe as a script of its own."""

    text: str
    """Python, some 110 lines for the usual recipe and 150 for much at once; a convolutional network takes 40 more."""
    notes: tuple[str, ...]
    """Where its losses may differ from ours by more than rounding; said in the script too."""


def script(recipe: Recipe, data: Dataset, tau: int) -> Script:
    """The script that trains the recipe as `vae.train(recipe, data, tau)` does, with its validation losses.

    It takes the two files that `write_stored` makes of data.train and data.valid. Raises UserError for a recipe that
    names code of the user's own, and for a batch with more examples than there are."""
    for name in recipe.references:
        raise UserError(
            f"A recipe with code of your own, {name}, is no script that needs torch and numpy alone: train it by "
            "`python -m vae train --recipe`."
        )
    batch = recipe.batch(len(data.train))
    data.require_batch(batch)
    conv = ConvOptions.model_validate(recipe.model_options) if recipe.model == "conv" else None
    image = image_shape(data.shape)
    sizes = [] if image is None else [(image.height, image.width)]
    for _ in conv.channels if conv else ():
        height, width = sizes[-1]
        sizes.append((math.ceil(height / STRIDE), math.ceil(width / STRIDE)))
    is_residual = recipe.residual and len(recipe.hidden) > 1
    has_batch_norm = conv is not None and conv.norm == "batch"
    averages = recipe.ema_decay > 0 or recipe.optimizer == "schedule_free_adamw"
    notes = tuple(_notes(recipe))
    text = (
        _environment()
        .get_template("script.py.j2")
        .render(
            version=version_of("vae-study"),
            notes=notes,
            r=recipe,
            p=likelihood(recipe.likelihood).parameters_per_pixel,
            gain=GAINS[recipe.activation],
            tau=tau,
            batch=batch,
            size=data.size,
            scale=data.train.scale,
            prepare=PREPARED.get(recipe.likelihood),
            conv=conv,
            image=image,
            sizes=tuple(sizes),
            groups=tuple(map(groups_of, conv.channels, sizes[1:])) if conv else (),
            colours_first=conv is not None and colours_first(data.shape),
            is_residual=is_residual,
            projects=is_residual and len(set(recipe.hidden)) > 1,
            has_schedule=recipe.lr_schedule != "constant" or recipe.warmup > 0,
            has_mode=recipe.dropout > 0 or has_batch_norm,
            averages=averages,
            recounts=averages and has_batch_norm,
            grid_images=GRID_IMAGES,
            evaluation_seed=EVALUATION_SEED,
        )
    )
    return Script(text, notes)


def _notes(recipe: Recipe) -> Iterator[str]:
    if recipe.precision == "bf16":
        yield "In bfloat16 they may differ in the digits that it has not."
    if recipe.optimizer == "muon" and max(recipe.hidden) >= BF16_FROM:
        yield (
            f"Muon orthogonalises in float32; vae-study does so in bfloat16 for matrices of {BF16_FROM} and wider, on "
            "processors that multiply it, so that the losses differ a little."
        )
    if recipe.compile and recipe.dropout > 0:
        yield "Compiled dropout has other masks in every program: the losses are those of another seed."


def write_stored(path: Path, split: Split) -> Path:
    """An .npy of the values that a split stores, (n, D) in its order, copied in pieces; the path.

    Raises FailureError."""
    dtype = split.base.numpy().dtype
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (len(split), split.base.shape[1]),
    }

    def write(temporary: Path) -> None:
        # A full disk is an error here, and would end a memory map's process.
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for values in split.stored():
                file.write(values.numpy().tobytes())

    return write_whole(path, write)


@lru_cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("vae.script", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
