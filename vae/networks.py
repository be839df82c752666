"""The networks of this project by name, and what each takes from a recipe."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from vae.table import Table

NormName = Literal["none", "batch", "group"]
Width = Annotated[int, Field(ge=1, le=65_536)]


class Network(NamedTuple):
    """What a network takes from a recipe beside latent_size."""

    fields: frozenset[str]
    """Those of NETWORK_FIELDS that it takes."""
    has_options: bool
    """Whether it takes `model_options`."""
    options: type[Table] | None = None
    """What they are; None: whatever the factory takes."""


class ConvOptions(Table):
    """The `model_options` of conv; everything else are fields of the recipe, as for the fully connected network.

    A default can't be changed any more: a technique that is stored names the network and not each of its options."""

    told_as: ClassVar[str | None] = "conv"

    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=16, strict=False)] = (32, 64)
    """Of each convolution in the encoder, every one of which halves height and width; the decoder has them
    reversed."""
    blocks: Annotated[int, Field(ge=0, le=64)] = 0
    """Further convolutions at each size, in each network; with the recipe's `residual` a shortcut leads round each."""
    norm: NormName = "batch"
    """After each convolution but the last: batch (Ioffe & Szegedy 2015) or group normalisation (Wu & He 2018). Averaged
    weights (ema_decay, schedule_free_adamw) have batch statistics of their own, see `vae.model.recount`."""


#: Recipe fields that change the network or its first weights, and that not every network has.
NETWORK_FIELDS = ("hidden", "residual", "activation", "dropout", "init", "output_bias_from_mean")
#: The networks that come with this project.
NETWORKS: dict[str, Network] = {
    "mlp": Network(frozenset(NETWORK_FIELDS), has_options=False),
    "conv": Network(frozenset(NETWORK_FIELDS), has_options=True, options=ConvOptions),
}
#: A network of the user's own: all that it takes are its options.
OWN_NETWORK = Network(frozenset(), has_options=True)
