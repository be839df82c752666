"""The convolutional network: strided convolutions round the layers of the fully connected one."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from vae.errors import UserError
from vae.gaussian import reparameterise
from vae.images import colours_first, image_shape
from vae.likelihoods import PixelMoments, at_least_fp32, likelihood
from vae.model.init import initialise
from vae.model.linear import Linear
from vae.model.mlp import ACTIVATIONS, Network
from vae.networks import ConvOptions, NormName
from vae.recipe import Recipe

#: Groups of the group normalisation, at most (Wu & He 2018 have 32 of far wider layers).
GROUPS = 8
#: Numbers in a group, at least, where a map of few pixels has enough channels.
FEWEST = 4
STRIDE, KERNEL = 2, 3


class Convolution(nn.Module):
    """Convolution, normalisation, activation; or with a shortcut h + W activation(norm(h)), the pre-activation block of
    He et al. 2016 with one layer in it, as `vae.model.mlp.Network` has it."""

    def __init__(self, layer: nn.Module, norm: nn.Module, activation: str, shortcut: bool) -> None:
        super().__init__()
        self.layer, self.norm, self.shortcut = layer, norm, shortcut
        self.activation = ACTIVATIONS[activation]

    def forward(self, h: Tensor) -> Tensor:
        if self.shortcut:
            block: Tensor = h + self.layer(self.activation(self.norm(h)))
            return block
        return self.activation(cast(Tensor, self.norm(self.layer(h))))


class Upward(nn.ConvTranspose2d):
    """A transposed convolution to images of a height and width, from those of half of them, rounded up. Its kernel of
    4 x 4 lies on each pixel as often as on any other: one of 3 x 3 would leave a chessboard (Odena et al. 2016)."""

    def __init__(self, before: int, after: int, size: tuple[int, int], is_biased: bool) -> None:
        super().__init__(before, after, 2 * STRIDE, STRIDE, padding=1, bias=is_biased)
        self._height, self._width = size

    def forward(self, h: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, before, ceil(H / 2), ceil(W / 2)) -> (B, after, H, W)."""
        return super().forward(h, output_size)[..., : self._height, : self._width]


