"""Weight initialisation: the schemes of `recipe.init`. Draws from torch's global generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from vae.errors import UserError

#: 1 / sqrt(E[f(z)^2]) for z ~ N(0, 1): a layer's outputs keep their second moment through the activation f
#: (He et al. 2015 for ReLU). tanh has torch's customary 5/3 (`nn.init.calculate_gain`), not its 1.59.
GAINS: dict[str, float] = {
    "relu": math.sqrt(2.0),
    "leaky_relu": math.sqrt(2.0 / (1.0 + 0.01**2)),
    "elu": 1.2452,
    "gelu": 1.5335,
    "silu": 1.6765,
    "tanh": 5.0 / 3.0,
}

_STD = 0.02  # of the normal that "truncated_normal" cuts, as in vision transformers


def initialise(
    model: nn.Module, not_activated: Mapping[nn.Module, int], scheme: str, activation: str
) -> None:
    """Sets all weights and biases of the model's linear layers and convolutions anew, in place.

    not_activated: the layers that no activation follows, each with the number of matrices stacked in it.

    Schemes: `torch` (nn.Linear's own: weights and biases uniform within 1 / sqrt(fan_in)); `xavier_uniform`,
    `xavier_normal` (Glorot & Bengio 2010); `he_uniform`, `he_normal` (He et al. 2015, by fan_in);
    `orthogonal` (Saxe et al. 2014); `truncated_normal` (std 0.02 cut at two std, whatever the layer's size).
    All but `torch` zero the biases. xavier, he and orthogonal multiply hidden layers by the activation's gain
    (`GAINS`), those that no activation follows by 1. Matrices that share one nn.Linear (the heads of mean and
    log_var, the output's P parameters) are initialised each by itself. Of a transposed
    convolution with stride s an output pixel meets 1 / s^2 of the kernel on average, so its gain is s times as large.

    Raises UserError for a scheme or activation that doesn't exist.
    """
    fill = _SCHEMES.get(scheme)
    if fill is None:
        raise UserError(f"No initialisation '{scheme}'. Initialisations: {', '.join(_SCHEMES)}.")
    if activation not in GAINS:
        raise UserError(f"No activation '{activation}'. Activations: {', '.join(GAINS)}.")
    for layer in model.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            continue
        if scheme == "torch":
            layer.reset_parameters()  # bounds by fan_in only, so shared matrices are drawn as if alone
            continue
        gain = 1.0 if layer in not_activated else GAINS[activation]
        weight, n_stacked = layer.weight.data, not_activated.get(layer, 1)
        if isinstance(layer, nn.ConvTranspose2d):
            kernels = weight.transpose(0, 1).contiguous()  # (out, in, height, width), a copy
            for kernel in kernels.chunk(n_stacked):
                fill(kernel, gain * math.sqrt(math.prod(layer.stride)))
            weight.copy_(kernels.transpose(0, 1))
        else:
            for matrix in weight.chunk(n_stacked):
                fill(matrix, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _he(weight: Tensor, gain: float) -> float:
    """Standard deviation gain / sqrt(fan_in); nn.init.kaiming_* know no gain for gelu, silu and elu."""
    return gain / math.sqrt(weight[0].numel())


_SCHEMES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "torch": lambda weight, _: weight,
    "xavier_uniform": lambda weight, gain: nn.init.xavier_uniform_(weight, gain),
    "xavier_normal": lambda weight, gain: nn.init.xavier_normal_(weight, gain),
    "he_uniform": lambda weight, gain: weight.uniform_(-1.0, 1.0).mul_(math.sqrt(3.0) * _he(weight, gain)),
    "he_normal": lambda weight, gain: weight.normal_(0.0, _he(weight, gain)),
    "orthogonal": lambda weight, gain: nn.init.orthogonal_(weight, gain),
    "truncated_normal": lambda weight, _: nn.init.trunc_normal_(weight, 0.0, _STD, -2 * _STD, 2 * _STD),
}
