"""Training: it learns what a plain loop learns, and the same recipe is the same curve, whatever interrupts it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_runs import curve, recipe_of, weights

from vae import training
from vae.data import sources
from vae.data.dataset import Dataset, load
from vae.elbo import Model, elbo_terms
from vae.errors import UserError
from vae.evaluation import GRID_IMAGES, Scores, evaluation_inputs, scores
from vae.grid import evaluation_grid
from vae.model.mlp import VAE, build
from vae.optim.schedules import lr_factor
from vae.recipe import Recipe
from vae.training import COLLAPSED_RATE, Training, train

FASHION = Path("/usr/share/datasets/fashion-mnist")
TAU = 4_000


pytestmark = pytest.mark.usefixtures("one_thread")


def scored(run: Training, data: Dataset) -> Scores:
    """Validation scores of the weights as they are at this moment."""
    x, noise = evaluation_inputs(run.likelihood, run.recipe.latent_size, data.valid.all(GRID_IMAGES))
    return scores(cast(Model, run.model), run.likelihood, x, noise)


# The same as a plain loop


def plain_loop(images: Tensor, valid: Tensor, seed: int, steps: int, beta: float = 1.0) -> float:
    """A 784-500-30 VAE in a dozen lines of torch, Adam 1e-3, batch 256; its negative ELBO on valid."""
    torch.manual_seed(seed)
    encode, posterior = nn.Linear(784, 500), nn.Linear(500, 60)
    decode, output = nn.Linear(30, 500), nn.Linear(500, 784)
    layers = nn.ModuleList([encode, posterior, decode, output])
    adam = torch.optim.Adam(layers.parameters(), lr=1e-3)

    def loss(x: Tensor, beta: float) -> Tensor:
        mean, log_var = posterior(torch.relu(encode(x))).chunk(2, dim=1)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        logits = output(torch.relu(decode(z)))
        distortion = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        rate = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum()
        return (distortion + beta * rate) / len(x)

    order = torch.cat([torch.randperm(len(images)) for _ in range(1 + steps * 256 // len(images))])
    for index in order[: steps * 256].split(256):
        adam.zero_grad()
        loss(images[index], beta).backward()
        adam.step()
    with torch.no_grad():
        return float(loss(valid, 1.0))


def test_fashion_mnist_learns_as_in_a_plain_loop() -> None:
    """The baseline recipe for 60 steps ends, over 3 seeds, where an independently written loop ends, within seed
    noise: a seed's standard deviation is 1.4 nats, so that of the difference 1.1. A doubled KL is 4 nats off."""
    if not FASHION.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    data = load("fashion-mnist", download=False)
    train_split = replace(data.train, rows=data.train.rows[:10_000])
    few = replace(data, train=train_split, valid=replace(data.valid, rows=data.valid.rows[:500]))
    ours = []
    for seed in range(3):
        *_, last = train(Recipe(seed=seed), few, tau=60 * 256)
        assert last.steps == 60
        ours.append(last.valid_loss)
    images, valid = few.train.all(), few.valid.all()
    theirs = [plain_loop(images, valid, seed, steps=60) for seed in range(3)]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=3.0)


def test_a_model_of_ones_own_trains_the_same(digits: Dataset) -> None:
    """A network given to `train`, whose gradient is autograd's, follows the built-in one's curve to rounding."""

    class Own(VAE):
        pass

    recipe = recipe_of(clip_norm=20.0, beta=0.5, dropout=0.1)
    built_in = train(recipe, digits, TAU)
    own = build(recipe, digits.size)
    own.load_state_dict(built_in.model.state_dict())
    own.__class__ = Own
    ours = train(recipe, digits, TAU, model=own)
    assert ours.model is own
    for a, b in zip(curve(built_in), curve(ours), strict=True):
        assert (a.examples, a.lr, a.beta) == (b.examples, b.lr, b.beta)
        assert (a.valid_loss, a.rate, a.train_loss, a.grad_norm) == pytest.approx(
            (b.valid_loss, b.rate, b.train_loss, b.grad_norm), rel=1e-3
        )


