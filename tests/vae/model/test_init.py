"""Initial weights: their distribution under each scheme, gains, biases and seeds."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

from vae.errors import UserError
from vae.model.init import GAINS, initialise
from vae.model.mlp import ACTIVATIONS, VAE

SCHEMES = [
    "torch",
    "xavier_uniform",
    "xavier_normal",
    "he_uniform",
    "he_normal",
    "orthogonal",
    "truncated_normal",
]


def initialised(scheme: str, activation: str = "relu", seed: int = 0) -> VAE:
    """A 60-(50, 40)-20 VAE with two parameters per pixel and shortcuts, whose weights and biases were 7."""
    model = VAE(60, (50, 40), 20, 2, activation, residual=True)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    torch.manual_seed(seed)
    initialise(model, model.not_activated, scheme, activation)
    return model


def matrices(model: VAE) -> list[tuple[Tensor, bool]]:
    """Every weight matrix, those that share a layer apart, and whether an activation follows it."""
    hidden = [layer.weight for layer in (*model.encoder.layers, *model.decoder.layers)]
    heads = [*model.posterior.weight.chunk(2), *model.output.weight.chunk(2)]
    shortcuts = [layer.weight for layer in model.shortcuts]
    assert (len(hidden), len(heads), len(shortcuts)) == (4, 4, 2)
    return [(w.detach(), True) for w in hidden] + [(w.detach(), False) for w in heads + shortcuts]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_everything_is_set_anew_and_seeded(scheme: str) -> None:
    """No parameter keeps its old value; equal seeds agree, unequal differ; biases are 0 except torch's."""
    first, again, other = initialised(scheme), initialised(scheme), initialised(scheme, seed=1)
    for name, value in first.named_parameters():
        assert (value != 7).all()
        assert torch.equal(value, again.get_parameter(name))
        if value.ndim == 1 and scheme != "torch":
            assert (value == 0).all()
        else:
            assert not torch.equal(value, other.get_parameter(name))


@pytest.mark.parametrize("activation", GAINS)
@pytest.mark.parametrize("scheme", ["xavier_uniform", "xavier_normal", "he_uniform", "he_normal"])
def test_scaled_schemes_have_their_distribution(scheme: str, activation: str) -> None:
    """Weights follow the scheme's uniform or normal law of its own matrix; hidden layers alone have the gain."""
    for matrix, is_hidden in matrices(initialised(scheme, activation)):
        fan_out, fan_in = matrix.shape
        gain = GAINS[activation] if is_hidden else 1.0
        std = gain / math.sqrt(fan_in if scheme.startswith("he") else (fan_in + fan_out) / 2)
        bound = math.sqrt(3) * std
        law = stats.norm(0, std) if scheme.endswith("normal") else stats.uniform(-bound, 2 * bound)
        assert stats.kstest(matrix.flatten().numpy(), law.cdf).pvalue > 1e-4


def test_torch_scheme_is_nn_linears() -> None:
    """The torch scheme is nn.Linear's own: weights and biases uniform within 1 / sqrt(fan_in)."""
    model = initialised("torch")
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            for value in (layer.weight, layer.bias) if layer.bias is not None else (layer.weight,):
                drawn = value.detach().flatten().numpy()
                assert abs(drawn).max() <= bound
                assert stats.kstest(drawn, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-4


def test_orthogonal_matrices_are_orthogonal() -> None:
    """Rows (or columns, if fewer) are orthogonal, as long as the gain, in each of the stacked heads too."""
    for matrix, is_hidden in matrices(initialised("orthogonal", "tanh")):
        short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
        gain = 5 / 3 if is_hidden else 1.0
        torch.testing.assert_close(short @ short.t(), gain**2 * torch.eye(len(short)), rtol=0, atol=1e-5)


def test_truncated_normal_is_cut() -> None:
    """All matrices follow a normal of std 0.02 cut at 0.04, whatever the layer and the activation."""
    law = stats.truncnorm(-2, 2, scale=0.02)
    for matrix, _ in matrices(initialised("truncated_normal", "silu")):
        assert stats.kstest(matrix.flatten().numpy(), law.cdf).pvalue > 1e-4


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "gelu", "silu"])
def test_gains_keep_the_second_moment(activation: str) -> None:
    """gain^2 * E[f(z)^2] = 1 for standard normal z, by quadrature."""
    f = ACTIVATIONS[activation]

    def integrand(z: float) -> float:
        return float(f(torch.tensor(z, dtype=torch.float64))) ** 2 * float(stats.norm.pdf(z))

    second_moment = sum(integrate.quad(integrand, *half)[0] for half in ((-10, 0), (0, 10)))
    assert GAINS[activation] ** 2 * second_moment == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
def test_gains_are_torchs_where_torch_has_them(activation: str) -> None:
    """For the activations that nn.init.calculate_gain knows, the gain is its."""
    slope = 0.01 if activation == "leaky_relu" else None
    assert GAINS[activation] == pytest.approx(nn.init.calculate_gain(activation, slope))


def test_every_activation_has_a_gain() -> None:
    """A recipe's activation can meet any initialisation."""
    assert GAINS.keys() == ACTIVATIONS.keys()


def test_he_carries_the_signal_through_depth() -> None:
    """Through ten ReLU layers He's weights keep the signal's size; torch's default loses it."""
    size = {}
    for scheme in ("he_normal", "torch"):
        torch.manual_seed(0)
        model = VAE(200, (200,) * 10, 5, 1)
        initialise(model, model.not_activated, scheme, "relu")
        x = torch.randn(100, 200, generator=torch.Generator().manual_seed(0))
        size[scheme] = float(model.encoder(x).detach().square().mean())
    assert 0.3 < size["he_normal"] < 3
    assert size["torch"] < 0.01


def test_unknown_names() -> None:
    """A scheme or activation that doesn't exist is refused, naming those that do."""
    model = VAE(6, (5,), 2, 1)
    with pytest.raises(UserError, match=r"No initialisation 'kaiming'.*he_uniform"):
        initialise(model, model.not_activated, "kaiming", "relu")
    with pytest.raises(UserError, match=r"No activation 'swish'.*silu"):
        initialise(model, model.not_activated, "torch", "swish")
