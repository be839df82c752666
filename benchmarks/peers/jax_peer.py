"""JAX: an epoch as one jitted scan over batches, Adam by hand, the state donated; fp32, or products in bf16."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from benchmarks.peers.protocol import read_task, start

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def main() -> None:
    """Serve slices."""
    arguments, channel = start()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if arguments.threads == 1:
        os.environ["XLA_FLAGS"] = (
            "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 "
            + os.environ.get("XLA_FLAGS", "")
        )
    import jax
    import jax.numpy as jnp

    task = read_task(arguments)
    n_pixels, low = task.train.shape[1], jnp.bfloat16 if arguments.bf16 else jnp.float32
    sizes = {
        "hidden": (n_pixels, task.hidden),
        "mean": (task.hidden, task.latent),
        "log_var": (task.hidden, task.latent),
        "decoder_hidden": (task.latent, task.hidden),
        "logits": (task.hidden, n_pixels),
    }

    def linear(weights: Any, name: str, x: Any) -> Any:
        w, b = weights[name]
        # Sums in float32: in bf16 a step took a fifth longer and the loss was worse.
        return jnp.dot(x.astype(low), w.astype(low), preferred_element_type=jnp.float32) + b

    def loss_of(weights: Any, x: Any, noise: Any) -> Any:
        h = jax.nn.relu(linear(weights, "hidden", x))
        mean, log_var = linear(weights, "mean", h), linear(weights, "log_var", h)
        z = mean + jnp.exp(0.5 * log_var) * noise
        logits = linear(weights, "logits", jax.nn.relu(linear(weights, "decoder_hidden", z)))
        # softplus(logits) - x * logits, written out: a step is 7 % faster so.
        softplus = jnp.maximum(logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        distortion = (softplus - x * logits).sum(-1)
        kl = -0.5 * (1 + log_var - mean**2 - jnp.exp(log_var)).sum(-1)
        return (distortion + kl).mean()

    def step(state: Any, batch: tuple[Any, Any]) -> tuple[Any, Any]:
        weights, m, v, t = state
        rows, key = batch
        x = images[rows].astype(jnp.float32) / 255
        noise = jax.random.normal(key, (task.batch, task.latent))
        loss, gradient = jax.value_and_grad(loss_of)(weights, x, noise)
        t = t + 1
        m = jax.tree.map(lambda a, g: BETA1 * a + (1 - BETA1) * g, m, gradient)
        v = jax.tree.map(lambda a, g: BETA2 * a + (1 - BETA2) * g * g, v, gradient)
        rate = task.lr / (1 - BETA1**t)
        factor = 1 / jnp.sqrt(1 - BETA2**t)
        weights = jax.tree.map(lambda w, a, b: w - rate * a / (jnp.sqrt(b) * factor + EPSILON), weights, m, v)
        return (weights, m, v, t), loss

    def epoch(state: Any, key: Any) -> tuple[Any, Any]:
        order_key, noise_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(task.train))
        rows = order[: task.epoch_steps * task.batch].reshape(task.epoch_steps, task.batch)
        state, losses = jax.lax.scan(step, state, (rows, jax.random.split(noise_key, task.epoch_steps)))
        return state, losses

    rng = np.random.default_rng()

    def uniform(n_in: int, *shape: int) -> Any:  # torch's initial weights and biases
        return jnp.asarray(rng.uniform(-1, 1, shape) / math.sqrt(n_in), jnp.float32)

    images, valid = jnp.asarray(task.train), jnp.asarray(task.valid, jnp.float32) / 255
    weights = {name: (uniform(i, i, o), uniform(i, o)) for name, (i, o) in sizes.items()}
    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = (weights, zeros, jax.tree.map(jnp.zeros_like, weights), jnp.zeros(()))
    key = jax.random.key(int(rng.integers(2**31)))
    run = jax.jit(epoch, donate_argnums=0)

    def train() -> int:
        nonlocal state, key
        key, used = jax.random.split(key)
        state, losses = run(state, used)
        losses.block_until_ready()
        return task.epoch_steps * task.batch

    def loss() -> float:
        noise = jnp.asarray(rng.standard_normal((len(valid), task.latent)), jnp.float32)
        return float(jax.jit(loss_of)(state[0], valid, noise))

    channel.ready("jax", parameters=sum(w.size for w in jax.tree.leaves(weights)))
    channel.serve(train, loss)


if __name__ == "__main__":
    main()
