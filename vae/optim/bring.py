"""Optimizers of the user's own or of a library: a `torch.optim.Optimizer` class that a recipe names.

It is made as Class([{"params": [...], "weight_decay": 0.0}], lr=lr, **optimizer_options), each parameter by itself in
its shape. The lr is set before every step by the recipe's schedule, and weight decay is the recipe's as for every other
rule (see `Optimizer`): decoupled, on matrices and kernels, never on biases; a decay of the class's own stays at 0. A
class with methods `eval` and `train` (schedule-free) is evaluated between the two.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from vae import code
from vae.errors import UserError
from vae.recipe import Recipe

#: What the error of a step says -> what its rule needs and doesn't get here.
_NEEDS = {
    "closure": "evaluates the loss itself, by a closure,",
    "does not require grad": "takes derivatives of the gradient",
}


def own_rule(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimizer over these parameters. Raises UserError: no such class, options that it doesn't take."""
    name = recipe.optimizer
    kind = code.load(name)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise UserError(f"{name} is no torch.optim.Optimizer class: an optimizer is a subclass of it.")
    options = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in recipe.optimizer_options.items()
    }
    try:
        made = cast(Any, kind)([{"params": parameters, "weight_decay": 0.0}], lr=recipe.lr, **options)
    except code.RAISED as error:
        listed = "".join(f", {key}={value!r}" for key, value in options.items())
        raise UserError(
            f"{name} can't be made with lr={recipe.lr:g}{listed}: {_told(error, name)}"
        ) from error
    return cast(torch.optim.Optimizer, made)


def own_step(name: str, rule: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """A step of a rule of one's own. Raises UserError for one that fails or can't be used here."""
    gradients: list[Tensor | None] = [parameter.grad for parameter in parameters]
    places = [parameter.data_ptr() for parameter in parameters]
    try:
        rule.step()
    except code.RAISED as error:
        needs = [why for sign, why in _NEEDS.items() if sign in str(error)]
        hint = f" (a rule that {needs[0]} can't be used here)" if needs else ""
        raise UserError(f"{name} fails in its step: {_told(error, name)}{hint}") from error
    if [parameter.data_ptr() for parameter in parameters] != places:
        raise UserError(f"{name} puts other tensors in the place of its parameters: change them in place.")
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient  # some take it away, and it is where the next one will be written


def _told(error: BaseException, name: str) -> str:
    return code.told(error, str(code.find(name).path))
