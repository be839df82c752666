"""Muon: the same rule as torch's, in the faster dtype of a processor."""

import pytest
import torch

from vae import devices
from vae.optim.muon import Muon, newton_schulz

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def test_orthogonalises_either_shape() -> None:
    """Every singular value ends near 1, whichever side of the matrix is longer, and the spaces stay."""
    torch.manual_seed(0)
    for shape in ((20, 50), (50, 20), (30, 30)):
        matrix = torch.randn(shape)
        found = newton_schulz(matrix, COEFFICIENTS, 5, 1e-7)
        assert found.shape == matrix.shape
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.3
        assert values.max() < 1.3
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        inner = left.T @ found @ right.T
        assert torch.allclose(inner, torch.diag(torch.diagonal(inner)), atol=1e-4)


def test_steps_agree_with_torch() -> None:
    """Ten steps end where torch.optim.Muon's do, up to the bfloat16 rounding of its orthogonalisation."""
    torch.manual_seed(0)
    start = torch.randn(12, 8)
    target = torch.randn(12, 8)
    ends = []
    for kind in (Muon, torch.optim.Muon):
        weight = torch.nn.Parameter(start.clone())
        rule = kind([weight], lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for _ in range(10):
            rule.zero_grad()
            (weight - target).square().sum().backward()
            rule.step()
        ends.append(weight.detach())
    moved = (ends[1] - start).norm()
    assert (ends[0] - ends[1]).norm() < 0.02 * moved
    assert moved > 0.5


@pytest.mark.parametrize(
    ("native", "shape", "same"),
    [(True, (128, 150), False), (True, (64, 150), True), (False, (128, 150), True)],
)
def test_bfloat16_only_where_it_is_native_and_pays(
    monkeypatch: pytest.MonkeyPatch, native: bool, shape: tuple[int, int], same: bool
) -> None:
    """A wide matrix is orthogonalised in bfloat16 on a processor that multiplies it natively, else in float32;
    either way to bfloat16's rounding of the same update."""
    monkeypatch.setattr(devices, "_processor_multiplies_bf16", lambda: native)
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape)
    Muon([weight], lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    update = weight.grad * 0.05 + weight.grad * 0.95 * 0.05  # Nesterov's, whose scale the iteration removes
    exact = -newton_schulz(update, COEFFICIENTS, 5, 1e-7) * 0.2 * max(shape) ** 0.5
    assert weight.dtype == torch.float32
    error = float((weight.detach() - exact).norm() / exact.norm())
    assert (error < 1e-4) == same
    assert error < 0.03
