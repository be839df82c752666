"""Optimizers against torch's, against closed forms, and against themselves resumed."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from vae.elbo import elbo_terms, objective
from vae.likelihoods import likelihood
from vae.model.mlp import VAE, build
from vae.optim.optimizer import Groups, Optimizer
from vae.recipe import OptimizerName, Recipe

OPTIMIZERS = get_args(OptimizerName)


def recipe_of(name: str, **changes: Any) -> Recipe:
    return Recipe(hidden=(16, 12), latent_size=3, optimizer=name, lr=0.01).replace(**changes)


def trained(recipe: Recipe) -> tuple[VAE, Optimizer, Callable[[], Tensor]]:
    """A seeded VAE of 20 pixels, its optimizer, and its loss on one fixed batch with fixed noise."""
    torch.manual_seed(0)
    model = build(recipe, 20)
    return model, Optimizer(Groups.of(model), recipe), loss_of(model)


def loss_of(model: VAE) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(64, 3, generator=generator) @ torch.rand(3, 20, generator=generator) / 3).clamp(0, 1)
    noise = torch.randn(64, 3, generator=generator)

    def loss() -> Tensor:
        terms = elbo_terms(model, likelihood("cross_entropy"), x, noise)
        return objective(terms.distortion, terms.kl, 1.0)

    return loss


def clear(optimizer: Optimizer) -> None:
    for parameter in optimizer._parameters:
        parameter.grad = None


def run(optimizer: Optimizer, loss: Callable[[], Tensor], n_steps: int) -> list[float]:
    """n_steps steps with a change to evaluation and back between them; the loss before each."""
    losses = []
    for _ in range(n_steps):
        optimizer.train()
        clear(optimizer)
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
        optimizer.eval()
    optimizer.train()
    return losses


def flat(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(name: str) -> None:
    """50 steps lower a VAE's loss by more than half a nat, and the evaluated weights share in it."""
    _, optimizer, loss = trained(recipe_of(name))
    before = float(loss().detach())
    losses = run(optimizer, loss, 50)
    optimizer.eval()
    assert losses[0] == before
    assert losses[-1] < before - 0.5
    assert float(loss().detach()) < before - 0.5


