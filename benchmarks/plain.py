"""The same trials without us: plain Optuna round a plain PyTorch loop, as a careful user writes it.

One process, one Optuna study per arm in SQLite, a DataLoader, autograd, torch's own optimizers, the loss
evaluated and reported at the same points. Reads a plan (JSON: Optuna storage, threads, budget, trials) whose
trials each have a study's name, parameters, a recipe and the examples that it trained in the run it is held
against; prints seconds and losses as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from study.stopping.rules import REPORT_EVERY
from vae.data.dataset import Dataset, load
from vae.elbo import elbo_terms, objective
from vae.evaluation import GRID_IMAGES
from vae.grid import evaluation_grid
from vae.likelihoods import likelihood
from vae.model.mlp import VAE, build
from vae.optim.optimizer import BETA1, BETA2, EPSILON
from vae.optim.schedules import lr_factor
from vae.recipe import Recipe


def main(path: Path) -> None:
    """Run the plan's trials one after the other."""
    began = time.perf_counter()
    plan = json.loads(path.read_text(encoding="utf-8"))
    torch.set_num_threads(plan["threads"])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    data = load(plan["data"])
    tau = round(plan["budget"] * len(data.train))
    losses = []
    for planned in plan["trials"]:
        study = optuna.create_study(
            study_name=planned["study"],
            storage=plan["storage"],
            sampler=optuna.samplers.TPESampler(seed=0),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
            load_if_exists=True,
        )
        study.enqueue_trial(planned["params"])
        trial = study.ask()
        suggest(trial, planned["params"], plan["choices"])
        loss = run(trial, Recipe.from_json(planned["recipe"]), data, tau, planned["examples"])
        study.tell(trial, loss)
        losses.append(loss)
    print(json.dumps({"seconds": time.perf_counter() - began, "losses": losses}))


def suggest(trial: optuna.Trial, params: dict[str, Any], choices: dict[str, list[str]]) -> None:
    """Every parameter through Optuna, as the harness stores it too."""
    for name, value in params.items():
        if name in choices:
            trial.suggest_categorical(name, choices[name])
        elif isinstance(value, int):
            trial.suggest_int(name, 1, max(10_000, value))
        else:
            trial.suggest_float(name, 0.0, max(1.0, value))


def run(trial: optuna.Trial, recipe: Recipe, data: Dataset, tau: int, examples: int) -> float:
    """Train a recipe for that many examples; its lowest validation loss."""
    torch.manual_seed(recipe.seed)
    model = build(recipe, data.size, data.pixel_moments() if recipe.output_bias_from_mean else None)
    assert isinstance(model, VAE)
    of = likelihood(recipe.likelihood)
    optimizers = build_optimizers(model, recipe)
    images = torch.as_tensor(data.train.all(None)).float()
    loader = DataLoader(TensorDataset(images), recipe.batch(len(images)), shuffle=True, drop_last=True)
    valid = of.prepare_eval(data.valid.all(GRID_IMAGES), torch.Generator().manual_seed(0))
    noise = torch.randn(len(valid), recipe.latent_size, generator=torch.Generator().manual_seed(1))
    grid, point, seen, best = evaluation_grid(tau), 0, 0, float("inf")
    while True:
        for (x,) in loader:
            beta = recipe.beta
            if recipe.beta_warmup:
                beta *= min(1.0, seen / (recipe.beta_warmup * tau))
            set_lr(optimizers, recipe, (seen + len(x)) / tau)
            terms = elbo_terms(model, of, of.prepare_train(x), torch.randn(len(x), recipe.latent_size))
            loss = objective(terms.distortion, terms.kl, beta, recipe.free_bits)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
            seen += len(x)
            if seen >= grid[point]:
                best = min(best, evaluate(model, of, valid, noise))
                if point % REPORT_EVERY == 0:
                    trial.report(best, point)
                    trial.should_prune()  # asked as usual, not followed: both sides do the same trainings
                while point < len(grid) - 1 and seen >= grid[point]:
                    point += 1
            if seen >= examples:
                return best


def evaluate(model: VAE, of: Any, x: Tensor, noise: Tensor) -> float:
    """Negative ELBO at beta 1, nats per example."""
    model.eval()
    with torch.no_grad():
        loss = float(elbo_terms(model, of, x, noise).loss.mean())
    model.train()
    return loss


def build_optimizers(model: VAE, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """torch's own, at the recipe's settings."""
    lr, decay = recipe.lr, recipe.weight_decay
    if recipe.optimizer in ("adam", "adamw"):
        return [_adamw(list(model.parameters()), lr, decay)]
    if recipe.optimizer == "momentum":
        return [torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=decay)]
    if recipe.optimizer == "rmsprop":
        return [torch.optim.RMSprop(model.parameters(), lr, weight_decay=decay)]
    if recipe.optimizer == "muon":
        hidden = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
        kept = {id(p) for p in hidden}
        rest = [p for p in model.parameters() if id(p) not in kept]
        muon = torch.optim.Muon(hidden, lr, decay, adjust_lr_fn="match_rms_adamw")
        return [muon, _adamw(rest, lr, decay)]
    raise ValueError(f"no plain loop for the optimizer '{recipe.optimizer}'")


def _adamw(parameters: list[nn.Parameter], lr: float, decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr, betas=(BETA1, BETA2), eps=EPSILON, weight_decay=decay)


def set_lr(optimizers: list[torch.optim.Optimizer], recipe: Recipe, t: float) -> None:
    """The schedule's learning rate after a share t of the budget."""
    lr = recipe.lr * lr_factor(recipe.lr_schedule, min(t, 1.0), recipe.horizon, recipe.warmup)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


if __name__ == "__main__":
    main(Path(sys.argv[1]))
