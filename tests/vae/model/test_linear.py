"""Linear layers by oneDNN: the same products, taken only where they pay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vae.likelihoods import likelihood
from vae.model import linear as products
from vae.model.linear import Linear, linear_by_onednn, onednn_is_faster
from vae.model.mlp import VAE, build
from vae.recipe import Recipe
from vae.step.flat import Flat
from vae.step.step import by_autograd, by_hand

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch without oneDNN"
)


@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_the_linear_layers(bias: bool) -> None:
    """Also of transposed matrices, as the gradients need them."""
    torch.manual_seed(0)
    x, weight = torch.randn(40, 70), torch.randn(30, 70)
    b = torch.randn(30) if bias else None
    expected = nn.functional.linear(x.double(), weight.double(), None if b is None else b.double())
    for left in (x, x.t().contiguous().t()):
        for right in (weight, weight.t().contiguous().t()):
            assert torch.allclose(linear_by_onednn(left, right, b).double(), expected, atol=1e-4)


def test_taken_for_large_float32_products_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor where MKL is slow, and never for a small product, another dtype or another device."""
    x, weight = torch.zeros(256, 784), torch.zeros(500, 784)
    monkeypatch.setattr(products, "_MKL_IS_SLOW", True)
    assert onednn_is_faster(x, weight)
    assert not onednn_is_faster(x[:1], weight)
    assert not onednn_is_faster(x.bfloat16(), weight.bfloat16())
    assert not onednn_is_faster(x.double(), weight.double())
    assert not onednn_is_faster(x.to("meta"), weight.to("meta"))
    assert not onednn_is_faster(x.expand(2, 256, 784), weight)
    monkeypatch.setattr(products, "_MKL_IS_SLOW", False)
    assert not onednn_is_faster(x, weight)


def test_a_layer_is_torchs_where_a_gradient_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With autograd, and under autocast, it is `nn.Linear`; without, oneDNN's result equals it to rounding."""
    taken: list[int] = []

    def spy(*arguments: torch.Tensor) -> torch.Tensor:
        taken.append(1)
        return linear_by_onednn(*arguments)

    monkeypatch.setattr(products, "_MKL_IS_SLOW", True)
    monkeypatch.setattr(products, "linear_by_onednn", spy)
    layer, x = Linear(784, 500), torch.randn(256, 784)
    with_gradient = layer(x)
    with_gradient.sum().backward()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert not taken
    with torch.inference_mode():
        assert torch.allclose(layer(x), with_gradient, atol=1e-5)
    assert taken


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # torch's own import
@pytest.mark.parametrize("compile_", [False, True])
def test_the_models_gradient_is_autograds(monkeypatch: pytest.MonkeyPatch, compile_: bool) -> None:
    """At a size where oneDNN is taken, eagerly and in a compiled graph."""
    monkeypatch.setattr(products, "_MKL_IS_SLOW", True)
    torch.manual_seed(0)
    recipe = Recipe(hidden=(300,), latent_size=30, compile=compile_)
    model, of = build(recipe, 400, None), likelihood(recipe.likelihood)
    flat = Flat(model)
    x, noise = torch.rand(256, 400), torch.randn(256, 30)
    by_autograd(model, flat, of, recipe.replace(compile=False))(x, noise, 0.7)
    expected = flat.gradient.clone()
    flat.gradient.zero_()
    with torch.no_grad():
        by_hand(flat, of, recipe)(x, noise, 0.7)
    assert torch.allclose(flat.gradient, expected, rtol=1e-4, atol=1e-5)


def test_every_layer_of_the_model_is_one() -> None:
    """Evaluation costs as much as training otherwise."""
    model = build(Recipe(hidden=(20, 10), residual=True), 64, None)
    assert isinstance(model, VAE)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(layers) > 4
    assert all(type(layer) is Linear for layer in layers)
