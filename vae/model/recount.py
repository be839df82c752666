"""Batch normalisation beside averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from vae.elbo import Model
from vae.gaussian import reparameterise

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def counts(model: nn.Module) -> bool:
    """Whether the model keeps means and variances of what it was trained on: it has batch normalisation."""
    return any(isinstance(module, _NORMS) and module.track_running_stats for module in model.modules())


@contextmanager
def recounted(model: nn.Module, x: Tensor, noise: Tensor) -> Iterator[None]:
    """Within it each batch normalisation has the mean and variance of these images under the weights that the model
    has now, for those of the training don't fit other weights, averaged ones (Izmailov et al. 2018, section 3.2).
    Afterwards it has those of the training again, bitwise.

    model: in evaluation mode, which it stays in. x: (n, D), prepared; noise: (n, L); both where the model is."""
    norms = [
        module for module in model.modules() if isinstance(module, _NORMS) and module.track_running_stats
    ]
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1.0  # all of it from this one pass
            norm.train()
        with torch.no_grad():
            mean, log_var = cast(Model, model).encode(x)
            cast(Model, model).decode(reparameterise(mean, log_var, noise))
        for norm in norms:
            norm.eval()
        yield
    finally:
        for norm, momentum, buffers in zip(norms, momenta, kept, strict=True):
            norm.eval()
            norm.momentum = momentum
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])
