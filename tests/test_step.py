"""The training step: the gradient made by hand is autograd's, and every way to take a step is the same step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from vae import compilation
from vae.adamw import AdamW
from vae.backprop import ACTIVATION_GRADIENTS, Backprop, Knobs, Objective
from vae.elbo import elbo_terms, likelihood, objective
from vae.errors import UserError
from vae.flat import Flat, views
from vae.model import ACTIVATIONS, VAE, build
from vae.recipe import LikelihoodName, OptimizerName, Recipe
from vae.step import CompiledStep, EagerStep, Step, build_step

PIXELS = 20
LIKELIHOODS = get_args(LikelihoodName)
OPTIMIZERS = get_args(OptimizerName)
#: Plain; residual with an identity and a projected shortcut; a single hidden layer.
SHAPES: list[dict[str, Any]] = [
    {"hidden": (16, 12)},
    {"hidden": (16, 16, 12), "residual": True},
    {"hidden": (16,)},
]


class Own(VAE):
    """The same network as a class that the hand-made gradient doesn't know."""


def recipe_of(**changes: Any) -> Recipe:
    return Recipe(hidden=(16, 12), latent_size=3, lr=0.01, batch_size=32).replace(**changes)


def model_of(recipe: Recipe, kind: type[VAE] = VAE) -> VAE:
    torch.manual_seed(recipe.seed)
    model = build(recipe, PIXELS)
    model.__class__ = kind
    return model


def batch_of(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(32, 3, generator=generator) @ torch.rand(3, PIXELS, generator=generator) / 3).clamp(0, 1)
    return x.to(dtype), torch.randn(32, 3, generator=generator).to(dtype)


def by_autograd(model: VAE, recipe: Recipe, x: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Objective and gradients from `vae.elbo` alone."""
    model.zero_grad(set_to_none=True)
    terms = elbo_terms(model, likelihood(recipe.likelihood), x, noise)
    loss = objective(terms.distortion, terms.kl, recipe.beta, recipe.free_bits)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_hand(model: VAE, recipe: Recipe, x: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    flat = Flat(model)
    of = Objective.of(recipe, likelihood(recipe.likelihood), flat.values.dtype)
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


@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "residual", "single"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_by_hand_is_autograds(activation: str, shape: dict[str, Any]) -> None:
    """For every activation and shape, objective and gradient equal autograd's to the last digits of a double."""
    assert_same_gradient(recipe_of(activation=activation, beta=0.7, **shape))


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "residual", "single"])
def test_the_gradient_by_hand_knows_every_likelihood(name: str, shape: dict[str, Any]) -> None:
    """The same for every likelihood, with free bits that hold some dimensions and not others."""
    assert_same_gradient(recipe_of(likelihood=name, free_bits=0.02, beta=2.0, **shape))


def test_free_bits_of_that_size_hold_some_dimensions_only() -> None:
    """The test above would say nothing if the bound held all dimensions or none."""
    x, noise = batch_of(0)
    terms = elbo_terms(model_of(recipe_of()), likelihood("cross_entropy"), x, noise)
    held = terms.kl.mean(0) < 0.02
    assert 0 < int(held.sum()) < len(held)


@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "residual", "single"])
def test_dropout_by_hand_is_torchs(shape: dict[str, Any]) -> None:
    """Masks are drawn as torch.nn.functional.dropout draws them, so even dropout's gradient is autograd's."""
    recipe = recipe_of(dropout=0.3, **shape)
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
        step(x, noise, 0.0, 1.0)
        assert step.flat.values.dtype == torch.float32
        gradients[kind, precision] = step.flat.gradient.clone()
    exact = gradients[VAE, "fp32"]
    errors = [float((gradients[kind, "bf16"] - exact).norm() / exact.norm()) for kind in (VAE, Own)]
    assert 1e-5 < errors[0] < 0.02
    assert errors[0] < 1.5 * errors[1]


STEPS: list[dict[str, Any]] = [
    *({"optimizer": name} for name in OPTIMIZERS),
    {"weight_decay": 0.3, "clip_norm": 0.5, "ema_decay": 0.9},
    {"optimizer": "momentum", "weight_decay": 0.3, "dropout": 0.2},
    {"optimizer": "muon", "weight_decay": 0.3, "hidden": (16, 16, 12), "residual": True},
    {"free_bits": 0.05, "likelihood": "gaussian", "activation": "gelu"},
]


def take(step: Step, n: int, start: int = 0) -> list[tuple[float, float]]:
    """n steps with a lr and a beta that change: loss and gradient norm of each."""
    taken = []
    for i in range(start, start + n):
        x, noise = batch_of(i)
        torch.manual_seed(i)
        taken.append(tuple(float(t) for t in step(x, noise, 0.01 / (1 + i), min(1.0, i / 4))))
    return taken


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


def test_clipping_is_torchs() -> None:
    """The clipped gradient is that of torch.nn.utils.clip_grad_norm_, and the norm recorded is from before."""
    recipe = recipe_of(clip_norm=0.5, optimizer="sgd")
    model = model_of(recipe)
    step = build_step(model, likelihood(recipe.likelihood), recipe)
    [(_, norm)] = take(step, 1)
    other = model_of(recipe)
    by_autograd(other, recipe.replace(beta=0.0), *batch_of(0))
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
    assert all(isinstance(step, CompiledStep) == (recipe.optimizer == "adam") for step in steps)
    before = _graphs()
    first = take(steps[0], 4)
    steps[1].flat.values.copy_(steps[0].flat.values)
    steps[1].load_state_dict(copy.deepcopy(steps[0].state_dict()))
    torch.testing.assert_close(first + take(steps[1], 4, start=4), take(eager, 8), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(steps[1].flat.values, eager.flat.values, rtol=0, atol=1e-3)
    assert _graphs() == before + 1


@pytest.mark.usefixtures("traced")
def test_knobs_that_are_tuned_share_a_graph_and_shapes_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes that differ in lr, beta, decay, dropout, clipping and averages share one graph. Each batch size is
    a graph of its own, however many there are: torch gives up on a function after so many (8, here 2)."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
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
    for n in range(1, 5):
        step(x[:n], noise[:n], 0.01, 1.0)
    assert _graphs() == before + 5


@pytest.mark.usefixtures("traced")
def test_a_model_of_ones_own_compiles_too() -> None:
    """By autograd, as one graph whatever beta does."""
    recipe = recipe_of()
    p_x = likelihood(recipe.likelihood)
    before = _graphs()
    own = build_step(model_of(recipe, Own), p_x, recipe.replace(compile=True))
    assert isinstance(own, EagerStep)
    torch.testing.assert_close(
        take(own, 4), take(build_step(model_of(recipe), p_x, recipe), 4), rtol=1e-4, atol=1e-5
    )
    assert _graphs() == before + 1


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
