"""The network that a recipe names: one of this project's, or one of the user's own, checked before it is trained.

A network of one's own is a `vae.elbo.Model`: `encode(x)` takes images (B, D) to mean and log_var, each (B, L), and
`decode(z)` takes codes (B, L) to the likelihood's numbers, (B, P * D), the first parameter of all pixels first. Images
are flat: D is the product of the data's shape, in its order, so a convolution begins with x.view(-1, 1, 28, 28). A
recipe names its factory, a function or the class itself (`Factory`).
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from vae import code
from vae.elbo import Model, objective
from vae.errors import UserError
from vae.gaussian import kl_divergence
from vae.likelihoods import Likelihood, PixelMoments, likelihood
from vae.model import conv, mlp
from vae.recipe import Recipe

#: The way out of a first number that is none.
_FINITE = "begin with weights that give finite numbers"


class Factory(Protocol):
    """What a recipe's `model` names, as file.py:NAME or package.module:NAME."""

    def __call__(
        self,
        data_shape: tuple[int, ...],
        latent_size: int,
        parameters_per_pixel: int,
        **options: bool | int | float | str | list[bool | int | float | str],
    ) -> nn.Module:
        """A network with first weights drawn from torch's global generator, which is seeded by the recipe.

        data_shape: of one image, (28, 28) or with colours (32, 32, 3), without the batch. latent_size: L.
        parameters_per_pixel: P, the likelihood's: 2 for gaussian, mean and log variance, else 1. options: the
        recipe's `model_options`; one that the factory has no argument for is refused.
        """


def build_network(
    recipe: Recipe, data_shape: tuple[int, ...], pixels: PixelMoments | None = None, sha256: str | None = None
) -> nn.Module:
    """The recipe's network for images of that shape, initialised; draws from torch's global generator.

    pixels: mean and variance of the training pixels, for `output_bias_from_mean`. sha256: that of the only source a
    network of one's own may be built from. Raises UserError: an option that the factory doesn't take, an error of its
    own, anything but a network."""
    if recipe.model == "mlp":
        return mlp.build(recipe, math.prod(data_shape), pixels)
    if recipe.model == "conv":
        return conv.build(recipe, data_shape, pixels)
    factory = cast(Factory, code.load(recipe.model, sha256))
    of = likelihood(recipe.likelihood)
    given = (tuple(data_shape), recipe.latent_size, of.parameters_per_pixel)
    _require_options(factory, given, recipe)
    try:
        network = factory(*given, **recipe.model_options)
    except code.RAISED as error:
        raise UserError(
            f"{recipe.model} fails for data of shape {given[0]}, latent_size {given[1]}, {given[2]} parameters per "
            f"pixel and {_listed(recipe)}: {code.told(error, str(code.find(recipe.model).path))}"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{recipe.model} must give a torch.nn.Module, not {_kind(network)}.")
    return network


def _require_options(factory: Factory, given: tuple[object, ...], recipe: Recipe) -> None:
    """Refuse options that the factory has no argument for, and arguments that nothing is given for."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # a callable that says nothing of its arguments
        return
    try:
        signature.bind(*given, **recipe.model_options)
    except TypeError as error:
        raise UserError(
            f"{recipe.model}{signature} is called with data_shape, latent_size, parameters_per_pixel and "
            f"{_listed(recipe)}: {error}."
        ) from None


def _listed(recipe: Recipe) -> str:
    options = ", ".join(f"{name}={value!r}" for name, value in recipe.model_options.items())
    return f"model_options {options}" if options else "no model_options"


def require_fit(network: nn.Module, of: Likelihood, images: Tensor, latent_size: int) -> None:
    """Refuse (UserError) a network that is no `vae.elbo.Model` for images (B, D), prepared and where it is, and this
    latent size L: a missing method, a shape that isn't what it should be, numbers that aren't finite, a parameter that
    gets no gradient, an error of its own.

    Tried in evaluation mode, for the gradient in its own; random numbers, modes and buffers are put back."""
    name = type(network).__name__
    for method in ("encode", "decode"):
        if not callable(getattr(network, method, None)):
            raise UserError(
                f"{name} has no method {method}: a network has encode(x) -> (mean, log_var) and decode(z)."
            )
    model = cast(Model, network)
    try:
        with torch.random.fork_rng():
            with _put_back(network), torch.no_grad():
                network.eval()
                _require_shapes(model, of, images, latent_size)
            with _put_back(network), torch.enable_grad():
                _require_gradient(network, of, images)
    except UserError:
        raise
    except code.RAISED as error:
        module = sys.modules.get(type(network).__module__)
        raise UserError(
            f"{name} fails on images of shape {tuple(images.shape)} and latent_size {latent_size}: "
            f"{code.told(error, getattr(module, '__file__', None) or '')}"
        ) from error


@contextmanager
def _put_back(network: nn.Module) -> Iterator[None]:
    """Modes and buffers as they were, once tried: a batch norm counts what it has seen."""
    modes = {module: module.training for module in network.modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])


def _require_shapes(model: Model, of: Likelihood, images: Tensor, latent_size: int) -> None:
    name, n, size = type(model).__name__, len(images), of.parameters_per_pixel * images.shape[1]
    encoded = model.encode(images)
    if not isinstance(encoded, tuple) or len(encoded) != 2:
        raise UserError(f"{name}.encode must give a pair, mean and log_var, not {_kind(encoded)}.")
    for part, found in zip(("mean", "log_var"), encoded, strict=True):
        _require_shape(found, f"{name}.encode's {part}", (n, latent_size), "latent_size")
    parameters = model.decode(torch.zeros(n, latent_size, device=images.device))
    _require_shape(parameters, f"{name}.decode's output", (n, size), f"{of.name}'s numbers")


def _require_gradient(network: nn.Module, of: Likelihood, images: Tensor) -> None:
    name, model = type(network).__name__, cast(Model, network)
    parameters = {key: p for key, p in network.named_parameters() if p.requires_grad}
    if not parameters:
        raise UserError(f"{name} has no parameter to train: one at least must have requires_grad.")
    mean, log_var = model.encode(images)
    loss = objective(-of.log_prob(model.decode(mean), images), kl_divergence(mean, log_var), beta=1.0)
    if not torch.isfinite(loss):
        raise UserError(f"{name}'s first loss is {float(loss)}: {_FINITE}.")
    if not loss.requires_grad:
        raise UserError(f"{name}'s output hangs on none of its parameters: no gradient reaches them.")
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for key, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            raise UserError(
                f"{name}'s parameter {key} gets no gradient: use it in encode or decode, or set its requires_grad to "
                "False."
            )
        if not torch.isfinite(gradient).all():
            raise UserError(
                f"The first gradient of {name}'s parameter {key} is NaN or infinite: sqrt and log have none at 0."
            )


def _require_shape(found: object, what: str, shape: tuple[int, int], why: str) -> None:
    if not isinstance(found, Tensor) or found.shape != shape:
        raise UserError(
            f"{what} is {_kind(found)}; it must be one of shape {shape}: images x {why}. Change the network or the "
            "recipe."
        )
    if not torch.isfinite(found).all():
        raise UserError(f"{what} is NaN or infinite for images that are not: {_FINITE}.")


def _kind(found: object) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    return "None" if found is None else f"an object of type {type(found).__name__}"
