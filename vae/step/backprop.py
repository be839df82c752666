"""The gradient of the training objective of a VAE, written out by hand.

Autograd's bookkeeping costs a small model more than its arithmetic. Here each layer's forward and backward are
a few calls on plain tensors, and the gradients land in tensors that are already there. The same code, given no
tensors to write to, is what torch.compile compiles. Tests hold it equal to autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae.devices import multiplies_bf16
from vae.likelihoods import Likelihood, at_least_fp32
from vae.model.linear import linear_by_onednn, linear_by_rounding, onednn_is_faster
from vae.model.mlp import ACTIVATIONS, VAE
from vae.recipe import Recipe

_aten = torch.ops.aten
#: Activation name -> (gradient of its output, its input, its output) -> gradient of its input: the kernels that
#: autograd calls for the functions in `vae.model.mlp.ACTIVATIONS`.
ACTIVATION_GRADIENTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": lambda g, _, out: _aten.threshold_backward.default(g, out, 0.0),
    "leaky_relu": lambda g, h, _: _aten.leaky_relu_backward.default(g, h, 0.01, False),
    "elu": lambda g, h, _: _aten.elu_backward.default(g, 1.0, 1.0, 1.0, False, h),
    "gelu": lambda g, h, _: _aten.gelu_backward.default(g, h, approximate="none"),
    "silu": lambda g, h, _: _aten.silu_backward.default(g, h),
    "tanh": lambda g, _, out: _aten.tanh_backward.default(g, out),
}


@dataclass(frozen=True)
class Objective:
    """What the gradient depends on beside the weights and the batch; equal ones compile to one graph."""

    activation: str
    residual: bool
    likelihood: Likelihood
    dropout: bool
    free_bits: bool
    dtype: torch.dtype
    """Of activations and matrix products: float32 or bfloat16. Losses are float32 in either."""
    by_rounding: bool = False
    """bfloat16 on a device without units for it: the same numbers, multiplied in float32."""

    @classmethod
    def of(
        cls, recipe: Recipe, likelihood: Likelihood, dtype: torch.dtype, device: torch.device
    ) -> Objective:
        """The recipe's, for weights of that dtype on that device."""
        return cls(
            activation=recipe.activation,
            residual=recipe.residual,
            likelihood=likelihood,
            dropout=recipe.dropout > 0,
            free_bits=recipe.free_bits > 0,
            dtype=torch.bfloat16 if recipe.precision == "bf16" else dtype,
            by_rounding=recipe.precision == "bf16" and not multiplies_bf16(device),
        )


class Knobs(NamedTuple):
    """The objective's numbers: Python floats, or 0-dim tensors where a graph must not depend on them."""

    beta: float | Tensor
    free_bits: float | Tensor
    dropout: float | Tensor


class _Linear:
    """A linear layer: forward, and backward into the given gradients.

    With gradients given, MKL's results stay in the layer's own memory until its next call; without, all tensors
    are new, as a compiler wants them. by_rounding: see `Objective`.
    """

    def __init__(
        self, name: str, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], by_rounding: bool
    ) -> None:
        self.name = name
        self._linear = linear_by_rounding if by_rounding else linear_by_onednn
        self._by_rounding = by_rounding
        self.weight, self.bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        self._transposed = self.weight.t()
        self.d_weight, self.d_bias = gradients.get(f"{name}.weight"), gradients.get(f"{name}.bias")
        self._reuses = bool(gradients)
        self._n_batch = -1
        self._whole = (
            by_rounding  # layers as wholes, by `_linear`; else products by MKL into memory kept for them
        )
        self._out: Tensor | None = None
        self._d_in: Tensor | None = None

    def forward(self, h: Tensor) -> Tensor:
        """(B, n_in) -> (B, n_out)."""
        if h.shape[0] != self._n_batch:
            self._n_batch, self._whole = h.shape[0], self._by_rounding or onednn_is_faster(h, self.weight)
            reuses = self._reuses and not self._whole
            self._out = h.new_empty(self._n_batch, self.weight.shape[0]) if reuses else None
        if self._whole:
            return self._linear(h, self.weight, self.bias)
        if self.bias is None:
            return torch.mm(h, self._transposed, out=self._out)
        return torch.addmm(self.bias, h, self._transposed, out=self._out)

    def backward(self, g: Tensor, h: Tensor) -> None:
        """g: (B, n_out), gradient of the output. h: (B, n_in), the input of the last forward."""
        if not self._whole:
            self.d_weight = torch.mm(g.t(), h, out=self.d_weight)
        elif self._reuses:
            assert self.d_weight is not None
            self.d_weight.copy_(self._linear(g.t(), h.t()))
        else:
            self.d_weight = self._linear(g.t(), h.t())
        if self.bias is not None:
            self.d_bias = torch.sum(g, 0, out=self.d_bias)

    def to_input(self, g: Tensor) -> Tensor:
        """Gradient of the output (B, n_out) -> of the input (B, n_in)."""
        if self._whole:
            return self._linear(g, self._transposed)
        if self._reuses and (self._d_in is None or self._d_in.shape[0] != g.shape[0]):
            self._d_in = g.new_empty(g.shape[0], self.weight.shape[1])
        return torch.mm(g, self.weight, out=self._d_in)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        assert self.d_weight is not None
        yield f"{self.name}.weight", self.d_weight
        if self.d_bias is not None:
            yield f"{self.name}.bias", self.d_bias


