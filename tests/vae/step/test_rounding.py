"""bfloat16 on processors without units for it: the same numbers, multiplied in float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_vae import batch_of, model_of, recipe_of
from torch import Tensor

from vae import devices
from vae.likelihoods import likelihood
from vae.model.linear import linear_by_rounding
from vae.recipe import Recipe
from vae.step.backprop import Backprop, Knobs, Objective
from vae.step.flat import Flat, views

CPU = torch.device("cpu")


def test_a_product_is_rounded_once() -> None:
    """Of bfloat16 matrices it is the exact product rounded to bfloat16, as units for it give it, and no sum of rounded
    products; with a bias, and of transposed matrices."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(n, generator=generator).bfloat16() for n in ((40, 300), (30, 300), (30,)))
    for b in (None, bias):
        exact = torch.nn.functional.linear(x.double(), weight.double(), None if b is None else b.double())
        for left in (x, x.t().contiguous().t()):
            for right in (weight, weight.t().contiguous().t()):
                product = linear_by_rounding(left, right, b)
                assert product.dtype == torch.bfloat16
                # half a unit in the last of 8 bits, and what float32 loses of the sum
                torch.testing.assert_close(product.double(), exact, rtol=2.0**-8, atol=1e-5)


def gradient_of(recipe: Recipe, by_rounding: bool) -> tuple[float, Tensor]:
    """Loss and gradient in bfloat16 by hand."""
    flat = Flat(model_of(recipe))
    objective = replace(
        Objective.of(recipe, likelihood(recipe.likelihood), torch.float32, CPU), by_rounding=by_rounding
    )
    values, gradient = flat.values.bfloat16(), torch.zeros_like(flat.values, dtype=torch.bfloat16)
    backprop = Backprop(objective, views(values, flat.layout), views(gradient, flat.layout))
    with torch.no_grad():
        loss = backprop(*batch_of(0), Knobs(1.0, 0.0, 0.0))
    return float(loss), gradient.float()


@pytest.mark.parametrize(
    "changes",
    [{}, {"hidden": (16, 16, 12), "residual": True}, {"likelihood": "gaussian", "activation": "gelu"}],
    ids=str,
)
def test_rounding_gives_the_gradient_that_bf16_gives(changes: dict[str, Any]) -> None:
    """torch's own bfloat16 products, by native units where the machine has them, and products by rounding agree within
    the rounding that tells either from float32."""
    recipe = recipe_of(precision="bf16", **changes)
    loss, gradient = gradient_of(recipe, by_rounding=True)
    native_loss, native = gradient_of(recipe, by_rounding=False)
    assert loss == pytest.approx(native_loss, rel=1e-3)
    assert float((gradient - native).norm() / native.norm()) < 0.01


def test_the_choice_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only bfloat16, only on a processor without units, and then the machine's record says so."""
    p_x = likelihood("cross_entropy")
    for units in (True, False):
        monkeypatch.setattr(devices, "_processor_multiplies_bf16", lambda units=units: units)
        for precision in ("fp32", "bf16"):
            recipe = recipe_of(precision=precision)
            by_rounding = Objective.of(recipe, p_x, torch.float32, CPU).by_rounding
            assert by_rounding == (precision == "bf16" and not units)
            assert not Objective.of(recipe, p_x, torch.float32, torch.device("cuda")).by_rounding
        said = devices.machine(CPU).get("bf16")
        assert said == (None if units else "this processor has no bf16 units")
