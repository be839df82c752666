"""The VAE's networks: what they compute, dropout, residual blocks, gradients, compilation, bf16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vae.elbo import elbo_terms, objective
from vae.errors import UserError
from vae.gaussian import kl_divergence
from vae.likelihoods import PixelMoments, likelihood
from vae.model.mlp import ACTIVATIONS, VAE, Network, build
from vae.recipe import Recipe


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(**changes: Any) -> VAE:
    """A seeded 12-(9, 5)-3 VAE in evaluation mode."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"activation": "relu", "dropout": 0.0, "residual": False} | changes
    return VAE(12, (9, 5), 3, 1, **settings).eval()


# What is computed


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_written_out(activation: str) -> None:
    """The VAE is linear, activation, ... to the two heads, z = mean + exp(log_var / 2) * noise, and back."""
    model, f = small(activation=activation), ACTIVATIONS[activation]
    w = dict(model.named_parameters())
    x, noise = randn(4, 12), randn(4, 3, seed=1)

    def linear(h: Tensor, name: str) -> Tensor:
        return h @ w[f"{name}.weight"].t() + w[f"{name}.bias"]

    h = f(linear(f(linear(x, "encoder.layers.0")), "encoder.layers.1"))
    heads = linear(h, "posterior")
    mean, log_var = heads[:, :3], heads[:, 3:]
    z = mean + torch.exp(log_var / 2) * noise
    h = f(linear(f(linear(z, "decoder.layers.0")), "decoder.layers.1"))
    torch.testing.assert_close(model(x, noise), (linear(h, "output"), mean, log_var))
    torch.testing.assert_close(model.encode(x), (mean, log_var))
    torch.testing.assert_close(model.decode(z), linear(h, "output"))


def test_decoder_reverses_the_encoder() -> None:
    """The decoder's hidden widths are the encoder's reversed."""
    model = small()
    assert [layer.out_features for layer in model.encoder.layers] == [9, 5]
    assert [layer.out_features for layer in model.decoder.layers] == [5, 9]


def test_mean_and_log_var_have_weights_of_their_own() -> None:
    """The mean's gradient reaches only its own rows of the heads, and log_var's only the others."""
    model = small()
    for head, own in ((0, slice(0, 3)), (1, slice(3, 6))):
        model.zero_grad()
        model.encode(randn(4, 12))[head].sum().backward()
        for gradient in (model.posterior.weight.grad, model.posterior.bias.grad):
            assert gradient is not None
            assert (gradient[own] != 0).any()
            other = gradient.clone()
            other[own] = 0
            assert (other == 0).all()


def test_gradients_of_the_whole_loss() -> None:
    """The gradient of the training loss by each weight is the numerical one (float64, every likelihood)."""
    for name in ("cross_entropy", "continuous_bernoulli", "gaussian", "discretised_logistic"):
        p = likelihood(name)
        torch.manual_seed(0)
        model = VAE(4, (3,), 2, p.parameters_per_pixel, activation="tanh").double()
        x = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)).double()
        noise = randn(5, 2).double()
        names = [key for key, _ in model.named_parameters()]

        def loss(*weights: Tensor) -> Tensor:
            state = dict(zip(names, weights, strict=True))  # noqa: B023 - called within this round
            parameters, mean, log_var = torch.func.functional_call(model, state, (x, noise))  # noqa: B023
            return objective(-p.log_prob(parameters, x), kl_divergence(mean, log_var), 0.7)  # noqa: B023

        weights = tuple(value.detach().requires_grad_() for value in model.parameters())
        assert torch.autograd.gradcheck(loss, weights)


# Dropout and residual blocks


def test_dropout_is_off_in_evaluation() -> None:
    """In evaluation a VAE with dropout is the one without; in training two passes differ."""
    model, plain = small(dropout=0.5), small()
    x, noise = randn(4, 12), randn(4, 3, seed=1)
    assert torch.equal(model(x, noise)[0], plain(x, noise)[0])
    model.train()
    assert not torch.equal(model(x, noise)[0], model(x, noise)[0])
    assert torch.equal(plain.train()(x, noise)[0], plain(x, noise)[0])


@pytest.mark.parametrize("residual", [False, True])
def test_dropout_drops_hidden_units_and_keeps_their_mean(residual: bool) -> None:
    """The given share of the last hidden units is 0; the others are scaled up so that the mean stays."""
    torch.manual_seed(0)
    network = Network(6, (400,), "tanh", 0.25, residual)
    h = randn(200, 6)
    dropped = network(h)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], network.eval()(h)[kept] / 0.75)


def test_residual_blocks_written_out() -> None:
    """After the first layer each block adds W f(h) + b to S h; S is the identity where the width stays."""
    torch.manual_seed(0)
    network = Network(6, (8, 8, 5), "relu", 0.0, residual=True)
    f = torch.relu
    first, second, third = network.layers
    h = first(randn(4, 6))
    h = h + second(f(h))
    assert isinstance(network.shortcuts[1], nn.Linear)
    h = h @ network.shortcuts[1].weight.t() + third(f(h))
    torch.testing.assert_close(network(randn(4, 6)), f(h))
    assert isinstance(network.shortcuts[0], nn.Identity)
    assert network.shortcuts[1].bias is None


def test_residual_keeps_a_deep_network_trainable() -> None:
    """Through 30 small layers the signal survives with residual blocks and vanishes without."""
    spread = {}
    for residual in (True, False):
        torch.manual_seed(0)
        network = Network(16, (16,) * 30, "relu", 0.0, residual)
        spread[residual] = float(network(randn(100, 16)).detach().std(0).mean())
    assert spread[True] > 0.1
    assert spread[False] < 1e-3


