"""A network or an optimizer of the user's own is rehearsed before it is trained: a step on one batch, its state written
and read, and the next step from there."""

from __future__ import annotations

import io
import math
from typing import Any

import torch
from torch import Tensor

from vae import code
from vae.data.dataset import Dataset
from vae.errors import UserError
from vae.recipe import Recipe
from vae.training import Training

#: Of how far a step moves a weight at most: what a step from a state that was read may differ by, where sums are
#: ordered differently from one run to the next.
_ROUNDING = 0.01
#: Types of plain values.
_PLAIN = {type(None), bool, int, float, str, bytes}


def rehearse(recipe: Recipe, data: Dataset, tau: int, device: torch.device) -> None:
    """Refuse (UserError) a recipe whose network doesn't fit, whose optimizer can't be made, can't step or moves
    nothing, that gives NaN at once, or whose training doesn't go on from a saved state as it would have gone on."""
    recipe = recipe.replace(compile=False)  # the same numbers, and no minute for a compilation
    training = Training(recipe, data, tau, device)
    training.advance(1)
    before = _weights(training)
    if not math.isfinite(float(before.sum())):
        raise UserError(
            f"After one step of {_rule(recipe)} weights are NaN or infinite: a lower lr, or clip_norm."
        )
    resumed = Training(recipe, data, tau, device)
    try:
        resumed.load_state_dict(_read_again(training.state_dict(), recipe, device))
    except UserError:
        raise
    except code.RAISED as error:
        raise UserError(
            f"The state of {_rule(recipe)} isn't taken over when a training goes on: {code.told(error)}"
        ) from error
    for each in (training, resumed):
        each.advance(1)
    after, again = _weights(training), _weights(resumed)
    moved, apart = float((after - before).abs().max()), float((after - again).abs().max())
    if moved == 0.0:
        raise UserError(
            f"A step of {_rule(recipe)} changes no weight: an optimizer changes those that it was given, in place."
        )
    if not apart <= _ROUNDING * moved:
        raise UserError(
            f"A training with {_rule(recipe)} goes on otherwise from its saved state than without a stop (weights "
            f"differ by {apart:.1e} after a step of {moved:.1e}): all that it goes by belongs into its state, as "
            "torch.optim.Optimizer.state or a buffer."
        )


def _read_again(state: Any, recipe: Recipe, device: torch.device) -> Any:
    """A state as it is after it was saved. Raises UserError for what only pickle could hold."""
    written = io.BytesIO()
    try:
        torch.save(state, written)
        written.seek(0)
        return torch.load(written, map_location=device, weights_only=True)
    except Exception as error:  # torch has many kinds, and what is kept is the user's own
        kind = _foreign(state)
        what = code.told(error) if kind is None else f"there is a {kind.__module__}.{kind.__qualname__} in it"
        raise UserError(
            f"The state of {_rule(recipe)} can't be saved and read without pickling: keep tensors and plain values "
            f"alone ({what})."
        ) from error


def _foreign(value: Any) -> type | None:
    """The type of the first part of a state that is neither a tensor nor plain."""
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return None
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple):
        parts = [*value]
    else:
        return type(value)
    return next((kind for kind in map(_foreign, parts) if kind is not None), None)


def _rule(recipe: Recipe) -> str:
    own = " and ".join(recipe.references)
    return own or recipe.model


def _weights(training: Training) -> Tensor:
    return torch.cat([weight.detach().flatten().float() for weight in training.model.state_dict().values()])
