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
    except Exception as error:  # it is anybody's code
        listed = "".join(f", {key}={value!r}" for key, value in options.items())
        raise UserError(f"{name} can't be made with lr={recipe.lr:g}{listed}: {code.told(error)}") from error
    return cast(torch.optim.Optimizer, made)


def own_step(name: str, rule: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """A step of a rule of one's own. Raises UserError for one that fails or can't be used here."""
    gradients: list[Tensor | None] = [parameter.grad for parameter in parameters]
    places = [parameter.data_ptr() for parameter in parameters]
    try:
        rule.step()
    except Exception as error:  # it is anybody's code
        closure = " (a rule that evaluates the loss itself, by a closure, can't be used here)"
        raise UserError(
            f"{name} fails in its step: {code.told(error)}{closure if 'closure' in str(error) else ''}"
        ) from error
    if [parameter.data_ptr() for parameter in parameters] != places:
        raise UserError(f"{name} puts other tensors in the place of its parameters: change them in place.")
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient  # some take it away, and it is where the next one will be written
