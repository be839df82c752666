"""Optimizers behind one interface, and their parameter groups."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, assert_never, cast

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from vae.code import RAISED, is_reference
from vae.optim.adamw import AdamW
from vae.optim.bring import own_rule, own_step
from vae.optim.muon import Muon
from vae.recipe import OptimizerName, Recipe
from vae.states import require_like

#: Adam's, torch's defaults (Kingma & Ba 2015); of every rule here that has them.
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Groups(NamedTuple):
    """The parameters to optimize, each tensor in one group only. A tensor may be several parameters joined:
    every rule but Muon's works element by element."""

    hidden: list[nn.Parameter]  # matrices that Muon moves; every other rule takes them as matrices
    matrices: list[nn.Parameter]  # the others that decay
    vectors: list[nn.Parameter]  # biases, which never decay

    @classmethod
    def of(cls, model: nn.Module) -> Groups:
        """All trainable parameters of a model, each by itself. Its `readouts`, if it names any (as `VAE`
        does), are not hidden."""
        readouts = {id(layer.weight) for layer in getattr(model, "readouts", ())}
        trainable = [p for p in model.parameters() if p.requires_grad]
        hidden = [p for p in trainable if p.ndim == 2 and id(p) not in readouts]
        others = [p for p in trainable if p.ndim > 2 or (p.ndim == 2 and id(p) in readouts)]
        return cls(hidden, others, [p for p in trainable if p.ndim < 2])


