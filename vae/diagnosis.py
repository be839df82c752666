"""What went wrong in a training that diverged or collapsed: where, and what to change.

A training pays nothing for it: what isn't in its evaluations is found by training once more from the same seed, up to
the step at which the first number was no number, and looking at each step of the last stretch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import cast

import torch
from torch import Tensor, nn

from vae.data.checks import scaling_hint
from vae.data.dataset import Dataset
from vae.elbo import Model
from vae.evaluation import Evaluation
from vae.recipe import Recipe
from vae.step.step import Taken
from vae.training import COLLAPSED_RATE, Training

#: log_var above which a posterior's variance, exp(log_var), is what drives a loss out of range.
WIDE_LOG_VAR = 20.0
#: A share of hidden units without an output on any image above which they are what is wrong.
MANY_DEAD = 0.5
#: Seconds of training beyond which it isn't trained once more: what the evaluations say must do.
MOST_SECONDS = 60.0
#: Images that hidden units are looked at with.
PROBE_IMAGES = 500


@dataclass(frozen=True)
class Divergence:
    """The step at which a number was first NaN or infinite."""

    step: int
    """From 1."""
    examples: int
    tensor: str
    """The first that was not finite, in the order of computation: a layer's output, log_var, the loss, the gradient."""
    log_var: float
    """The largest |log_var| of that batch's posteriors; NaN where it isn't known."""
    lr: float
    grad_norm: float
    """Of the last finite step; NaN for a first step."""
    usual_norm: float
    """The median of the evaluations before; NaN where there are none."""


Again = Callable[[], Training]
"""Makes the same training anew, at its start."""


def explain(training: Training, rows: Sequence[Evaluation], data: Dataset, again: Again | None) -> str:
    """What went wrong in sentences, one line; "" for a training that neither diverged nor collapsed.

    rows: its evaluations, all of them. again: None where it can't be had; then, and where it takes long, only what the
    evaluations say is known."""
    if training.outcome == "diverged":
        short = training.train_seconds <= MOST_SECONDS
        found = first_broken_step(again(), rows) if again is not None and short else None
        if found is None:  # each step was finite, as far as they were looked at: the evaluation wasn't
            broken, spread = on_validation(training, data)
            last = rows[-1]
            found = Divergence(
                last.steps,
                last.examples,
                f"{broken or 'the loss'} on validation images",
                spread,
                last.lr,
                last.grad_norm,
                math.nan,
            )
        return _divergence(training.recipe, found, scaling_hint(data.pixel_moments()))
    if training.outcome == "collapsed":
        return _collapse(training, rows, data)
    return ""


def first_broken_step(training: Training, rows: Sequence[Evaluation]) -> Divergence | None:
    """The same training, at its start, taken to the step at which its loss or gradient is first not finite; None where
    none is up to the last of `rows`: then only the validation loss was not."""
    good = [row for row in rows if math.isfinite(row.train_loss) and math.isfinite(row.valid_loss)]
    for row in good:  # in the stretches in which it was trained: the random numbers depend on them
        training.advance(row.steps - training.steps)
    probe = _Probe(training, good[-1].grad_norm if good else math.nan)
    training.watch(probe.look)
    usual = median(row.grad_norm for row in good) if good else math.nan
    for row in rows[len(good) :]:
        training.advance(row.steps - training.steps)
        if probe.tensor:
            step = probe.step
            return Divergence(
                step, step * training.batch_size, probe.tensor, probe.log_var, probe.lr, probe.norm, usual
            )
    return None


class _Probe:
    """Looks at each step until one breaks."""

    def __init__(self, training: Training, norm: float) -> None:
        self._training = training
        self._weights = self._copy()
        self.tensor = ""
        self.step, self.lr = 0, math.nan
        self.norm = norm  # of the last step before
        self.log_var = math.nan

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._training.model.state_dict().items()}

    def look(self, x: Tensor, noise: Tensor, lr: float, taken: Taken) -> None:
        """After a step."""
        if self.tensor:
            return
        norm = math.nan if taken.grad_norm is None else float(taken.grad_norm)
        loss = float(taken.loss)
        if math.isfinite(loss) and math.isfinite(norm):
            self.norm, self._weights = norm, self._copy()
            return
        self.step, self.lr = self._training.steps, lr
        self.tensor, self.log_var = self._where(x, noise, math.isfinite(loss))

    def _where(self, x: Tensor, noise: Tensor, loss_is_finite: bool) -> tuple[str, float]:
        """The first tensor that isn't finite with the weights before the step, and the largest |log_var|."""
        model = self._training.model
        after = self._copy()
        model.load_state_dict(self._weights)
        try:
            broken, spread = broken_tensor(model, x, noise)
        finally:
            model.load_state_dict(after)
        return broken or ("the gradient" if loss_is_finite else "the loss"), spread


