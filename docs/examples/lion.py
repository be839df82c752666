"""Lion (Chen et al. 2023, arXiv:2302.06675): the sign of a momentum, one state per weight."""

import torch


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):  # noqa: ARG002 - torch gives it
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                direction = state["mean"].lerp(parameter.grad, 1 - beta1).sign_()
                parameter.add_(direction, alpha=-group["lr"])
                state["mean"].lerp_(parameter.grad, 1 - beta2)
