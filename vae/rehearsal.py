"""A network or an optimizer of the user's own is rehearsed before it is trained: a step on one batch, its state written
and read, and the next step from there."""

from __future__ import annotations

import io
import math

import torch
from torch import Tensor

from vae.data.dataset import Dataset
from vae.errors import UserError
from vae.recipe import Recipe
from vae.training import Training

#: Of how far a step moves a weight at most: what a step from a state that was read may differ by, where sums are
#: ordered differently from one run to the next.
_ROUNDING = 0.01


def rehearse(recipe: Recipe, data: Dataset, tau: int, device: torch.device) -> None:
    """Refuse (UserError) a recipe whose network doesn't fit, whose optimizer can't be made or can't step, that gives
    NaN at once, or whose training doesn't go on from a saved state as it would have gone on."""
    recipe = recipe.replace(compile=False)  # the same numbers, and no minute for a compilation
    training = Training(recipe, data, tau, device)
    training.advance(1)
    before = _weights(training)
    if not math.isfinite(float(before.sum())):
        raise UserError(
            f"After one step of {_rule(recipe)} weights are NaN or infinite: a lower lr, or clip_norm."
        )
    resumed = Training(recipe, data, tau, device)
    written = io.BytesIO()
    torch.save(training.state_dict(), written)
    written.seek(0)
    try:
        resumed.load_state_dict(torch.load(written, map_location=device, weights_only=True))
    except Exception as error:  # torch.load has many kinds, and what is kept is the user's own
        line = " ".join(str(error).split())
        raise UserError(
            f"The state of {_rule(recipe)} can't be saved and read without pickling: keep tensors and plain values "
            f"alone ({type(error).__name__}: {line[:200]})."
        ) from error
    for each in (training, resumed):
        each.advance(1)
    after, again = _weights(training), _weights(resumed)
    moved, apart = float((after - before).abs().max()), float((after - again).abs().max())
    if not apart <= _ROUNDING * moved:
        raise UserError(
            f"A training with {_rule(recipe)} goes on otherwise from its saved state than without a stop (weights "
            f"differ by {apart:.1e} after a step of {moved:.1e}): all that it goes by belongs into its state, as "
            "torch.optim.Optimizer.state or a buffer."
        )


def _rule(recipe: Recipe) -> str:
    own = " and ".join(recipe.references)
    return own or recipe.model


def _weights(training: Training) -> Tensor:
    return torch.cat([weight.detach().flatten().float() for weight in training.model.state_dict().values()])
