"""The commands of `python -m vae` that look at a model: what it makes of images, of its dimensions, of the way between
two images, and what its file says."""

from __future__ import annotations

import itertools
from typing import Annotated

import typer

from vae.command import grouped
from vae.errors import UserError
from vae.options import (
    ImageOptions,
    Images,
    Model,
    load_on,
    require_images,
    stored_shape,
    whole_numbers,
    write_images,
)

#: Images in a row of a sheet of reconstructions, and of these on a sheet unless said otherwise.
COLUMNS = 16
#: Latent dimensions that are walked along unless said otherwise, those that vary the most.
DIMENSIONS = 8
#: Images from which it is found which dimensions vary the most.
VARIES_OVER = 2_000


@grouped
def reconstruct(
    model: Model,
    out: Images,
    of: ImageOptions,
    n: Annotated[
        int | None,
        typer.Option("--n", min=1, help="The first N images; default: 16 on a sheet, all in an array."),
    ] = None,
) -> None:
    """Images through the encoder and back: the expected pixels at the posterior mean. A .png sheet has rows of
    originals above rows of reconstructions; an .npy has the reconstructions alone."""
    import torch

    from vae import use
    from vae.evaluation import EVALUATION_BATCH
    from vae.pictures import beside

    trained = load_on(model, of.device)
    part = of.images(trained)
    is_sheet = out.suffix == ".png"
    asked = n or (min(COLUMNS, len(part)) if is_sheet else len(part))
    if asked > len(part):
        raise UserError(f"--n {asked}: {of.split} has {len(part)} images.")
    require_images(out, 2 * asked if is_sheet else asked, stored_shape(of.shape, trained))
    index = torch.arange(asked)
    if is_sheet:
        columns = min(asked, COLUMNS)
        pixels = beside(part.batch(index).numpy(), use.reconstructed(trained, part, index), columns)
        stored = write_images(out, trained, [pixels], len(pixels), of.shape, columns)
    else:
        batches = (use.reconstructed(trained, part, some) for some in torch.split(index, EVALUATION_BATCH))
        stored = write_images(out, trained, batches, asked, of.shape)
    print(f"{asked} images of {of.split}, reconstructed, of shape {stored}: {out}")


@grouped
def traverse(
    model: Model,
    out: Images,
    of: ImageOptions,
    dims: Annotated[
        str | None,
        typer.Option(
            "--dims", metavar="0,3,...", help="Latent dimensions; default: the 8 that vary the most."
        ),
    ] = None,
    row: Annotated[
        int | None,
        typer.Option("--row", min=0, help="Start at this image's code; default: at the prior's mean."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=2, max=1_000, help="Images of a dimension.")] = 9,
    span: Annotated[
        float, typer.Option("--span", min=0.01, max=100.0, help="From -SPAN to SPAN, in standard deviations.")
    ] = 3.0,
) -> None:
    """A walk along latent dimensions, a row of images each, all other dimensions held."""
    import torch

    from vae import use

    trained = load_on(model, of.device)
    size = trained.recipe.latent_size
    chosen = None if dims is None else whole_numbers("--dims", dims, size, "dimensions of z")
    start = torch.zeros(size)
    if chosen is None or row is not None:
        part = of.images(trained)
        if row is not None:
            start = use.codes_at(
                trained, part, whole_numbers("--row", str(row), len(part), f"images of {of.split}")
            )[0]
        if chosen is None:
            means = use.codes_at(trained, part, range(min(VARIES_OVER, len(part))))
            chosen = tuple(
                means.var(0, correction=0).argsort(descending=True, stable=True)[:DIMENSIONS].tolist()
            )
    z = use.walked(start, chosen, steps, span)
    stored = write_images(out, trained, use.decoded_batches(trained, z), len(z), of.shape, steps)
    print(f"dimensions {', '.join(map(str, chosen))}, {steps} images each of shape {stored}: {out}")


@grouped
def interpolate(
    model: Model,
    out: Images,
    of: ImageOptions,
    rows: Annotated[
        str, typer.Option("--rows", metavar="0,1,...", help="Images of the split to go through, two or more.")
    ] = "0,1",
    steps: Annotated[int, typer.Option("--steps", min=2, max=1_000, help="Images from one to the next.")] = 9,
    spherical: Annotated[
        bool,
        typer.Option(
            "--spherical", help="Along the arc (White 2016), which keeps codes as far out as the prior's."
        ),
    ] = False,
) -> None:
    """The way from one image to the next through z, a row of images for each pair, both ends included."""
    import torch

    from vae import use

    trained = load_on(model, of.device)
    part = of.images(trained)
    through = whole_numbers("--rows", rows, len(part), f"images of {of.split}")
    if len(through) < 2:
        raise UserError(f"--rows {rows}: two images or more, for example 0,1.")
    means = use.codes_at(trained, part, through)
    ways = [use.between(a, b, steps, spherical) for a, b in itertools.pairwise(means)]
    z = torch.cat(ways)
    stored = write_images(out, trained, use.decoded_batches(trained, z), len(z), of.shape, steps)
    print(f"{len(ways)} ways of {steps} images of shape {stored}: {out}")


@grouped
def info(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")] = False,
) -> None:
    """What a model file says of itself: network and its source, data, training, metrics, versions, recipe. Nothing is
    run, also where the network is a user's own."""
    import json

    from vae.info import as_lines, read_info

    found = read_info(model)
    print(json.dumps(found.as_dict(), indent=2) if as_json else "\n".join(as_lines(found)))
