"""The networks of this project by name, and what each takes from a recipe."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import Field

Width = Annotated[int, Field(ge=1, le=65_536)]


class Network(NamedTuple):
    """What a network takes from a recipe beside latent_size."""

    fields: frozenset[str]
    """Those of NETWORK_FIELDS that it takes."""
    has_options: bool
    """Whether it takes `model_options`."""


#: Recipe fields that change the network or its first weights, and that not every network has.
NETWORK_FIELDS = ("hidden", "residual", "activation", "dropout", "init", "output_bias_from_mean")
#: The networks that come with this project.
NETWORKS: dict[str, Network] = {
    "mlp": Network(frozenset(NETWORK_FIELDS), has_options=False),
    "conv": Network(frozenset(NETWORK_FIELDS), has_options=True),
}
#: A network of the user's own: all that it takes are its options.
OWN_NETWORK = Network(frozenset(), has_options=True)
