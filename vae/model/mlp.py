"""The networks: encoder, decoder and the VAE of the two."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vae.errors import UserError
from vae.gaussian import reparameterise
from vae.likelihoods import PixelMoments, at_least_fp32, likelihood
from vae.model.init import initialise
from vae.model.linear import Linear
from vae.recipe import Recipe

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "leaky_relu": nn.functional.leaky_relu,  # slope 0.01
    "elu": nn.functional.elu,
    "gelu": nn.functional.gelu,  # exact, by erf
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


class Network(nn.Module):
    """Hidden layers from (B, n_inputs) to (B, widths[-1]): linear, activation, dropout, for each width.

    residual: the first layer as before; each later one is a pre-activation residual block of one linear
    layer, h <- S h + W dropout(activation(h)) + b, with a last activation and dropout at the end (He et al.
    2016, "Identity mappings", but with one layer in a block, not two: depth, widths and W are those of the
    plain network, so the two compare). The shortcut S is the identity, or a linear map without bias where the
    width changes. With a single width there is no block, and nothing differs.
    """

    def __init__(
        self, n_inputs: int, widths: tuple[int, ...], activation: str, dropout: float, residual: bool
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"No activation '{activation}'. Activations: {', '.join(ACTIVATIONS)}.")
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout
        sizes = list(zip((n_inputs, *widths), widths, strict=False))
        self.layers = nn.ModuleList(Linear(a, b) for a, b in sizes)
        blocks = sizes[1:] if residual else []
        self.shortcuts = nn.ModuleList(
            nn.Identity() if a == b else Linear(a, b, bias=False) for a, b in blocks
        )

    def forward(self, h: Tensor) -> Tensor:
        if not self.shortcuts:
            for layer in self.layers:
                h = self._activate(layer(h))
            return h
        h = self.layers[0](h)
        for layer, shortcut in zip(self.layers[1:], self.shortcuts, strict=True):
            h = shortcut(h) + layer(self._activate(h))
        return self._activate(h)

    def _activate(self, h: Tensor) -> Tensor:
        h = self.activation(h)
        return nn.functional.dropout(h, self.dropout, self.training) if self.dropout > 0 else h


class VAE(nn.Module):
    """A variational autoencoder of fully connected networks, q(z|x) Gaussian (Kingma & Welling 2014).

    data_size: D. hidden: the encoder's widths; the decoder has them reversed. latent_size: L.
    parameters_per_pixel: P, as the likelihood states. Mean and log_var have weights of their own: the upper
    and the lower half of the rows of `posterior`, one matrix only because one product is faster than two.
    """

    def __init__(
        self,
        data_size: int,
        hidden: tuple[int, ...],
        latent_size: int,
        parameters_per_pixel: int,
        activation: str = "relu",
        dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.data_size = data_size
        self.latent_size = latent_size
        self.parameters_per_pixel = parameters_per_pixel
        self.encoder = Network(data_size, hidden, activation, dropout, residual)
        self.posterior = Linear(hidden[-1], 2 * latent_size)
        self.decoder = Network(latent_size, hidden[::-1], activation, dropout, residual)
        self.output = Linear(hidden[0], parameters_per_pixel * data_size)

    @property
    def readouts(self) -> dict[nn.Module, int]:
        """The layers whose outputs are a distribution's parameters, each with the number of matrices stacked in it."""
        return {self.posterior: 2, self.output: self.parameters_per_pixel}

    @property
    def shortcuts(self) -> list[nn.Linear]:
        """The linear shortcuts of residual blocks whose width changes."""
        candidates = [*self.encoder.shortcuts, *self.decoder.shortcuts]
        return [layer for layer in candidates if isinstance(layer, nn.Linear)]

    @property
    def not_activated(self) -> dict[nn.Module, int]:
        """All layers that no activation follows, readouts and shortcuts, as `initialise` takes them."""
        return {**self.readouts, **dict.fromkeys(self.shortcuts, 1)}

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) -> mean and log_var of q(z|x), each (B, L); at least float32, also under bf16 autocast."""
        mean, log_var = at_least_fp32(self.posterior(self.encoder(x))).chunk(2, dim=-1)
        return mean, log_var

    def decode(self, z: Tensor) -> Tensor:
        """(B, L) -> parameters of p(x|z), (B, P * D); bfloat16 under bf16 autocast."""
        parameters: Tensor = self.output(self.decoder(z))
        return parameters

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, D), standard normal noise (B, L) -> parameters (B, P * D), mean (B, L), log_var (B, L)."""
        mean, log_var = self.encode(x)
        return self.decode(reparameterise(mean, log_var, noise)), mean, log_var


def build(recipe: Recipe, data_size: int, pixels: PixelMoments | None = None) -> VAE:
    """The recipe's VAE for examples of D = data_size pixels, initialised; draws from torch's global RNG.

    pixels: mean and variance of the training pixels, (D,) each. Where `output_bias_from_mean` is set, the
    decoder's output bias starts from them. Raises UserError if they are missing then, or of another size.
    """
    p_x = likelihood(recipe.likelihood)
    model = VAE(
        data_size,
        recipe.hidden,
        recipe.latent_size,
        p_x.parameters_per_pixel,
        recipe.activation,
        recipe.dropout,
        recipe.residual,
    )
    initialise(model, model.not_activated, recipe.init, recipe.activation)
    if recipe.output_bias_from_mean:
        if pixels is None or pixels.mean.shape != (data_size,):
            found = "none was given" if pixels is None else f"its shape is {tuple(pixels.mean.shape)}"
            raise UserError(f"output_bias_from_mean needs the mean training image, ({data_size},); {found}.")
        with torch.no_grad():
            model.output.bias.copy_(p_x.initial_bias(pixels))
    return model
