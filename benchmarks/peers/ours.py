"""This project: `train(recipe, data, tau, device).advance(steps)`, in fp32 or bf16, eager or compiled."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.peers.protocol import Pixels, read_task, start
from vae.data.dataset import Dataset, Split
from vae.recipe import Recipe
from vae.training import train

#: The budget: never reached, and with a constant lr it changes nothing.
TAU = 10**9


def main() -> None:
    """Serve slices."""
    arguments, channel = start()
    torch.set_num_threads(arguments.threads)
    task = read_task(arguments)
    recipe = Recipe(
        hidden=(task.hidden,),
        latent_size=task.latent,
        batch_size=task.batch,
        lr=task.lr,
        precision="bf16" if arguments.bf16 else "fp32",
        compile=arguments.compile,
    )
    valid = _split(task.valid)
    data = Dataset("benchmark", _split(task.train), valid, valid, (task.train.shape[1],), "")
    training = train(recipe, data, TAU, torch.device("cpu"))
    n_parameters = sum(p.numel() for p in training.model.parameters())
    channel.ready("torch", parameters=n_parameters)

    def advance() -> int:
        training.advance(task.steps)
        return task.steps * task.batch

    channel.serve(advance, lambda: training.evaluate(valid).loss)


def _split(pixels: Pixels) -> Split:
    return Split(torch.from_numpy(pixels), torch.from_numpy(np.arange(len(pixels))), None, 255.0)


if __name__ == "__main__":
    main()
