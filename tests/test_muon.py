"""Muon in float32: the same rule as torch's, without its bfloat16 rounding."""

import torch

from vae.muon import Muon, newton_schulz

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