class Optimizer:
    """One interface over every rule of `recipe.optimizer`.

    - sgd; momentum and nesterov: momentum 0.9 (torch.optim.SGD).
    - rmsprop: alpha 0.99 (torch.optim.RMSprop).
    - adam, adamw: betas 0.9 and 0.999, one rule, since the decay is decoupled (torch.optim.AdamW's).
    - muon: torch.optim.Muon, see `vae.optim.muon` for the CPU (momentum 0.95, Nesterov, 5 Newton-Schulz steps), for the
      weights of hidden layers, AdamW for the readouts and the biases. Its updates are scaled to AdamW's root
      mean square (Liu et al. 2025, "match_rms_adamw"), so that one lr and one schedule serve both. The first
      layers of encoder and decoder count as hidden: their inputs are dense, unlike the embeddings that Jordan
      et al. leave out.
    - schedule_free_adamw: schedulefree.AdamWScheduleFree, betas 0.9 and 0.999; evaluated between `eval()` and
      `train()`, where the parameters are its average. For all others these two do nothing.
    - a class of one's own: see `vae.optim.bring`.

    Weight decay is decoupled for each of them (Loshchilov & Hutter 2019): w <- (1 - lr * weight_decay) w
    before the step (schedule-free: by the weights at which the gradient is taken), on matrices only, never on
    biases.
    """

    def __init__(self, groups: Groups, recipe: Recipe) -> None:
        self._name = recipe.optimizer
        self._is_own = is_reference(recipe.optimizer)
        self._groups, self._recipe = groups, recipe
        self._parameters = [*groups.hidden, *groups.matrices, *groups.vectors]
        matrices, vectors = [*groups.hidden, *groups.matrices], groups.vectors
        lr, decay = recipe.lr, recipe.weight_decay
        self._lr = lr
        self._weight_decay = decay
        self._decayed_here: list[Tensor] = []
        self._training_weights: list[Tensor] | None = None
        self._schedule_free: Any = None
        self._rules: list[torch.optim.Optimizer] = []
        decayed: list[Tensor] = [*matrices] if decay > 0 else []
        # torch has these kernels for all devices it is usually run on; elsewhere it chooses by itself
        fused = True if self._parameters[0].device.type in {"cpu", "cuda", "mps", "xpu"} else None
        if self._is_own:
            rule = own_rule(recipe, self._parameters)
            self._rules, self._decayed_here = [rule], decayed
            if callable(getattr(rule, "eval", None)) and callable(getattr(rule, "train", None)):
                self._schedule_free = rule
                self._schedule_free.train()
            return
        name = cast(OptimizerName, recipe.optimizer)
        if name == "sgd" or name == "momentum" or name == "nesterov":
            momentum = 0.0 if name == "sgd" else 0.9
            self._rules = [
                torch.optim.SGD(self._parameters, lr, momentum, nesterov=name == "nesterov", fused=fused)
            ]
            self._decayed_here = decayed
        elif name == "rmsprop":
            self._rules = [torch.optim.RMSprop(self._parameters, lr)]
            self._decayed_here = decayed
        elif name == "adam" or name == "adamw":
            self._rules = [_adamw(_groups(matrices, vectors, decay), lr, fused)]
        elif name == "muon":
            rest = _groups(groups.matrices, vectors, decay)
            if groups.hidden:
                self._rules.append(Muon(groups.hidden, lr, decay, adjust_lr_fn="match_rms_adamw"))
            if rest:
                self._rules.append(_adamw(rest, lr, fused))
        elif name == "schedule_free_adamw":
            self._schedule_free = AdamWScheduleFree(_groups(matrices, vectors, decay), lr)
            self._schedule_free.train()
            self._rules = [self._schedule_free]
        else:
            assert_never(name)

    def set_lr(self, lr: float) -> None:
        """The learning rate of the next steps."""
        if lr == self._lr:
            return
        self._lr = lr
        for rule in self._rules:
            for group in rule.param_groups:
                group["lr"] = lr

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients, which it may overwrite: read gradient norms before it."""
        if self._decayed_here:
            torch._foreach_mul_(self._decayed_here, 1.0 - self._lr * self._weight_decay)
        for rule in self._rules:
            if self._is_own:
                own_step(self._name, rule, self._parameters)
            else:
                _bare_step(cast(type, type(rule)))(rule)

    @property
    def averages(self) -> bool:
        """Whether `eval()` changes the weights."""
        return self._schedule_free is not None

    @torch.no_grad()
    def eval(self) -> None:
        """The parameters become those to evaluate; steps are refused until `train()`. Repeats do nothing."""
        if self._schedule_free is None or self._training_weights is not None:
            return
        # Its own way back rounds, so that evaluating would change the training: keep the weights instead.
        self._training_weights = [p.detach().clone() for p in self._parameters]
        self._schedule_free.eval()

    @torch.no_grad()
    def train(self) -> None:
        """The parameters become those to train, bitwise as `eval()` found them. Repeats do nothing."""
        if self._schedule_free is None or self._training_weights is None:
            return
        self._schedule_free.train()
        for parameter, kept in zip(self._parameters, self._training_weights, strict=True):
            parameter.copy_(kept)
        self._training_weights = None

    def moments(self) -> list[Tensor]:
        """The tensors that its rules keep, one number a parameter each."""
        states = [state for rule in self._rules for state in rule.state.values()]
        tensors = [kept for state in states for kept in state.values() if torch.is_tensor(kept)]
        return [kept for kept in tensors if kept.ndim > 0 and kept.is_floating_point()]

    def state_dict(self) -> dict[str, Any]:
        """All that, with the parameters, lets a run go on bitwise. Tensors are shared, not copied."""
        return {
            "optimizer": self._name,
            "lr": self._lr,
            "rules": [rule.state_dict() for rule in self._rules],
            "training_weights": self._training_weights,
        }

    def check(self, state: Any, steps: int) -> None:
        """ValueError unless it is a state of this rule for these parameters after so many steps; changes nothing."""
        if not isinstance(state, dict) or state.get("optimizer") != self._name:
            name = state.get("optimizer") if isinstance(state, dict) else None
            raise ValueError(f"state of the optimizer '{name}', not of '{self._name}'")
        if self._is_own:  # it may keep what it likes
            like = self.state_dict() | {"rules": state.get("rules")}
        else:
            like = self.state_dict() if steps == 0 else self._state_after_a_step()
        if state.get("training_weights") is not None:  # it was taken while another weight set was evaluated
            like["training_weights"] = [p.detach() for p in self._parameters]
        require_like(state, like, "rule")
        if self._is_own:
            self._try(state)

    def _try(self, state: dict[str, Any]) -> None:
        """ValueError unless another rule of one's own takes the state over, and then a step."""
        try:
            scratch = self._scratch()
            scratch.load_state_dict(state)
            scratch.step()
        except RAISED as error:
            raise ValueError(f"no state of the optimizer '{self._name}': {error}") from error

    def _state_after_a_step(self) -> dict[str, Any]:
        """What `state_dict` gives once a step was taken: rules make their tensors with the first."""
        optimizer = self._scratch()
        optimizer.step()
        return optimizer.state_dict()

    def _scratch(self) -> Optimizer:
        """The same over other parameters of the same shapes, so that nothing changes here; gradients are 0."""
        scratch = Groups(*([nn.Parameter(torch.zeros_like(p)) for p in group] for group in self._groups))
        for parameter in [p for group in scratch for p in group]:
            parameter.grad = torch.zeros_like(parameter)
        return Optimizer(scratch, self._recipe)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a copy of a state that `check` lets pass."""
        for rule, saved in zip(self._rules, state["rules"], strict=True):
            rule.load_state_dict(copy.deepcopy(saved))  # torch's own would share its tensors
        kept = state["training_weights"]
        if kept is not None:
            kept = [w.to(p.device, copy=True) for p, w in zip(self._parameters, kept, strict=True)]
        self._training_weights = kept
        self.set_lr(state["lr"])


@functools.cache
def _bare_step(kind: type) -> Callable[[torch.optim.Optimizer], object]:
    """The `step` of an optimizer class without the hooks and the profiler's annotation that torch wraps round
    it: on a small model they take longer than the update, and nothing hooks these rules."""
    return cast(Callable[[torch.optim.Optimizer], object], inspect.unwrap(kind.step))  # type: ignore[attr-defined]


def _adamw(groups: list[dict[str, Any]], lr: float, fused: bool | None) -> AdamW:
    return AdamW(groups, lr, betas=(BETA1, BETA2), eps=EPSILON, fused=fused)


def _groups(matrices: list[nn.Parameter], vectors: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay, vectors (biases) don't; an empty group is left out. Without decay one
    group has all, for torch updates each group by a call of its own."""
    if decay == 0:
        return [{"params": [*matrices, *vectors], "weight_decay": 0.0}] if matrices or vectors else []
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
