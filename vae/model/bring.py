"""Networks of one's own: what they must have, checked before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae.errors import UserError
from vae.likelihoods import Likelihood


def require_fit(network: nn.Module, likelihood: Likelihood, images: Tensor, latent_size: int) -> None:
    """Refuse (UserError) a network that is no `vae.elbo.Model` for images (B, D), prepared and where it is, and this
    latent size L: a missing method, a shape that isn't what it should be, an error of its own.

    Tried in evaluation mode, without gradients, and with the random numbers put back."""
    name = type(network).__name__
    for method in ("encode", "decode"):
        if not callable(getattr(network, method, None)):
            raise UserError(
                f"{name} has no method {method}: a network has encode(x) -> (mean, log_var) and decode(z)."
            )
    modes = {module: module.training for module in network.modules()}
    n, size = len(images), likelihood.parameters_per_pixel * images.shape[1]
    try:
        with torch.random.fork_rng(), torch.no_grad():
            network.eval()
            encoded = network.encode(images)  # type: ignore[operator]
            if not isinstance(encoded, tuple) or len(encoded) != 2:
                raise UserError(
                    f"{name}.encode must give a pair, mean and log_var, not {_shape_of(encoded)}."
                )
            for part, found in zip(("mean", "log_var"), encoded, strict=True):
                _require_shape(found, f"{name}.encode's {part}", (n, latent_size), "latent_size")
            parameters = network.decode(torch.zeros(n, latent_size, device=images.device))  # type: ignore[operator]
            _require_shape(parameters, f"{name}.decode's output", (n, size), f"{likelihood.name}'s numbers")
    except UserError:
        raise
    except Exception as error:  # the network is anybody's code
        line = " ".join(str(error).split())
        raise UserError(
            f"{name} fails on images of shape {tuple(images.shape)} and latent_size {latent_size}: "
            f"{type(error).__name__}: {line}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def _require_shape(found: object, what: str, shape: tuple[int, int], why: str) -> None:
    if not isinstance(found, Tensor) or found.shape != shape:
        raise UserError(
            f"{what} is {_shape_of(found)}; it must be {shape}: images x {why}. Change the network or the recipe."
        )


def _shape_of(found: object) -> str:
    return f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