# The grid and the record


@pytest.mark.parametrize("batch_size", [1, 64, 1000, "full"])
def test_the_grid_is_visited(digits: Dataset, batch_size: int | str) -> None:
    """Each evaluation is at the first step boundary at or past a grid point, its number is that of the last point
    passed, numbers strictly increase, and the last is tau's. The full batch is one step an epoch."""
    tau = 300 if batch_size == 1 else 5_000
    recipe = recipe_of(batch_size=batch_size)
    batch = recipe.batch(len(digits.train))
    grid = evaluation_grid(tau)
    evaluations = curve(train(recipe, digits, tau))
    due = 0  # the first grid point not passed
    for evaluation in evaluations:
        assert evaluation.examples == evaluation.steps * batch
        assert grid[due] <= evaluation.examples < grid[due] + batch
        due = int((grid <= evaluation.examples).sum())
        assert evaluation.number == due - 1
    assert due == len(grid)
    assert all(a.number < b.number for a, b in itertools.pairwise(evaluations))


def test_every_example_is_seen_once_an_epoch(digits: Dataset) -> None:
    """Batches are pieces of one endless row of permutations: no example is left out or doubled within an epoch,
    the next epoch's order differs, and batches drawn together are those drawn one by one."""
    n = len(digits.train)
    run = train(recipe_of(batch_size=100), digits, TAU)
    index = run.batches.indices(0, 2 * n + 50)
    first, second = index[:n].tolist(), index[n : 2 * n].tolist()
    assert sorted(first) == sorted(second) == list(range(n))
    assert first != second
    pieces = []
    for batch in range(12):
        pieces += run.batches.indices(100 * batch, 100).tolist()
    assert pieces == index[:1200].tolist()


def test_lr_and_beta_are_recorded_as_scheduled(digits: Dataset) -> None:
    """Those of the last step before each evaluation."""
    recipe = recipe_of(lr_schedule="cosine", horizon=0.8, warmup=0.1, beta=2.0, beta_warmup=0.5)
    for evaluation in train(recipe, digits, TAU):
        # With a warm-up t is where the step ends, so that the first step's lr isn't 0.
        t = min(1.0, evaluation.examples / TAU)
        assert evaluation.lr == recipe.lr * lr_factor("cosine", t, 0.8, 0.1)
        began = evaluation.examples - 64
        assert evaluation.beta == 2.0 * min(1.0, began / (0.5 * TAU))


