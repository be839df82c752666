"""The machine's own limit: the matrix products of one training step and a fused Adam update, nothing else.

Each product is made in the way that is fastest here (torch's `mm` or oneDNN's linear layer, with operands in either
order in memory), and the whole with the number of threads that is fastest, which for small products isn't all of them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers.protocol import read_task, start
from vae.step.allocator import keep_freed_memory

Product = Callable[[], object]


def products_of_a_step(n_pixels: int, hidden: int, latent: int, batch: int) -> list[tuple[int, int, int]]:
    """(m, k, n) of each product: forward, gradient of the weights, and of the input where one is needed."""
    layers = [(n_pixels, hidden), (hidden, 2 * latent), (latent, hidden), (hidden, n_pixels)]
    forward = [(batch, n_in, n_out) for n_in, n_out in layers]
    to_weight = [(n_out, batch, n_in) for n_in, n_out in layers]
    to_input = [(batch, n_out, n_in) for n_in, n_out in layers[1:]]
    return forward + to_weight + to_input


def fastest(m: int, k: int, n: int, dtype: torch.dtype) -> Product:
    """The fastest way here to multiply (m, k) by (k, n), with torch's threads as they are set."""
    timed = [(least_seconds(way), way) for way in _ways(m, k, n, dtype)]
    return min(timed, key=lambda pair: pair[0])[1]


def _ways(m: int, k: int, n: int, dtype: torch.dtype) -> list[Product]:
    ways: list[Product] = []
    for a_transposed, b_transposed in itertools.product((False, True), repeat=2):
        a = torch.randn(k, m, dtype=dtype).t() if a_transposed else torch.randn(m, k, dtype=dtype)
        b = torch.randn(n, k, dtype=dtype).t() if b_transposed else torch.randn(k, n, dtype=dtype)
        ways.append(_mm(a, b, torch.empty(m, n, dtype=dtype)))
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        ways.append(_onednn(torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)))
    return ways


def _mm(a: Tensor, b: Tensor, out: Tensor) -> Product:
    return lambda: torch.mm(a, b, out=out)


def _onednn(a: Tensor, weight: Tensor) -> Product:
    linear = torch.ops.mkldnn._linear_pointwise
    return lambda: linear(a, weight, None, "none", [], "")


def least_seconds(way: Product, budget: float = 0.05) -> float:
    """Of one call, once warm: the least, for a limit is what nothing disturbed."""
    for _ in range(3):
        way()
    seconds: list[float] = []
    while len(seconds) < 5 or sum(seconds) < budget:
        began = time.perf_counter()
        way()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def fused_adam(n_parameters: int) -> Product:
    """An update of one flat tensor, which has the least overhead there is. No number in it is or becomes subnormal."""
    values = torch.nn.Parameter(torch.randn(n_parameters))
    values.grad = torch.rand(n_parameters) + 0.5
    optimizer = torch.optim.Adam([values], lr=1e-3, fused=True)
    return lambda: optimizer.step()


def step_of(shapes: list[tuple[int, int, int]], update: Product, dtype: torch.dtype) -> Product:
    """All of one training step, each product in its fastest way with torch's threads as they are set."""
    with torch.inference_mode():
        products = [fastest(m, k, n, dtype) for m, k, n in shapes]

    def step() -> None:
        with torch.inference_mode():
            for product in products:
                product()
        update()

    return step


def main() -> None:
    """Serve slices."""
    arguments, channel = start()
    keep_freed_memory()  # what a product returns is asked of the system anew otherwise, page by page
    task = read_task(arguments)
    shapes = products_of_a_step(task.train.shape[1], task.hidden, task.latent, task.batch)
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    n_parameters = sum(n_out * (n_in + 1) for n_out, _, n_in in shapes[4:8])
    update = fused_adam(n_parameters)
    timed: list[tuple[float, int, Product]] = []
    for n_threads in range(1, arguments.threads + 1):
        torch.set_num_threads(n_threads)
        step = step_of(shapes, update, dtype)
        timed.append((least_seconds(step, budget=0.5), n_threads, step))
    _, n_threads, step = min(timed, key=lambda each: each[:2])
    torch.set_num_threads(n_threads)

    def train() -> int:
        for _ in range(task.steps):
            step()
        return task.steps * task.batch

    channel.ready("torch", parameters=n_parameters)
    channel.serve(train, lambda: None)


if __name__ == "__main__":
    main()
