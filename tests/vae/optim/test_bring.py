"""Optimizers of one's own: any class of torch's, scheduled, decayed, resumed as the built-in rules are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vae.data.dataset import load
from vae.errors import UserError
from vae.recipe import Recipe
from vae.training import Training, train

RECIPE = Recipe(hidden=(16,), latent_size=3, batch_size=64, lr=1e-3)
LION = """
import torch


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["mean"] = torch.zeros_like(p)
                b1, b2 = group["betas"]
                p.add_(state["mean"].lerp(p.grad, 1 - b1).sign_(), alpha=-group["lr"])
                state["mean"].lerp_(p.grad, 1 - b2)


class Closing(torch.optim.SGD):
    def step(self, closure):
        return closure()


class Curved(torch.optim.SGD):
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                torch.autograd.grad(p.grad.sum(), p)


class Leaving(torch.optim.SGD):
    def step(self):
        raise SystemExit(3)


class Replacing(torch.optim.SGD):
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - p.grad


class Consuming(torch.optim.SGD):
    def step(self):
        super().step()
        self.zero_grad(set_to_none=True)


def function(params, lr):
    return None
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """own.py stands in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(LION)


def trained(recipe: Recipe, n_steps: int) -> Training:
    training = train(recipe, load("digits"), 4_000)
    training.advance(n_steps)
    return training


def weights(training: Training) -> Tensor:
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


@pytest.mark.parametrize(
    ("own", "options", "built_in"),
    [
        ("torch.optim:Adam", {}, "adam"),
        ("torch.optim:SGD", {"momentum": 0.9, "nesterov": True}, "nesterov"),
        ("torch.optim:AdamW", {"betas": [0.9, 0.999]}, "adam"),
        ("schedulefree:AdamWScheduleFree", {}, "schedule_free_adamw"),
    ],
)
def test_a_class_by_name_is_the_rule_of_ours(own: str, options: dict[str, Any], built_in: str) -> None:
    """The same updates to rounding, with a schedule and weight decay; what a class decays by itself is 0."""
    recipe = RECIPE.replace(lr_schedule="cosine", warmup=0.1)
    if built_in != "schedule_free_adamw":  # its decay is by the weights at which the gradient is taken
        recipe = recipe.replace(weight_decay=0.1)
    ours = trained(recipe.replace(optimizer=built_in), 12)
    theirs = trained(recipe.replace(optimizer=own, optimizer_options=options), 12)
    torch.testing.assert_close(weights(theirs), weights(ours), rtol=1e-4, atol=1e-6)
    split = load("digits").valid
    assert theirs.evaluate(split).loss == pytest.approx(ours.evaluate(split).loss, rel=1e-5)


def test_biases_do_not_decay() -> None:
    """Weight decay changes matrices alone, whatever the class does with its own."""
    recipe = RECIPE.replace(optimizer="torch.optim:AdamW", lr=0.1)
    plain, decayed = (
        trained(recipe.replace(weight_decay=decay), 1).model.state_dict() for decay in (0.0, 1.0)
    )
    for name, before in plain.items():
        assert torch.equal(before, decayed[name]) == (before.ndim == 1), name


@pytest.mark.parametrize(
    "name", ["own.py:Lion", "torch.optim:NAdam", "own.py:Consuming", "schedulefree:SGDScheduleFree"]
)
def test_resumed_is_uninterrupted(name: str) -> None:
    """A state written and read without unpickling goes on to the same weights, bitwise."""
    recipe = RECIPE.replace(optimizer=name, ema_decay=0.9, weight_decay=0.01)
    whole = trained(recipe, 5)
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    buffer.seek(0)
    resumed = train(recipe, load("digits"), 4_000)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    for training in (whole, resumed):
        training.advance(5)
    assert torch.equal(weights(whole), weights(resumed))


def test_a_state_of_other_shapes_is_refused() -> None:
    """Before anything is changed, with a ValueError, as for every rule."""
    recipe = RECIPE.replace(optimizer="own.py:Lion")
    state = trained(recipe, 2).state_dict()
    rule = state["step"]["rule"]["rules"][0]
    rule["state"][0]["mean"] = torch.zeros(3, 3)
    fresh = train(recipe, load("digits"), 4_000)
    before = weights(fresh)
    with pytest.raises(ValueError, match=r"no state of the optimizer 'own\.py:Lion'"):
        fresh.load_state_dict(state)
    assert torch.equal(weights(fresh), before)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("own.py:Lyon", {}, r"own.py has no 'Lyon'. Did you mean 'Lion'\?"),
        ("own.py:function", {}, "is no torch.optim.Optimizer class"),
        ("own.py:Lion", {"beta": 1.0}, r"can't be made with lr=0.001, beta=1.0: TypeError: .*'beta'"),
        (
            "torch.optim:Adam",
            {"betas": [2.0, 0.9]},
            r"betas=\(2.0, 0.9\): ValueError: Invalid beta parameter",
        ),
        ("own.py:Closing", {}, "fails in its step: TypeError.*by a closure, can't be used here"),
        (
            "own.py:Curved",
            {},
            r"step: line \d+: RuntimeError.*takes derivatives of the gradient can't be used here",
        ),
        ("own.py:Leaving", {}, r"own.py:Leaving fails in its step: line \d+: SystemExit: 3"),
        ("own.py:Replacing", {}, "puts other tensors in the place of its parameters"),
        ("no_such_library:Lion", {}, "There is no module 'no_such_library' here: install it"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    """A class that isn't there, isn't one, doesn't take its options or can't step: one line each."""
    with pytest.raises(UserError, match=words) as error:
        trained(RECIPE.replace(optimizer=name, optimizer_options=options), 1)
    assert "\n" not in str(error.value)
