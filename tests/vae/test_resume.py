"""The same recipe is the same curve to the last bit, whatever interrupts it and whatever runs beside it."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from training_runs import curve, recipe_of, weights

from vae.data.dataset import Dataset
from vae.evaluation import Evaluation
from vae.recipe import OptimizerName
from vae.training import Training, train

TAU = 4_000
#: What a run's state is made of, one at a time and together.
STATEFUL: list[dict[str, Any]] = [
    *({"optimizer": name} for name in get_args(OptimizerName)),
    {"dropout": 0.2},
    {"ema_decay": 0.9, "clip_norm": 10.0},
    {"likelihood": "dynamic_bernoulli"},
    {"lr_schedule": "onecycle", "beta_warmup": 0.5, "weight_decay": 0.1, "precision": "bf16"},
    {"optimizer": "schedule_free_adamw", "dropout": 0.1, "ema_decay": 0.5, "likelihood": "dynamic_bernoulli"},
]


pytestmark = pytest.mark.usefixtures("one_thread")


def test_equal_recipes_are_equal_curves(digits: Dataset) -> None:
    """Bitwise, with evaluations and weights; another seed changes init, order and noise."""
    runs = [train(recipe_of(seed=seed), digits, TAU) for seed in (1, 1, 2)]
    start = [weights(run) for run in runs]
    curves = [curve(run) for run in runs]
    assert curves[0] == curves[1]
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(start[0], start[2])
    assert curves[0][-1].valid_loss != curves[2][-1].valid_loss


@pytest.mark.parametrize("changes", STATEFUL, ids=str)
def test_resumed_is_uninterrupted(digits: Dataset, changes: dict[str, Any]) -> None:
    """A state taken at any evaluation, loaded into a new run, goes on to bitwise the same curve and weights; and
    taking it leaves the run alone."""
    recipe = recipe_of(**changes)
    whole = train(recipe, digits, TAU)
    expected = curve(whole)
    cut = random.Random(str(changes)).randrange(1, len(expected))
    run = train(recipe, digits, TAU)
    before = [replace(next(iter(run)), train_seconds=0.0) for _ in range(cut)]
    state = copy.deepcopy(run.state_dict())
    resumed = train(recipe, digits, TAU)
    resumed.load_state_dict(state)
    assert resumed.train_seconds == run.train_seconds
    assert before + curve(resumed) == expected
    assert torch.equal(weights(resumed), weights(whole))
    assert before + curve(run) == expected
    assert resumed.outcome == whole.outcome == "completed"
    assert resumed.evaluate(digits.test) == whole.evaluate(digits.test)


def test_a_finished_state_stays_finished(digits: Dataset) -> None:
    """Loading the state of a run that ended yields nothing more, and the same final scores."""
    run = train(recipe_of(), digits, TAU)
    curve(run)
    again = train(recipe_of(), digits, TAU)
    again.load_state_dict(run.state_dict())
    assert curve(again) == []
    assert again.evaluate(digits.test) == run.evaluate(digits.test)


def test_a_state_of_another_recipe_or_budget_is_refused(digits: Dataset) -> None:
    """Nothing is loaded from it."""
    state = train(recipe_of(), digits, TAU).state_dict()
    for other in (train(recipe_of(lr=1e-3), digits, TAU), train(recipe_of(), digits, TAU + 1)):
        start = weights(other)
        with pytest.raises(ValueError, match="another recipe or budget"):
            other.load_state_dict(state)
        assert torch.equal(weights(other), start)


def test_runs_in_turn_are_runs_apart(digits: Dataset) -> None:
    """Two runs stepped alternately, with the caller drawing between, give the curves they give alone."""
    recipes = [recipe_of(dropout=0.2), recipe_of(seed=3, likelihood="dynamic_bernoulli", latent_size=2)]
    alone = [curve(train(recipe, digits, TAU)) for recipe in recipes]
    together: list[list[Evaluation]] = [[], []]
    for pair in zip(*(train(recipe, digits, TAU) for recipe in recipes), strict=True):
        torch.rand(3)
        for evaluations, evaluation in zip(together, pair, strict=True):
            evaluations.append(replace(evaluation, train_seconds=0.0))
    assert together == alone


def test_the_callers_randomness_and_modes_are_untouched(digits: Dataset) -> None:
    """torch's, numpy's and Python's generators stay where they were, and neither grad mode nor inference mode
    leaks out between evaluations; inside the caller's own no_grad the training still trains."""
    torch.manual_seed(7)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    run = train(recipe_of(dropout=0.2), digits, TAU)
    for _ in run:
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    run.advance(2)
    run.evaluate(digits.test)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    with torch.no_grad():
        unaware = train(recipe_of(dropout=0.2), digits, TAU)
        for _ in unaware:
            assert not torch.is_grad_enabled()
    assert torch.equal(weights(unaware), _after(run, digits))


def _after(run: Training, data: Dataset) -> Tensor:
    again = train(run.recipe, data, run.tau)
    curve(again)
    return weights(again)