def broken_tensor(model: nn.Module, x: Tensor, noise: Tensor) -> tuple[str, float]:
    """The first tensor that is NaN or infinite on the way of images (B, D), prepared, through a model, "" where none
    is; and the largest |log_var|."""
    broken: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(_: nn.Module, __: object, out: object) -> None:
            if isinstance(out, Tensor) and not bool(out.isfinite().all()):
                broken.append(f"the output of {name}")

        return look

    leaves = [(name, part) for name, part in model.named_modules() if name and not any(part.children())]
    handles = [part.register_forward_hook(hook(name)) for name, part in leaves]
    try:
        with torch.no_grad():
            mean, log_var = cast(Model, model).encode(x)
            std = torch.exp(0.5 * log_var)
            if not broken and not bool(std.isfinite().all()):
                broken.append("exp(log_var)")
            cast(Model, model).decode(mean + std * noise)
    finally:
        for handle in handles:
            handle.remove()
    return (broken or [""])[0], float(log_var.abs().max())


def on_validation(training: Training, data: Dataset) -> tuple[str, float]:
    """`broken_tensor` of validation images with the weights as they are."""
    x = training.likelihood.prepare_eval(data.valid.all(PROBE_IMAGES), torch.Generator()).to(training.device)
    noise = torch.ones(len(x), training.recipe.latent_size, device=training.device)
    with training.evaluated_weights() as model:
        return broken_tensor(model, x, noise)


def _divergence(recipe: Recipe, found: Divergence, scaling: str) -> str:
    """A stated rule to a suggestion: the data's scale first; else a lower lr, and clipping unless it is on."""
    lr, norm, usual = found.lr, found.grad_norm, found.usual_norm
    where = f"{found.tensor} became NaN or infinite at step {found.step:,} ({found.examples:,} examples)"
    facts = [f"lr {lr:.3g}"]
    norms = [f"{at:.3g} {when}" for at, when in ((norm, "before"), (usual, "usually")) if math.isfinite(at)]
    if norms:
        facts.append(f"gradient norm {', '.join(norms)}")
    if found.log_var > WIDE_LOG_VAR:
        facts.append(f"log_var reached {found.log_var:.3g}")
    return f"{where}; {', '.join(facts)}. {scaling or _calmer(recipe, lr, usual)}"


def _calmer(recipe: Recipe, lr: float, usual: float) -> str:
    ways = [f"lower lr (now {lr:.3g})"]
    if recipe.clip_norm is None:
        at = f"={usual:.1g}" if math.isfinite(usual) and usual > 0 else ""
        ways.append(f"set clip_norm{at}")
    if not recipe.warmup:
        ways.append("set warmup=0.05")
    if recipe.precision == "bf16":
        ways.append("use precision=fp32")
    return f"Try to {' or '.join([', '.join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)}."


def _collapse(training: Training, rows: Sequence[Evaluation], data: Dataset) -> str:
    """A stated rule to a suggestion: dead units ask for a lower lr; else what weighs the KL is to be eased."""
    recipe, last = training.recipe, rows[-1]
    most = max(rows, key=lambda row: row.active_units)
    units = (
        f"active units {last.active_units} of {recipe.latent_size} at the end"
        if most.active_units > last.active_units
        else f"active units {last.active_units} of {recipe.latent_size} all along"
    )
    if most.active_units > last.active_units:
        units += f", {most.active_units} after {most.examples:,} examples"
    facts = [f"KL {last.rate:.3g} nats at the end (below {COLLAPSED_RATE:g})", units]
    dead, hidden = dead_units(training, data)
    if hidden:
        facts.append(f"{dead} of {hidden} hidden units dead")
    if hidden and dead > MANY_DEAD * hidden:
        return f"{'; '.join(facts)}. Try a lower lr (now {recipe.lr:.3g}) or activation=leaky_relu."
    ways = []
    if recipe.beta > 1:
        ways.append(f"a lower beta (now {recipe.beta:g})")
    if not recipe.beta_warmup:
        ways.append("beta_warmup=0.3")
    if not recipe.free_bits:
        ways.append("free_bits=0.1")
    ways.append(f"a lower lr (now {recipe.lr:.3g})")
    return (
        f"{'; '.join(facts)}. Try {' or '.join([', '.join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)}."
    )


def dead_units(training: Training, data: Dataset) -> tuple[int, int]:
    """(hidden units that are 0 on each of some validation images, hidden units) of the networks that ship, with relu;
    (0, 0) for others, in which nothing is exactly 0."""
    from vae.model.mlp import Network

    if training.recipe.activation != "relu":
        return 0, 0
    outputs: list[Tensor] = []
    with training.evaluated_weights() as model:
        networks = [part for part in model.modules() if isinstance(part, Network)]
        handles = [
            layer.register_forward_hook(lambda _, __, out: outputs.append(out))
            for network in networks
            if not network.shortcuts
            for layer in network.layers
        ]
        try:
            x = training.likelihood.prepare_eval(data.valid.all(PROBE_IMAGES), torch.Generator())
            with torch.no_grad():
                mean, _ = cast(Model, model).encode(x.to(training.device))
                cast(Model, model).decode(mean)
        finally:
            for handle in handles:
                handle.remove()
    return sum(int((out <= 0).all(0).sum()) for out in outputs), sum(out.shape[1] for out in outputs)
