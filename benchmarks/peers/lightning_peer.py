"""The plain model in Lightning's Trainer, without logger, checkpoints and progress bar; tensors in memory."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.plain import VAE, loss_function
from benchmarks.peers.protocol import read_task, start


def main() -> None:
    """Serve slices."""
    arguments, channel = start()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # on DataLoader workers, which make this one slower
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import lightning

    task = read_task(arguments)
    valid = torch.from_numpy(task.valid).float().div(255)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.vae = VAE(task.train.shape[1], task.hidden, task.latent)

        def training_step(self, batch: list[Tensor], *_: Any) -> Tensor:
            (x,) = batch
            return loss_function(*self._run(x))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=task.lr)

        def loss(self) -> float:
            with torch.no_grad():
                return float(loss_function(*self._run(valid)))

        def _run(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            probabilities, mean, log_var = self.vae(x)
            return probabilities, x, mean, log_var

    class Gate(lightning.Callback):
        def on_train_start(self, *_: Any) -> None:  # what `fit` does before is start-up
            channel.ready("lightning", "torch", parameters=sum(p.numel() for p in module.parameters()))

        def on_train_epoch_start(self, *_: Any) -> None:
            channel.wait_for_train(module.loss)

        def on_train_epoch_end(self, *_: Any) -> None:
            channel.trained(task.epoch_steps * task.batch)

    module = Module()
    images = TensorDataset(torch.from_numpy(task.train).float().div(255))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Gate()],
    )
    trainer.fit(module, DataLoader(images, batch_size=task.batch, shuffle=True))


if __name__ == "__main__":
    main()
