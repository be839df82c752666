"""Compiled steps are the eager steps, and nothing is compiled twice."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_vae import Own, batch_of, model_of, recipe_of, take

from vae import devices
from vae.likelihoods import likelihood
from vae.step import compilation
from vae.step.step import CompiledAdam, build_step


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are traced in full but run by torch, not compiled to C++: seconds, not minutes."""
    real = torch.compile

    def compile_(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return real(function, backend="eager", **options)  # type: ignore[no-any-return]

    _forget()
    monkeypatch.setattr("torch.compile", compile_)
    yield
    _forget()


def _forget() -> None:
    torch._dynamo.reset()
    compilation.gradient_graph.cache_clear()
    compilation.step_graph.cache_clear()


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


COMPILED: list[dict[str, Any]] = [
    {"weight_decay": 0.3, "clip_norm": 0.5, "ema_decay": 0.9, "free_bits": 0.02},
    {"hidden": (16, 16, 12), "residual": True, "likelihood": "gaussian", "activation": "silu"},
    {"optimizer": "momentum", "likelihood": "continuous_bernoulli"},
    {"optimizer": "muon", "weight_decay": 0.3},
]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("changes", COMPILED, ids=str)
def test_compiled_steps_are_the_same_steps(changes: dict[str, Any]) -> None:
    """A graph of the whole step (Adam) or of the gradient (other rules) takes the eager step, also after its
    state went into another run; and a lr and a beta that change make no second graph."""
    recipe = recipe_of(**changes)
    p_x = likelihood(recipe.likelihood)
    eager = build_step(model_of(recipe), p_x, recipe)
    steps = [build_step(model_of(recipe), p_x, recipe.replace(compile=True)) for _ in range(2)]
    assert all(isinstance(step.rule, CompiledAdam) == (recipe.optimizer == "adam") for step in steps)
    before = _graphs()
    first = take(steps[0], 4)
    steps[1].flat.values.copy_(steps[0].flat.values)
    steps[1].check(steps[0].state_dict(), 4)
    steps[1].load_state_dict(copy.deepcopy(steps[0].state_dict()))
    torch.testing.assert_close(first + take(steps[1], 4, start=4), take(eager, 8), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(steps[1].flat.values, eager.flat.values, rtol=0, atol=1e-3)
    assert _graphs() == before + 1


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_a_compiled_step_rounds_where_there_are_no_units(
    monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """On a processor without bf16 units the graph has the products by rounding in it, as the eager step."""
    monkeypatch.setattr(devices, "_processor_multiplies_bf16", lambda: False)
    recipe = recipe_of(precision="bf16", optimizer=optimizer)
    p_x = likelihood(recipe.likelihood)
    eager, fast = (build_step(model_of(recipe), p_x, recipe.replace(compile=c)) for c in (False, True))
    torch.testing.assert_close(take(fast, 3), take(eager, 3), rtol=1e-2, atol=1e-3)


@pytest.mark.usefixtures("traced")
def test_knobs_that_are_tuned_share_a_graph_and_shapes_do_not() -> None:
    """Recipes that differ in lr, beta, decay, dropout, clipping and averages share one graph. Each batch size is
    a graph of its own, however many there are: torch gives up on a function after so many (8, here 2)."""
    before = _graphs()
    for knob in (0.1, 0.2):
        recipe = recipe_of(
            compile=True, lr=knob, beta=knob, weight_decay=knob, dropout=knob, clip_norm=knob, ema_decay=knob
        )
        take(build_step(model_of(recipe), likelihood(recipe.likelihood), recipe), 2)
    assert _graphs() == before + 1
    recipe = recipe_of(compile=True)
    step = build_step(model_of(recipe), likelihood(recipe.likelihood), recipe)
    x, noise = batch_of(0)
    with torch._dynamo.config.patch(recompile_limit=2):
        for n in range(1, 5):
            step.take(x[:n], noise[:n], 0.01, 1.0)
    assert _graphs() == before + 5


@pytest.mark.usefixtures("traced")
def test_a_model_of_ones_own_compiles_too() -> None:
    """By autograd, as one graph whatever beta does."""
    recipe = recipe_of()
    p_x = likelihood(recipe.likelihood)
    before = _graphs()
    own = build_step(model_of(recipe, Own), p_x, recipe.replace(compile=True))
    assert not isinstance(own.rule, CompiledAdam)
    torch.testing.assert_close(
        take(own, 4), take(build_step(model_of(recipe), p_x, recipe), 4), rtol=1e-4, atol=1e-5
    )
    assert _graphs() == before + 1


@pytest.mark.usefixtures("traced")
def test_a_compiled_steps_moments_lose_what_is_tiny() -> None:
    """As an eager step's (`test_no_moment_stays_subnormal`); what isn't tiny stays to the last bit."""
    recipe = recipe_of(compile=True)
    step = build_step(model_of(recipe), likelihood(recipe.likelihood), recipe)
    take(step, 2)
    moments = list(step.rule.moments())
    before = [moment.clone() for moment in moments]
    for moment in moments:
        moment[:5] = 1e-36
    step.remove_tiny()
    assert len(moments) == 2
    for moment, old in zip(moments, before, strict=True):
        assert moment[:5].tolist() == [0.0] * 5
        assert torch.equal(moment[5:], old[5:])


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated"
)  # torch's own import of inductor
def test_a_step_compiled_to_machine_code_is_the_same_step() -> None:
    """With torch's real compiler, once."""
    _forget()
    recipe = recipe_of(weight_decay=0.3, clip_norm=0.5, ema_decay=0.9)
    p_x = likelihood(recipe.likelihood)
    eager, fast = (build_step(model_of(recipe), p_x, recipe.replace(compile=c)) for c in (False, True))
    torch.testing.assert_close(take(fast, 6), take(eager, 6), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.flat.values, eager.flat.values, rtol=0, atol=2e-5)
    assert fast.average is not None
    assert eager.average is not None
    torch.testing.assert_close(fast.average, eager.average, rtol=0, atol=2e-5)
