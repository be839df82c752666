"""Muon with its orthogonalisation in float32 on processors that only emulate bfloat16.

torch.optim.Muon runs the Newton-Schulz iteration in bfloat16. On a processor with AVX2 only, a step on a
784 x 500 matrix took a hundred times as long that way as in float32; on one with avx512_bf16 it takes a quarter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae.devices import multiplies_bf16

#: Below this width of a matrix the conversion costs more than native bfloat16 saves.
BF16_FROM = 128


class Muon(torch.optim.Muon):
    """torch.optim.Muon (Jordan et al. 2024) with "match_rms_adamw" (Liu et al. 2025); on the CPU in the faster
    of float32 and bfloat16, so that its curves are a processor's own.

    State, options and update rule are torch's; on other devices so is the step itself.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every matrix. Without a closure on the CPU."""
        if any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            loss: float | None = super().step(closure)  # type: ignore[no-untyped-call]
            return loss
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return None

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        grad = parameter.grad
        assert grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad, memory_format=torch.preserve_format)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(grad, 1.0 - group["momentum"])
        update = grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        options = group["ns_coefficients"], group["ns_steps"], group["eps"]
        orthogonal = newton_schulz(update.to(_dtype_for(update)), *options)
        scale = 0.2 * max(parameter.shape) ** 0.5
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonal, alpha=-group["lr"] * scale)


def _dtype_for(matrix: Tensor) -> torch.dtype:
    native = matrix.dtype == torch.float32 and multiplies_bf16(matrix.device)
    return torch.bfloat16 if native and min(matrix.shape) >= BF16_FROM else matrix.dtype


def newton_schulz(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """An approximately orthogonal matrix with the row and column space of `matrix` (m, n), in its own dtype.

    The quintic iteration of Jordan et al. 2024: singular values end between about 0.7 and 1.2.
    """
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
