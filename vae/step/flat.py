"""A model's parameters as views of one tensor, so that a step handles one tensor and not ten."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vae.code import is_reference
from vae.errors import UserError
from vae.optim.optimizer import Groups
from vae.recipe import Recipe

#: Parameter names and shapes, in the order in which they lie in the flat tensor.
Layout = tuple[tuple[str, tuple[int, ...]], ...]


class Flat:
    """The trainable parameters of a model, joined: each becomes a view of `values` and its `.grad` of
    `gradient`, both (n,). Hidden matrices come first, then the other matrices, then the vectors.

    Raises UserError if the parameters differ in dtype or device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._groups = Groups.of(model)
        parameters = [p for group in self._groups for p in group]
        kinds = {f"{p.dtype} on {p.device}" for p in parameters}
        if len(kinds) != 1:
            raise UserError(f"A model trains in one dtype on one device, not in {sorted(kinds) or 'none'}.")
        names = {id(p): name for name, p in model.named_parameters()}
        self.layout: Layout = tuple((names[id(p)], tuple(p.shape)) for p in parameters)
        self.values = torch.cat([p.detach().flatten() for p in parameters])
        self.gradient = torch.zeros_like(self.values)
        self._n_hidden = sum(p.numel() for p in self._groups.hidden)
        self.n_matrices = self._n_hidden + sum(p.numel() for p in self._groups.matrices)
        gradients = views(self.gradient, self.layout)
        for parameter, (name, view) in zip(parameters, views(self.values, self.layout).items(), strict=True):
            parameter.data = view
            parameter.grad = gradients[name]

    def groups(self, recipe: Recipe) -> Groups:
        """Parameters for the recipe's optimizer, as few as it allows: each is a call or more at every step.
        Muon needs each hidden matrix by itself, and a rule of one's own may need each parameter; where weights decay,
        matrices and vectors are apart."""
        if is_reference(recipe.optimizer):
            return self._groups
        if recipe.optimizer == "muon":
            return Groups(self._groups.hidden, self._joined(self._n_hidden, self.n_matrices), self._vectors())
        if recipe.weight_decay > 0:
            return Groups([], self._joined(0, self.n_matrices), self._vectors())
        return Groups([], [], self._joined(0, len(self.values)))

    def _vectors(self) -> list[nn.Parameter]:
        return self._joined(self.n_matrices, len(self.values))

    def _joined(self, start: int, end: int) -> list[nn.Parameter]:
        if start == end:
            return []
        joined = nn.Parameter(self.values[start:end])
        joined.grad = self.gradient[start:end]
        return [joined]


def views(flat: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Parameter name -> its part of a flat tensor, in its shape."""
    sizes = [math.prod(shape) for _, shape in layout]
    parts = torch.split(flat, sizes)
    return {name: part.view(shape) for (name, shape), part in zip(layout, parts, strict=True)}