def test_residual_is_nothing_at_one_width() -> None:
    """With a single hidden layer there is no block: the same parameters and the same outputs."""
    outputs = []
    for residual in (True, False):
        torch.manual_seed(0)
        model = VAE(12, (9,), 3, 1, residual=residual)
        outputs.append(model(randn(4, 12), randn(4, 3, seed=1))[0])
    assert torch.equal(*outputs)


def test_residual_costs_only_shortcuts() -> None:
    """A residual VAE of equal widths has the plain one's parameters; a change of width adds one matrix."""

    def count(hidden: tuple[int, ...], residual: bool) -> int:
        return sum(p.numel() for p in VAE(12, hidden, 3, 1, residual=residual).parameters())

    assert count((9, 9), True) == count((9, 9), False)
    assert count((9, 5), True) == count((9, 5), False) + 2 * 9 * 5


# Building from a recipe


def test_build_is_seeded() -> None:
    """Equal global seeds give equal weights, unequal ones others."""
    recipe = Recipe(hidden=(9, 5), latent_size=3, init="he_normal")

    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build(recipe, 12, None).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_build_follows_the_recipe() -> None:
    """Widths, latent size, dropout, residual blocks and the likelihood's parameters come from the recipe."""
    recipe = Recipe(hidden=(9, 5), latent_size=3, likelihood="gaussian", dropout=0.1, residual=True)
    model = build(recipe, 12)
    assert model.output.out_features == 24
    assert model.posterior.out_features == 6
    assert model.encoder.dropout == model.decoder.dropout == 0.1
    assert len(model.shortcuts) == 2
    assert model.training


@pytest.mark.parametrize(
    "name",
    ["cross_entropy", "dynamic_bernoulli", "continuous_bernoulli", "gaussian", "discretised_logistic"],
)
def test_output_bias_starts_at_the_mean_image(name: str) -> None:
    """With output_bias_from_mean the untrained decoder predicts about the mean image; without, it doesn't."""
    pixel_mean = torch.linspace(0.05, 0.95, 200)
    p = likelihood(name)
    errors = []
    for output_bias_from_mean in (True, False):
        torch.manual_seed(0)
        recipe = Recipe(
            hidden=(20,),
            latent_size=3,
            init="truncated_normal",
            likelihood=name,
            output_bias_from_mean=output_bias_from_mean,
        )
        model = build(recipe, 200, PixelMoments(pixel_mean, torch.full((200,), 0.1)))
        decoded = p.mean(model.decode(randn(50, 3))).detach()
        errors.append(float((decoded - pixel_mean).abs().max()))
    assert errors[0] < 0.02
    assert errors[1] > 0.3


def test_output_bias_needs_the_mean_image() -> None:
    """Without the mean image, or with one of another size, build refuses in one line."""
    recipe = Recipe(output_bias_from_mean=True)
    with pytest.raises(UserError, match=r"needs the mean training image, \(12,\); none was given"):
        build(recipe, 12)
    with pytest.raises(UserError, match=r"its shape is \(11,\)"):
        build(recipe, 12, PixelMoments(torch.zeros(11), torch.ones(11)))


def test_unknown_activation() -> None:
    """A name that no activation has is refused, naming those that exist."""
    with pytest.raises(UserError, match=r"No activation 'swish'.*silu"):
        small(activation="swish")


# Arithmetic


def test_bf16_autocast_keeps_the_loss_in_float32() -> None:
    """Under bf16 autocast the products are bf16, the posterior and the loss float32, and near fp32's."""
    torch.manual_seed(0)
    model = VAE(64, (32,), 4, 1)
    x, noise = torch.rand(16, 64, generator=torch.Generator().manual_seed(0)), randn(16, 4)
    p = likelihood("cross_entropy")
    exact = elbo_terms(model, p, x, noise)
    with torch.autocast("cpu", torch.bfloat16):
        parameters, mean, log_var = model(x, noise)
        low = elbo_terms(model, p, x, noise)
    assert parameters.dtype == torch.bfloat16
    assert {mean.dtype, log_var.dtype, low.distortion.dtype, low.kl.dtype} == {torch.float32}
    torch.testing.assert_close(low.loss, exact.loss, rtol=5e-3, atol=0)
    assert not torch.equal(low.loss, exact.loss)


@pytest.mark.parametrize(
    "name", ["cross_entropy", "continuous_bernoulli", "gaussian", "discretised_logistic"]
)
@pytest.mark.parametrize("residual", [False, True])
def test_the_training_loss_is_one_graph(name: str, residual: bool) -> None:
    """torch.compile takes the loss without a graph break, and a beta in a tensor without compiling again."""
    p = likelihood(name)
    torch.manual_seed(0)
    model = VAE(12, (9, 5), 3, p.parameters_per_pixel, residual=residual)
    x, noise = torch.rand(4, 12), randn(4, 3)
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def loss(x: Tensor, noise: Tensor, beta: Tensor) -> Tensor:
        terms = elbo_terms(model, p, x, noise)
        return objective(terms.distortion, terms.kl, beta, 0.01)

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend=count, fullgraph=True)
    for beta in (torch.tensor(0.1), torch.tensor(0.2)):
        gradients = []
        for function in (compiled, loss):
            model.zero_grad()
            function(x, noise, beta).backward()
            gradients.append(nn.utils.parameters_to_vector([w.grad for w in model.parameters()]))
        torch.testing.assert_close(*gradients)
    assert len(graphs) == 1
