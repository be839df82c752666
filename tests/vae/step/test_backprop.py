"""The gradient made by hand is autograd's."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from small_vae import PIXELS, SHAPES, Own, batch_of, model_of, recipe_of
from torch import Tensor

from vae.elbo import elbo_terms, objective
from vae.likelihoods import likelihood
from vae.model.mlp import ACTIVATIONS, VAE
from vae.recipe import LikelihoodName, Recipe
from vae.step.backprop import ACTIVATION_GRADIENTS, Backprop, Knobs, Objective
from vae.step.flat import Flat, views
from vae.step.step import build_step

LIKELIHOODS = get_args(LikelihoodName)


def by_autograd(model: VAE, recipe: Recipe, x: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Objective and gradients from `vae.elbo` alone."""
    model.zero_grad(set_to_none=True)
    terms = elbo_terms(model, likelihood(recipe.likelihood), x, noise)
    loss = objective(terms.distortion, terms.kl, recipe.beta, recipe.free_bits)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_hand(model: VAE, recipe: Recipe, x: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    flat = Flat(model)
    of = Objective.of(recipe, likelihood(recipe.likelihood), flat.values.dtype, flat.values.device)
    gradients = views(flat.gradient, flat.layout)
    with torch.no_grad():
        loss = Backprop(of, views(flat.values, flat.layout), gradients)(
            x, noise, Knobs(recipe.beta, recipe.free_bits, recipe.dropout)
        )
    return loss, gradients


def assert_same_gradient(recipe: Recipe, name: str = "") -> None:
    x, noise = batch_of(0, torch.float64)
    x = likelihood(recipe.likelihood).prepare_eval(x, torch.Generator())
    torch.manual_seed(5)  # dropout draws
    expected_loss, expected = by_autograd(model_of(recipe).double(), recipe, x, noise)
    torch.manual_seed(5)
    loss, found = by_hand(model_of(recipe).double(), recipe, x, noise)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0, msg=name)
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-12, msg=f"{name} {key}")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_by_hand_is_autograds(activation: str, shape: str) -> None:
    """For every activation and shape, objective and gradient equal autograd's to the last digits of a double."""
    assert_same_gradient(recipe_of(activation=activation, beta=0.7, **SHAPES[shape]))


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_by_hand_knows_every_likelihood(name: str, shape: str) -> None:
    """The same for every likelihood, with free bits that hold some dimensions and not others."""
    assert_same_gradient(recipe_of(likelihood=name, free_bits=0.02, beta=2.0, **SHAPES[shape]))


def test_free_bits_of_that_size_hold_some_dimensions_only() -> None:
    """The test above would say nothing if the bound held all dimensions or none."""
    x, noise = batch_of(0)
    terms = elbo_terms(model_of(recipe_of()), likelihood("cross_entropy"), x, noise)
    held = terms.kl.mean(0) < 0.02
    assert 0 < int(held.sum()) < len(held)


@pytest.mark.parametrize("shape", SHAPES)
def test_dropout_by_hand_is_torchs(shape: str) -> None:
    """Masks are drawn as torch.nn.functional.dropout draws them, so even dropout's gradient is autograd's."""
    recipe = recipe_of(dropout=0.3, **SHAPES[shape])
    assert_same_gradient(recipe)
    x, noise = batch_of(0, torch.float64)
    model = model_of(recipe).double()
    losses = [float(by_hand(copy.deepcopy(model), recipe, x, noise)[0]) for _ in range(2)]
    assert losses[0] != losses[1]


def test_every_activation_has_its_gradient() -> None:
    """An activation added to the model without its derivative is found here, not in a user's run."""
    assert ACTIVATION_GRADIENTS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_a_likelihoods_total_and_gradient_are_those_of_its_log_prob(name: str, scale: float) -> None:
    """Also where the decoder is certain, and right or wrong."""
    p_x = likelihood(name)
    generator = torch.Generator().manual_seed(0)
    shape = (8, p_x.parameters_per_pixel * PIXELS)
    parameters = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    if name == "gaussian":
        parameters[:, PIXELS:] /= scale  # a log variance of 60 is no certainty
    parameters.requires_grad_()
    x = (torch.rand(8, PIXELS, generator=generator, dtype=torch.float64) < 0.5).double()
    p_x.log_prob(parameters, x).sum().backward()
    total, gradient = p_x.total_log_prob_and_gradient(parameters.detach(), x)
    torch.testing.assert_close(total, p_x.log_prob(parameters.detach(), x).sum(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradient, parameters.grad, rtol=1e-9, atol=1e-12)


def test_a_certain_decoder_keeps_its_total_in_float32() -> None:
    """The Bernoulli total in float32 is exact to rounding where log(1 - p) alone would be minus infinity."""
    logits = torch.tensor([[-200.0, -30.0, -3.0, 0.0, 3.0, 30.0, 200.0]])
    x = torch.tensor([[0.0, 1.0, 0.3, 0.5, 0.7, 0.0, 1.0]])
    p_x = likelihood("cross_entropy")
    total, _ = p_x.total_log_prob_and_gradient(logits, x)
    torch.testing.assert_close(
        total.double(), p_x.log_prob(logits.double(), x.double()).sum(), rtol=1e-6, atol=0
    )


def test_bf16_by_hand_is_autocast() -> None:
    """In bfloat16 the hand-made gradient is as near to the exact one as autocast's, and weights stay float32."""
    recipe = recipe_of(precision="bf16")
    x, noise = batch_of(0)
    gradients = {}
    for kind, precision in ((VAE, "fp32"), (VAE, "bf16"), (Own, "bf16")):
        model = model_of(recipe, kind)
        step = build_step(
            model, likelihood(recipe.likelihood), recipe.replace(precision=precision, optimizer="sgd")
        )
        step.take(x, noise, 0.0, 1.0)
        assert step.flat.values.dtype == torch.float32
        gradients[kind, precision] = step.flat.gradient.clone()
    exact = gradients[VAE, "fp32"]
    errors = [float((gradients[kind, "bf16"] - exact).norm() / exact.norm()) for kind in (VAE, Own)]
    assert 1e-5 < errors[0] < 0.02
    assert errors[0] < 1.5 * errors[1]
