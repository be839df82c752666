"""AdamW with less around its kernel, for models whose step takes microseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW(fused=True); on the CPU it calls the fused kernel itself.

    The kernel, and so each result to the last bit, is torch's; so are state and options. What falls away is
    the sorting of tensors by device and dtype at every step, which takes a small model as long as the update.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter with a gradient. Without a closure on the CPU."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and parameters[0].device.type != "cpu":
                return super().step(closure)  # type: ignore[no-any-return]
            self._update(parameters, group)
        return None

    def _update(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] or self._start(p) for p in parameters]
        for state in states:
            state["step"].add_(1.0)
        torch._fused_adamw_(
            parameters,
            [cast(torch.Tensor, p.grad) for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _start(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state = {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
        self.state[parameter] = state
        return state
