"""A saved state that doesn't fit changes nothing: the training goes on to the undisturbed curve."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from vae.data.dataset import Dataset
from vae.evaluation import Evaluation
from vae.recipe import Recipe
from vae.training import Training, train

TAU = 2_000
KINDS: list[dict[str, Any]] = [
    {},
    {"optimizer": "sgd"},
    {"optimizer": "momentum", "weight_decay": 0.1},
    {"optimizer": "muon", "ema_decay": 0.9},
    {"optimizer": "schedule_free_adamw", "dropout": 0.1},
    {"compile": True},
]


pytestmark = pytest.mark.usefixtures("one_thread")


def training_of(data: Dataset, **changes: Any) -> Training:
    recipe = Recipe(hidden=(16,), latent_size=3, batch_size=64).replace(**changes)
    return train(recipe, data, TAU)


def part_of(run: Training, n: int) -> list[Evaluation]:
    return [replace(next(iter(run)), train_seconds=0.0) for _ in range(n)]


def places(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a state."""
    if path:
        yield path
    for key in state if isinstance(state, dict) else range(len(state)) if isinstance(state, list) else ():
        yield from places(state[key], (*path, key))


def changed(state: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy in which `change` was made to what holds the last key of the path."""
    state = copy.deepcopy(state)
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return state


def drop(holder: Any, key: Any) -> None:
    del holder[key]


def add(holder: Any, _: Any) -> None:
    holder.update(more=1) if isinstance(holder, dict) else holder.append(holder[0])


def retype(holder: Any, key: Any) -> None:
    holder[key] = {"a": 1} if isinstance(holder[key], str) else "7"


def reshape(holder: Any, key: Any) -> None:
    value = holder[key]
    holder[key] = torch.cat([value.flatten(), value.flatten()[:1]]) if torch.is_tensor(value) else [value]


def redtype(holder: Any, key: Any) -> None:
    value = holder[key]
    holder[key] = value.to(torch.float64) if torch.is_tensor(value) else (value,)


@pytest.mark.parametrize("change", [drop, add, retype, reshape, redtype])
@pytest.mark.parametrize("kind", KINDS[:-1], ids=str)
def test_a_state_that_does_not_fit_changes_nothing(
    digits: Dataset, kind: dict[str, Any], change: Callable[[Any, Any], None]
) -> None:
    """Anywhere in it: a key gone, a key more, another type, shape or dtype. Each is refused with a ValueError, and
    after all of them the training that was asked to load it is bitwise the one that never was."""
    run = training_of(digits, **kind)
    part_of(run, 8)
    state = run.state_dict()
    expected = part_of(training_of(digits, **kind), 20)
    fresh = training_of(digits, **kind)
    tried = 0
    for path in places(state):
        with pytest.raises(ValueError, match=r"state|step|rule|random|recipe"):
            fresh.load_state_dict(changed(state, path, change))
        tried += 1
    assert tried > 20
    assert part_of(fresh, 20) == expected
    fresh.load_state_dict(state)
    assert fresh.steps == run.steps


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no dict": lambda state: [state],
    "None": lambda state: None,  # noqa: ARG005
    "recipe": lambda state: state | {"recipe": state["recipe"].replace("0.001", "0.002")},
    "tau": lambda state: state | {"tau": TAU + 1},
    "outcome": lambda state: state | {"outcome": "won"},
    "negative": lambda state: state | {"steps": -1, "examples": -64},
    "examples": lambda state: state | {"examples": state["examples"] + 1},
    "number": lambda state: state | {"number": 10**6},
    "seconds": lambda state: state | {"train_seconds": float("nan")},
    "true": lambda state: state | {"steps": True},
    "generator": lambda state: state | {"random": [torch.full_like(state["random"][0], 255)]},
    "no steps": lambda state: state | {"steps": 0, "examples": 0},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_state_of_wrong_values_changes_nothing(digits: Dataset, name: str) -> None:
    """Another recipe or budget, counts that can't be, an outcome that is none, a generator that torch refuses."""
    run = training_of(digits)
    part_of(run, 8)
    expected = part_of(training_of(digits), 20)
    fresh = training_of(digits)
    with pytest.raises(ValueError, match=r"state|random|rule"):
        fresh.load_state_dict(WRONG[name](copy.deepcopy(run.state_dict())))
    assert part_of(fresh, 20) == expected


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_state_of_another_rule_changes_nothing(digits: Dataset, kind: dict[str, Any]) -> None:
    """The step of every other optimizer is refused where the rest fits."""
    fresh = training_of(digits, **kind)
    before = copy.deepcopy(fresh.state_dict())
    for other in KINDS:
        if other == kind:
            continue
        step = training_of(digits, **other).state_dict()["step"]
        with pytest.raises(ValueError, match=r"step|rule|state of the optimizer"):
            fresh.load_state_dict(before | {"step": step})
    fresh.load_state_dict(before)


def test_a_state_before_the_first_step_loads(digits: Dataset) -> None:
    """Rules have no tensors yet then."""
    for kind in KINDS[:-1]:
        run = training_of(digits, **kind)
        run.load_state_dict(copy.deepcopy(training_of(digits, **kind).state_dict()))
        assert part_of(run, 3) == part_of(training_of(digits, **kind), 3)