class _Saved(NamedTuple):
    """What the backward pass of one hidden layer needs of its forward pass."""

    entered: Tensor  # the layer's input, (B, n_in)
    h: Tensor  # before the activation, (B, n_out)
    out: Tensor  # after it, before dropout
    mask: Tensor | None  # dropout's, scaled


class _Network:
    """`vae.model.mlp.Network`: linear, activation, dropout, and shortcuts round them where it is residual."""

    def __init__(
        self,
        name: str,
        objective: Objective,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
    ) -> None:
        self.activation = ACTIVATIONS[objective.activation]
        self.activation_gradient = ACTIVATION_GRADIENTS[objective.activation]
        self.residual, self.dropout = objective.residual, objective.dropout
        n_layers = sum(key.startswith(f"{name}.layers.") and key.endswith(".weight") for key in weights)
        by_rounding = objective.by_rounding
        self.layers = [
            _Linear(f"{name}.layers.{i}", weights, gradients, by_rounding) for i in range(n_layers)
        ]
        # The shortcut round layer i + 1; None is the identity.
        self.shortcuts = [
            _Linear(f"{name}.shortcuts.{i}", weights, gradients, by_rounding)
            if f"{name}.shortcuts.{i}.weight" in weights
            else None
            for i in range(n_layers - 1)
        ]

    def forward(self, entered: Tensor, dropout: float | Tensor) -> tuple[Tensor, list[_Saved]]:
        saved: list[_Saved] = []
        for i, layer in enumerate(self.layers):
            h = layer.forward(entered)
            if self.residual and i > 0:
                shortcut, before = self.shortcuts[i - 1], saved[-1].h
                h = h + (before if shortcut is None else shortcut.forward(before))
            out = self.activation(h)
            mask = _dropout_mask(out, dropout) if self.dropout else None
            saved.append(_Saved(entered, h, out, mask))
            entered = out if mask is None else out * mask
        return entered, saved

    def backward(self, g: Tensor, saved: list[_Saved], *, to_input: bool) -> Tensor:
        """From the gradient of the output to that of the input (only with to_input: else it isn't made)."""
        around: Tensor | None = None  # what reaches h past the next layer
        for i in range(len(self.layers) - 1, -1, -1):
            layer, (entered, h, out, mask) = self.layers[i], saved[i]
            g = self.activation_gradient(g if mask is None else g * mask, h, out)
            if around is not None:
                g = g + around
            layer.backward(g, entered)
            if self.residual and i > 0:
                shortcut = self.shortcuts[i - 1]
                around = g
                if shortcut is not None:
                    shortcut.backward(g, saved[i - 1].h)
                    around = shortcut.to_input(g)
            if i > 0 or to_input:
                g = layer.to_input(g)
        return g

    def linears(self) -> list[_Linear]:
        return [*self.layers, *(s for s in self.shortcuts if s is not None)]


