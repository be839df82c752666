"""Every way to take a step is the same step."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
from small_vae import Own, batch_of, model_of, recipe_of, take
from torch import nn

from vae.elbo import elbo_terms, objective
from vae.errors import UserError
from vae.likelihoods import likelihood
from vae.model.mlp import VAE
from vae.optim.adamw import AdamW
from vae.optim.optimizer import Groups, Optimizer
from vae.recipe import OptimizerName
from vae.step.flat import Flat
from vae.step.step import build_step

OPTIMIZERS = get_args(OptimizerName)
STEPS: list[dict[str, Any]] = [
    *({"optimizer": name} for name in OPTIMIZERS),
    {"weight_decay": 0.3, "clip_norm": 0.5, "ema_decay": 0.9},
    {"optimizer": "momentum", "weight_decay": 0.3, "dropout": 0.2},
    {"optimizer": "muon", "weight_decay": 0.3, "hidden": (16, 16, 12), "residual": True},
    {"free_bits": 0.05, "likelihood": "gaussian", "activation": "gelu"},
]


@pytest.mark.parametrize("changes", STEPS, ids=str)
def test_steps_by_hand_are_steps_by_autograd(changes: dict[str, Any]) -> None:
    """8 steps of every optimizer, with decay, clipping, averages and dropout, end at the same weights whether
    the model is known (hand-made gradient) or one's own (autograd)."""
    recipe = recipe_of(**changes)
    p_x = likelihood(recipe.likelihood)
    hand, auto = (build_step(model_of(recipe, kind), p_x, recipe) for kind in (VAE, Own))
    torch.testing.assert_close(take(hand, 8), take(auto, 8), rtol=1e-4, atol=1e-5)
    # Muon orthogonalises: a rounding error in a direction of almost no gradient becomes a whole step.
    tolerance = 1e-3 if recipe.optimizer == "muon" else 2e-5
    torch.testing.assert_close(hand.flat.values, auto.flat.values, rtol=0, atol=tolerance)
    if hand.average is not None:
        torch.testing.assert_close(hand.average, auto.average, rtol=0, atol=tolerance)
        assert not torch.equal(hand.average, hand.flat.values)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_on_the_flat_tensor_are_steps_on_the_parameters(name: str) -> None:
    """Each rule with weight decay moves joined parameters as it moves the model's own, biases undecayed."""
    recipe = recipe_of(optimizer=name, weight_decay=3.0)
    p_x = likelihood(recipe.likelihood)
    step = build_step(model_of(recipe), p_x, recipe)
    take(step, 8)
    model = model_of(recipe)
    optimizer = Optimizer(Groups.of(model), recipe)
    for i in range(8):
        model.zero_grad()
        terms = elbo_terms(model, p_x, *batch_of(i))
        objective(terms.distortion, terms.kl, min(1.0, i / 4)).backward()
        optimizer.set_lr(0.01 / (1 + i))
        optimizer.step()
    expected = torch.cat([model.get_parameter(key).flatten() for key, _ in step.flat.layout])
    torch.testing.assert_close(step.flat.values, expected, rtol=0, atol=1e-3 if name == "muon" else 2e-5)


def test_clipping_is_torchs() -> None:
    """The clipped gradient is that of torch.nn.utils.clip_grad_norm_, and the norm recorded is from before."""
    recipe = recipe_of(clip_norm=0.5, optimizer="sgd")
    model = model_of(recipe)
    step = build_step(model, likelihood(recipe.likelihood), recipe)
    [(_, norm)] = take(step, 1)
    other = model_of(recipe)
    x, noise = batch_of(0)
    elbo_terms(
        other, likelihood(recipe.likelihood), x, noise
    ).distortion.mean().backward()  # beta starts at 0
    expected = nn.utils.clip_grad_norm_(other.parameters(), 0.5)
    assert norm == pytest.approx(float(expected), rel=1e-5)
    assert norm > 0.5
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw_is_torchs_to_the_last_bit(decay: float) -> None:
    """20 steps, and a state that goes over from one to the other and back."""
    parameters = [[nn.Parameter(torch.linspace(-1, 1, n).sin()) for n in (7, 1000)] for _ in range(2)]
    ours = AdamW(parameters[0], 0.01, weight_decay=decay, fused=True)
    theirs = torch.optim.AdamW(parameters[1], 0.01, weight_decay=decay, fused=True)
    for i in range(20):
        for p, q in zip(*parameters, strict=True):
            p.grad = (p.detach() * 7 + i).cos()
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
        if i == 10:
            states = copy.deepcopy((ours.state_dict(), theirs.state_dict()))
            ours.load_state_dict(states[1])
            theirs.load_state_dict(states[0])
    for p, q in zip(*parameters, strict=True):
        assert torch.equal(p, q)


def test_flat_parameters_are_the_models() -> None:
    """A model keeps its values, its parameter objects and its state's keys; each parameter is a view of the
    flat tensor: matrices first, then vectors."""
    model = model_of(recipe_of())
    before = copy.deepcopy(model.state_dict())
    objects = list(model.parameters())
    flat = Flat(model)
    assert list(model.parameters()) == objects
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert sum(p.numel() for p in objects) == len(flat.values)
    assert sum(p.numel() for p in objects if p.ndim == 2) == flat.n_matrices
    flat.values[: flat.n_matrices] = 1.0
    flat.values[flat.n_matrices :] = 2.0
    assert all(bool((p == (1.0 if p.ndim == 2 else 2.0)).all()) for p in objects)


def test_a_model_of_two_dtypes_is_refused() -> None:
    """With the dtypes named."""
    model = model_of(recipe_of())
    model.output.double()
    with pytest.raises(UserError, match=r"one dtype on one device.*float32 on cpu.*float64 on cpu"):
        Flat(model)