REFERENCE: dict[str, Callable[[Iterator[nn.Parameter], float], torch.optim.Optimizer]] = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    "nesterov": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr),
    "adam": lambda p, lr: torch.optim.Adam(p, lr),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.0),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_rules_are_torchs(name: str) -> None:
    """Without weight decay, 20 steps are those of torch's plain single-tensor optimizer."""
    recipe = recipe_of(name)
    model, optimizer, loss = trained(recipe)
    run(optimizer, loss, 20)
    other, _, other_loss = trained(recipe)
    theirs = REFERENCE[name](other.parameters(), recipe.lr)
    for _ in range(20):
        theirs.zero_grad()
        other_loss().backward()
        theirs.step()
    torch.testing.assert_close(flat(model), flat(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_decoupled_and_spares_biases(name: str) -> None:
    """Where gradients are 0, each step multiplies matrices by 1 - lr * weight_decay and leaves biases."""
    recipe = recipe_of(name, lr=0.1, weight_decay=0.5)
    model, optimizer, _ = trained(recipe)
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer.set_lr(0.2)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, value in model.named_parameters():
        expected = start[key] * (0.9 if value.ndim == 2 else 1.0)
        torch.testing.assert_close(value.detach(), expected, rtol=1e-6, atol=1e-7)


def test_adam_with_decay_is_adamw() -> None:
    """adam and adamw with weight decay are torch.optim.AdamW with decay on matrices only."""
    recipe = recipe_of("adam", weight_decay=0.3)
    model, optimizer, loss = trained(recipe)
    run(optimizer, loss, 20)
    other, _, other_loss = trained(recipe)
    groups = [
        {"params": [p for p in other.parameters() if p.ndim == 2], "weight_decay": 0.3},
        {"params": [p for p in other.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, recipe.lr, foreach=False)
    for _ in range(20):
        theirs.zero_grad()
        other_loss().backward()
        theirs.step()
    torch.testing.assert_close(flat(model), flat(other), rtol=1e-4, atol=1e-5)


def test_decay_by_hand_is_decay_by_torch() -> None:
    """The decay written for rules that have none of their own, put before Adam, is AdamW's."""
    recipe = recipe_of("adamw", weight_decay=0.3)
    model, optimizer, loss = trained(recipe)
    run(optimizer, loss, 10)
    other, by_hand, other_loss = trained(recipe_of("sgd", lr=recipe.lr, weight_decay=0.3))
    by_hand._rules = [torch.optim.Adam(other.parameters(), recipe.lr)]
    run(by_hand, other_loss, 10)
    torch.testing.assert_close(flat(model), flat(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("while_evaluating", [False, True])
def test_resumed_is_uninterrupted(name: str, while_evaluating: bool) -> None:
    """State and weights through a file, also in the middle of an evaluation, give bitwise the same run."""
    recipe = recipe_of(name, weight_decay=0.1)
    model, optimizer, loss = trained(recipe)
    run(optimizer, loss, 5)
    optimizer.set_lr(0.007)
    if while_evaluating:
        optimizer.eval()
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    expected = run(optimizer, loss, 5)

    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    torch.manual_seed(1)
    resumed = build(recipe, 20)
    resumed.load_state_dict(weights)
    resumed_optimizer = Optimizer(Groups.of(resumed), recipe)
    resumed_optimizer.check(state, 5)
    resumed_optimizer.load_state_dict(state)
    assert run(resumed_optimizer, loss_of(resumed), 5) == expected
    assert torch.equal(flat(resumed), flat(model))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loading_takes_a_copy(name: str) -> None:
    """Two optimizers that loaded one state in memory don't move each other."""
    recipe = recipe_of(name)
    model, optimizer, loss = trained(recipe)
    run(optimizer, loss, 3)
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    curves = []
    for _ in range(2):
        other = build(recipe, 20)
        other.load_state_dict(weights)
        other_optimizer = Optimizer(Groups.of(other), recipe)
        other_optimizer.load_state_dict(state)
        curves.append(run(other_optimizer, loss_of(other), 3))
    assert curves[0] == curves[1]


def test_state_of_another_rule_is_refused() -> None:
    """The state of another optimizer, or of other parameters, doesn't load."""
    _, adam, _ = trained(recipe_of("adam"))
    for name in OPTIMIZERS:
        if name != "adam":
            _, other, _ = trained(recipe_of(name))
            with pytest.raises(ValueError, match=f"state of the optimizer '{name}', not of 'adam'"):
                adam.check(other.state_dict(), 0)
    _, deeper, _ = trained(recipe_of("adam", hidden=(16, 12, 12)))
    with pytest.raises(ValueError, match=r"rule\.rules\.0\.param_groups\.0\.params has 16 parts, not 12"):
        adam.check(deeper.state_dict(), 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_lr_reaches_every_parameter(name: str) -> None:
    """At lr 0 a step moves nothing; at another lr it moves every tensor."""
    model, optimizer, loss = trained(recipe_of(name))
    start = flat(model)
    optimizer.set_lr(0.0)
    run(optimizer, loss, 1)
    assert torch.equal(flat(model), start)
    optimizer.set_lr(0.01)
    before = [p.detach().clone() for p in model.parameters()]
    run(optimizer, loss, 2)
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_evaluation_leaves_training_alone(name: str) -> None:
    """A run that switches to evaluation after each step ends bitwise where one that never does ends."""
    model, optimizer, loss = trained(recipe_of(name))
    run(optimizer, loss, 8)
    other, optimizer, loss = trained(recipe_of(name))
    for _ in range(8):
        clear(optimizer)
        loss().backward()
        optimizer.step()
    assert torch.equal(flat(model), flat(other))


def test_schedule_free_evaluates_the_average() -> None:
    """In evaluation the weights are the average x of the sequence z, of Defazio et al. 2024, eq. 3-5."""
    recipe = recipe_of("schedule_free_adamw")
    model, optimizer, loss = trained(recipe)
    x = z = flat(model).double()
    v = torch.zeros_like(z)
    for step in range(1, 9):
        clear(optimizer)
        loss().backward()
        gradient = nn.utils.parameters_to_vector([p.grad for p in model.parameters()]).double()
        y = 0.1 * z + 0.9 * x
        torch.testing.assert_close(flat(model).double(), y, rtol=1e-4, atol=1e-5)
        v = 0.999 * v + 0.001 * gradient.square()
        z = z - recipe.lr * gradient / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        x = x + (z - x) / step
        optimizer.step()
    optimizer.eval()
    torch.testing.assert_close(flat(model).double(), x, rtol=1e-4, atol=1e-5)
    optimizer.eval()
    torch.testing.assert_close(flat(model).double(), x, rtol=1e-4, atol=1e-5)


def test_schedule_free_refuses_to_step_while_evaluating() -> None:
    """A step on the evaluated weights would corrupt the average."""
    _, optimizer, loss = trained(recipe_of("schedule_free_adamw"))
    run(optimizer, loss, 1)
    optimizer.eval()
    loss().backward()
    with pytest.raises(Exception, match="not in train mode"):
        optimizer.step()


def test_muon_moves_hidden_matrices_orthogonally() -> None:
    """Hidden matrices take about orthogonal steps of AdamW's size; all else moves exactly as under AdamW."""
    recipe = recipe_of("muon")
    model, optimizer, loss = trained(recipe)
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    run(optimizer, loss, 1)
    adam_model, adam, adam_loss = trained(recipe_of("adamw"))
    run(adam, adam_loss, 1)
    hidden = [f"{network}.layers.{i}.weight" for network in ("encoder", "decoder") for i in (0, 1)]
    for key, value in model.named_parameters():
        if key not in hidden:
            assert torch.equal(value, adam_model.get_parameter(key))
            continue
        step = (value - start[key]).detach() / recipe.lr
        scale = 0.2 * max(step.shape) ** 0.5
        singular = torch.linalg.svdvals(step) / scale
        assert singular.max() < 1.3  # the quintic iteration brings singular values near 1, not to it
        assert singular.max() > 0.6
        assert (singular > 0.4).sum() >= 3
        assert float(step.square().mean().sqrt()) < 0.3


def test_a_model_without_readouts_can_be_optimized() -> None:
    """A network of one's own, which names no readouts and has no biases, works with every rule."""
    for name in OPTIMIZERS:
        torch.manual_seed(0)
        model = nn.Linear(4, 3, bias=False)
        optimizer = Optimizer(Groups.of(model), recipe_of(name))
        start = flat(model)
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(flat(model), start)