def _dropout_mask(h: Tensor, p: float | Tensor) -> Tensor:
    """0 with probability p, else 1 / (1 - p); from torch's global generator."""
    if isinstance(p, float):
        return torch.empty_like(h).bernoulli_(1.0 - p).div_(1.0 - p)
    return (torch.rand_like(h, dtype=torch.float32) >= p).to(h.dtype) / (1.0 - p).to(h.dtype)


def _as(dtype: torch.dtype, x: Tensor) -> Tensor:
    return x if x.dtype is dtype else x.to(dtype)  # a call to `to` costs, even where it does nothing


def _add_scaled(a: Tensor, b: Tensor, factor: float | Tensor) -> Tensor:
    """a + b * factor, in one call where it can be."""
    return torch.add(a, b, alpha=factor) if isinstance(factor, float) else a + b * factor


class Backprop:
    """The objective and its gradient for the weights of one `VAE`.

    weights: parameter name -> tensor, of the objective's dtype. gradients: parameter name -> the tensor that
    each call overwrites with the gradient; without it, `named_gradients` has the last call's.
    """

    def __init__(
        self,
        objective: Objective,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None = None,
    ) -> None:
        gradients = gradients or {}
        self._objective = objective
        self._encoder = _Network("encoder", objective, weights, gradients)
        self._posterior = _Linear("posterior", weights, gradients, objective.by_rounding)
        self._decoder = _Network("decoder", objective, weights, gradients)
        self._output = _Linear("output", weights, gradients, objective.by_rounding)

    @staticmethod
    def covers(model: nn.Module) -> bool:
        """Only `VAE` itself: a subclass may compute anything."""
        return type(model) is VAE

    def __call__(self, x: Tensor, noise: Tensor, knobs: Knobs) -> Tensor:
        """x: (B, D), prepared; noise: (B, L) -> `vae.elbo.objective` of them, a scalar in nats per example.

        The caller has switched autograd off.
        """
        objective = self._objective
        n, dtype = x.shape[0], objective.dtype

        entered = _as(dtype, x)
        hidden, encoder_saved = self._encoder.forward(entered, knobs.dropout)
        mean, log_var = at_least_fp32(self._posterior.forward(hidden)).chunk(2, dim=-1)
        std = torch.exp(0.5 * log_var)
        z = torch.addcmul(mean, std, noise)
        decoded, decoder_saved = self._decoder.forward(_as(dtype, z), knobs.dropout)
        parameters = self._output.forward(decoded)

        log_prob, g = objective.likelihood.total_log_prob_and_gradient(parameters, x)
        variance_excess = torch.expm1(log_var)  # as in `kl_divergence`, of which it also is the gradient
        twice_kl = torch.addcmul(variance_excess, mean, mean).sub_(log_var)
        pull = knobs.beta / n  # what a nat of one example's KL costs
        if objective.free_bits:
            per_dimension = twice_kl.sum(0) * (0.5 / n)
            loss = per_dimension.clamp(min=knobs.free_bits).sum() * knobs.beta
            pull = pull * (per_dimension >= knobs.free_bits)  # (L,)
        else:
            loss = twice_kl.sum() * (0.5 * pull)
        loss = torch.sub(loss, log_prob, alpha=1.0 / n)

        g = _as(dtype, g.mul_(-1.0 / n))
        self._output.backward(g, decoded)
        g = self._decoder.backward(self._output.to_input(g), decoder_saved, to_input=True)
        d_z = at_least_fp32(g)
        d_mean = _add_scaled(d_z, mean, pull)
        d_log_var = _add_scaled(d_z * noise * std, variance_excess, pull) * 0.5
        g = _as(dtype, torch.cat([d_mean, d_log_var], dim=-1))
        self._posterior.backward(g, hidden)
        self._encoder.backward(self._posterior.to_input(g), encoder_saved, to_input=False)
        return loss

    def named_gradients(self) -> dict[str, Tensor]:
        """Parameter name -> gradient, of the last call."""
        networks = [*self._encoder.linears(), *self._decoder.linears()]
        linears = [*networks, self._posterior, self._output]
        return {name: gradient for linear in linears for name, gradient in linear.gradients()}