class ConvVAE(nn.Module):
    """A VAE of convolutions with fully connected layers between them and z, q(z|x) Gaussian.

    Each of the encoder's `channels` is a convolution of 3 x 3 with stride 2, which takes a size n to ceil(n / 2); the
    decoder's transposed convolutions go back through the same sizes, so that any height and width will do. `hidden`,
    dropout and residual are those of the fully connected layers, which are `vae.model.mlp.VAE`'s. The output has a bias
    for each pixel, as there, and not for each colour: `output_bias_from_mean` starts from the mean image.

    shape: of an example, (H, W), (H, W, C) or (C, H, W), with C of 1 or 3; images and the likelihood's numbers are flat
    in that order. parameters_per_pixel: P, as the likelihood states.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        latent_size: int,
        parameters_per_pixel: int,
        options: ConvOptions | None = None,
        hidden: tuple[int, ...] = (500,),
        activation: str = "relu",
        dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        image = image_shape(shape)
        if image is None:
            raise UserError(
                f"The network conv takes images (H, W), (H, W, 3) or (3, H, W), not examples of shape {shape}: "
                "save them in one of these, or use the network mlp."
            )
        options = options or ConvOptions()
        self.latent_size, self.parameters_per_pixel = latent_size, parameters_per_pixel
        self._image, self._colours_first = image, colours_first(shape)
        widths = options.channels
        sizes = [(image.height, image.width)]
        for _ in widths:
            height, width = sizes[-1]
            sizes.append((-(-height // STRIDE), -(-width // STRIDE)))
        self._smallest = (widths[-1], *sizes[-1])
        self.normalises_one_pixel = options.norm == "batch" and sizes[-1] == (1, 1)
        n_features = math.prod(self._smallest)

        def changed(layer: nn.Module, width: int, size: tuple[int, int]) -> Convolution:
            return Convolution(layer, _norm(options.norm, width, size), activation, shortcut=False)

        def further(width: int, size: tuple[int, int]) -> list[Convolution]:
            biased = is_biased or residual  # in a residual block no normalisation follows the layer
            layers = [nn.Conv2d(width, width, KERNEL, padding=1, bias=biased) for _ in range(options.blocks)]
            return [
                Convolution(layer, _norm(options.norm, width, size), activation, residual) for layer in layers
            ]

        is_biased = options.norm == "none"
        down: list[nn.Module] = []
        for before, after, size in zip((image.channels, *widths), widths, sizes[1:], strict=False):
            strided = nn.Conv2d(before, after, KERNEL, STRIDE, padding=1, bias=is_biased)
            down += [changed(strided, after, size), *further(after, size)]
        self.convolutions = nn.Sequential(*down)
        self.encoder = Network(n_features, hidden, activation, dropout, residual)
        self.posterior = Linear(hidden[-1], 2 * latent_size)
        self.decoder = Network(latent_size, hidden[::-1], activation, dropout, residual)
        self.features = Linear(hidden[0], n_features)
        self.activation = ACTIVATIONS[activation]
        up: list[nn.Module] = [*further(widths[-1], sizes[-1])]
        for level in range(len(widths) - 1, 0, -1):
            back = Upward(widths[level], widths[level - 1], sizes[level], is_biased)
            up += [changed(back, widths[level - 1], sizes[level]), *further(widths[level - 1], sizes[level])]
        self.transposed = nn.Sequential(*up)
        n_out = parameters_per_pixel * image.channels
        self.output = Upward(widths[0], n_out, sizes[0], is_biased=False)
        self.output_bias = nn.Parameter(torch.zeros(n_out * image.height * image.width))

    @property
    def readouts(self) -> dict[nn.Module, int]:
        """The layers whose outputs are a distribution's parameters, each with the number of matrices stacked in it."""
        return {self.posterior: 2, self.output: self.parameters_per_pixel}

    @property
    def not_activated(self) -> dict[nn.Module, int]:
        """All layers that no activation follows, as `initialise` takes them."""
        shortcuts = [*self.encoder.shortcuts, *self.decoder.shortcuts]
        return self.readouts | {layer: 1 for layer in shortcuts if isinstance(layer, nn.Linear)}

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) -> mean and log_var of q(z|x), each (B, L); at least float32, also under bf16 autocast."""
        height, width, channels = self._image
        if self._colours_first:
            images = x.view(-1, channels, height, width)
        else:
            images = x.view(-1, height, width, channels).permute(0, 3, 1, 2)
        h = self.encoder(self.convolutions(images).flatten(1))
        mean, log_var = at_least_fp32(self.posterior(h)).chunk(2, dim=-1)
        return mean, log_var

    def decode(self, z: Tensor) -> Tensor:
        """(B, L) -> parameters of p(x|z), (B, P * D); bfloat16 under bf16 autocast."""
        h = self.activation(self.features(self.decoder(z))).view(-1, *self._smallest)
        parameters: Tensor = self.output(self.transposed(h))  # (B, P * C, H, W)
        if not self._colours_first:
            height, width, channels = self._image
            parameters = parameters.view(len(z), -1, channels, height, width).permute(0, 1, 3, 4, 2)
        return parameters.flatten(1) + self.output_bias

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, D), standard normal noise (B, L) -> parameters (B, P * D), mean (B, L), log_var (B, L)."""
        mean, log_var = self.encode(x)
        return self.decode(reparameterise(mean, log_var, noise)), mean, log_var


def build(recipe: Recipe, shape: tuple[int, ...], pixels: PixelMoments | None = None) -> ConvVAE:
    """The recipe's network for examples of that shape, initialised; draws from torch's global generator.

    pixels: mean and variance of the training pixels, (D,) each, for `output_bias_from_mean`. Raises UserError for
    examples that are no images, missing pixels, and a batch normalisation of one number."""
    p_x, options = likelihood(recipe.likelihood), ConvOptions.model_validate(recipe.model_options)
    model = ConvVAE(
        shape,
        recipe.latent_size,
        p_x.parameters_per_pixel,
        options,
        recipe.hidden,
        recipe.activation,
        recipe.dropout,
        recipe.residual,
    )
    if model.normalises_one_pixel and recipe.batch_size == 1:
        raise UserError(
            f"Batch normalisation needs more than one number, and the {len(options.channels)} convolutions "
            "leave one pixel of a batch of 1: raise batch_size, or set model_options.norm=group."
        )
    initialise(model, model.not_activated, recipe.init, recipe.activation)
    if recipe.output_bias_from_mean:
        if pixels is None or pixels.mean.shape != (math.prod(shape),):
            raise UserError(f"output_bias_from_mean needs the mean training image, ({math.prod(shape)},).")
        with torch.no_grad():
            model.output_bias.copy_(p_x.initial_bias(pixels))
    return model


def _norm(name: NormName, width: int, size: tuple[int, int]) -> nn.Module:
    if name == "batch":
        return nn.BatchNorm2d(width)
    if name == "group":
        return nn.GroupNorm(groups_of(width, size), width)
    return nn.Identity()


def groups_of(width: int, size: tuple[int, int]) -> int:
    """Groups of the group normalisation of so many channels, of maps of that height and width."""
    groups = math.gcd(GROUPS, width)
    # A group of one number is always normalised to 0: nothing would pass.
    while groups > 1 and width // groups * math.prod(size) < FEWEST:
        groups //= 2
    return groups