def test_train_seconds_leave_evaluation_out(digits: Dataset) -> None:
    """By a clock that a step moves by 1 and an evaluation by 1000."""
    now = 0.0

    class Ticking(VAE):
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal now
            now += 1.0 if self.training else 1000.0
            return super().encode(x)

    network = build(recipe_of(), digits.size)
    network.__class__ = Ticking
    run = Training(recipe_of(), digits, TAU, model=network, clock=lambda: now)
    for evaluation in run:
        assert evaluation.train_seconds == evaluation.steps
    assert now > 1000.0
    assert run.advance(7) == 7.0


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "muon", "rmsprop"])
def test_no_moment_stays_subnormal(digits: Dataset, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    """A moment without gradient fades to 0 and not to the subnormal numbers that processors are slow with; the
    weights are bitwise those of a training that leaves it there."""
    runs = []
    for every in (training.TINY_EVERY, 10**9):
        monkeypatch.setattr(training, "TINY_EVERY", every)
        run = train(recipe_of(optimizer=optimizer), digits, TAU)
        run.advance(8)
        for moment in run._step.rule.moments():
            # As if the pixel in the corner, black in every image, had once been lit.
            moment.view(-1)[:: digits.size][:4] = 1.2e-38
        run.advance(192)
        runs.append(run)
    clean, faded = runs
    assert torch.equal(clean._step.flat.values, faded._step.flat.values)
    assert sum(_subnormal(moment) for moment in faded._step.rule.moments()) > 0
    assert sum(_subnormal(moment) for moment in clean._step.rule.moments()) == 0


def _subnormal(x: Tensor) -> int:
    """How many of its numbers are, by their bits: the processor may be set to take them for 0."""
    bits = x.detach().contiguous().view(torch.int32)
    return int((((bits & 0x7F80_0000) == 0) & ((bits & 0x007F_FFFF) != 0)).sum())


def test_train_loss_is_the_mean_objective(digits: Dataset) -> None:
    """With beta and free bits in it, over the steps since the last evaluation, in nats per example."""
    run = train(
        recipe_of(batch_size="full", beta=3.0, free_bits=0.3, lr=1e-9), digits, tau=2 * len(digits.train)
    )
    first, second = curve(run)
    bound = 3.0 * 4 * 0.3  # the KL starts near 0, so all of the penalty is the free bits'
    for evaluation in (first, second):
        scores = run.evaluate(digits.train)
        assert evaluation.train_loss == pytest.approx(scores.distortion + bound, rel=1e-3)
        assert scores.rate < 1.0


# What is evaluated


def test_the_metric_knows_no_beta_or_free_bits(digits: Dataset) -> None:
    """Equal weights score equally under every beta, free bits and seed, and loss = rate + distortion."""
    runs = [
        train(recipe_of(beta=beta, free_bits=bits, beta_warmup=warmup), digits, TAU)
        for beta, bits, warmup in ((1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (9.0, 2.0, 0.5))
    ]
    other_seed = train(recipe_of(seed=5), digits, TAU)
    other_seed.model.load_state_dict(runs[0].model.state_dict())
    scores = [run.evaluate(digits.valid) for run in [*runs, other_seed]]
    assert all(score == scores[0] for score in scores)
    assert scores[0].loss == pytest.approx(scores[0].rate + scores[0].distortion, rel=1e-12)
    assert next(iter(runs[2])).beta == 0.0


def test_scores_are_the_elbos_mean(digits: Dataset) -> None:
    """Of a split of any size, in evaluation mode (no dropout), by `elbo_terms`."""
    run = train(recipe_of(dropout=0.5), digits, TAU)
    x, noise = evaluation_inputs(run.likelihood, 4, digits.test.all(100))
    with run.evaluated_weights() as model, torch.no_grad():
        assert not model.training
        terms = elbo_terms(model, run.likelihood, x, noise)  # type: ignore[arg-type]
    assert run.evaluate(digits.test, 100).loss == pytest.approx(float(terms.loss.mean()), rel=1e-5)


def test_an_average_is_what_is_evaluated(digits: Dataset) -> None:
    """With ema_decay the evaluated weights are the recursion's average of the weights after each step, starting
    from the first; training goes on from the weights themselves."""
    run, without = (train(recipe_of(ema_decay=decay), digits, TAU) for decay in (0.8, 0.0))
    average = weights(run)
    for _ in range(10):
        run.advance(1)
        without.advance(1)
        average = 0.8 * average + 0.2 * weights(run)
    assert torch.equal(weights(run), weights(without))
    with run.evaluated_weights():
        torch.testing.assert_close(weights(run), average, rtol=1e-5, atol=1e-6)
        by_hand = scored(run, digits)
    assert torch.equal(weights(run), weights(without))
    assert run.evaluate(digits.valid) == by_hand
    assert by_hand != without.evaluate(digits.valid)


def test_schedule_free_evaluates_its_own_average(digits: Dataset) -> None:
    """The evaluated weights are not those in training, which come back bitwise afterwards."""
    run = train(recipe_of(optimizer="schedule_free_adamw", lr=0.03), digits, TAU)
    run.advance(60)
    start = weights(run)
    with run.evaluated_weights():
        assert not torch.equal(weights(run), start)
        evaluated = scored(run, digits)
    assert torch.equal(weights(run), start)
    assert run.evaluate(digits.valid) == evaluated != scored(run, digits)


# Outcomes


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_divergence_is_an_outcome(digits: Dataset, optimizer: str) -> None:
    """A learning rate of 100 ends with a last evaluation that isn't finite: no exception and no warning."""
    run = train(recipe_of(lr=100.0, optimizer=optimizer, hidden=(64, 64)), digits, 50_000)
    evaluations = curve(run)
    assert run.outcome == "diverged"
    assert not (math.isfinite(evaluations[-1].valid_loss) and math.isfinite(evaluations[-1].train_loss))
    assert all(math.isfinite(e.valid_loss) and math.isfinite(e.train_loss) for e in evaluations[:-1])
    assert evaluations[-1].examples < 50_000


def test_collapse_is_an_outcome(digits: Dataset) -> None:
    """At beta = 1000 no information survives in z."""
    run = train(recipe_of(beta=1000.0), digits, 20_000)
    last = curve(run)[-1]
    assert run.outcome == "collapsed"
    assert 0 <= last.rate < COLLAPSED_RATE
    assert last.active_units == 0


def test_a_collapsed_squared_error_is_the_pixel_variance(digits: Dataset) -> None:
    """A decoder that ignores z and gives the train mean at variance 1 has a loss of half the pixel variance about
    that mean, summed, and the Gaussian's constant: a number that needs no training."""
    run = train(recipe_of(likelihood="gaussian"), digits, TAU)
    pixels = digits.train.all().double()
    model = run.model
    assert isinstance(model, VAE)
    with torch.no_grad():
        for parameter in (model.posterior.weight, model.posterior.bias, model.output.weight):
            parameter.zero_()
        floor = -2 * math.log(255)  # raw log variance whose soft clip is 0
        raw = floor + math.log(math.expm1(-floor))
        model.output.bias.copy_(torch.cat([pixels.mean(0), torch.full((digits.size,), raw)]))
    scores = run.evaluate(digits.train)
    variance = float(pixels.var(0, correction=0).sum())
    assert scores.rate == 0.0
    assert scores.loss == pytest.approx(0.5 * (variance + digits.size * math.log(2 * math.pi)), rel=1e-6)


# Data


def test_a_memory_map_trains_as_memory_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitwise the same curve; and neither copies the stored uint8 pixels or turns them to floats."""
    images = np.random.default_rng(0).integers(0, 256, (400, 5, 5), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    in_memory = load(str(tmp_path / "images.npy"))
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    mapped = load(str(tmp_path / "images.npy"))
    assert mapped.train.base.shape[0] == 400 > in_memory.train.base.shape[0]
    runs = [train(recipe_of(batch_size=32), data, TAU) for data in (in_memory, mapped)]
    assert curve(runs[0]) == curve(runs[1])
    for run, data in zip(runs, (in_memory, mapped), strict=True):
        assert run.batches.split.base.dtype == torch.uint8
        assert run.batches.split.base.data_ptr() == data.train.base.data_ptr()


def test_a_batch_larger_than_the_data_is_refused(digits: Dataset) -> None:
    """Before anything is built."""
    with pytest.raises(UserError, match="batch_size 5000 is more than the"):
        train(recipe_of(batch_size=5_000), digits, TAU)


@pytest.mark.parametrize("units", [[1.0] * 16, [1e-1, 1.0, 1e1, 1e2] * 4])
def test_output_bias_starts_a_table_at_the_entropy_of_noise(tmp_path: Path, units: list[float]) -> None:
    """Under the Gaussian, untrained weights with the output bias cost what independent noise of the data's mean and
    variance has: a table's, standardised or in any units, and not that of pixels in [0, 1]."""
    table = np.random.default_rng(0).normal(3.0, 1.0, (2_000, 16)) * units
    np.save(tmp_path / "table.npy", table.astype(np.float32))
    data = load(str(tmp_path / "table.npy"), likelihood="gaussian")
    entropy = 0.5 * sum(math.log(2 * math.pi * math.e * unit**2) for unit in units)
    recipe = Recipe(
        hidden=(16,),
        latent_size=2,
        init="truncated_normal",
        likelihood="gaussian",
        output_bias_from_mean=True,
    )
    assert train(recipe, data, 10_000).evaluate(data.valid).distortion == pytest.approx(entropy, abs=1.0)
