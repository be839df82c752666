"""Pythae's VAE with networks of these sizes, trained by its own BaseTrainer."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.protocol import Channel, Task, read_task, start

#: More than any benchmark asks for: one training serves every round, its callback waits in between.
EPOCHS = 10_000


def build(task: Task) -> Any:
    """The model, with the Bernoulli loss."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    n_pixels = task.train.shape[1]

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(n_pixels, task.hidden), nn.ReLU())
            self.embedding = nn.Linear(task.hidden, task.latent)
            self.log_var = nn.Linear(task.hidden, task.latent)

        def forward(self, x: Tensor) -> Any:
            h = self.layers(x)
            return ModelOutput(embedding=self.embedding(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(task.latent, task.hidden),
                nn.ReLU(),
                nn.Linear(task.hidden, n_pixels),
                nn.Sigmoid(),
            )

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.layers(z))

    config = VAEConfig(input_dim=(n_pixels,), latent_dim=task.latent, reconstruction_loss="bce")
    return VAE(config, Encoder(), Decoder())


def main() -> None:
    """Serve slices."""
    arguments, channel = start()
    torch.set_num_threads(arguments.threads)
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    task = read_task(arguments)
    images = BaseDataset(torch.from_numpy(task.train).float().div(255), torch.ones(len(task.train)))
    model = build(task)
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            learning_rate=task.lr,
            per_device_train_batch_size=task.batch,
            num_epochs=EPOCHS,
            no_cuda=True,
        )
        trainer = BaseTrainer(model, images, training_config=config, callbacks=[gate(channel, task, model)])
        trainer.train()


def gate(channel: Channel, task: Task, model: Any) -> Any:
    """A callback that waits before an epoch's first batch and answers after its last."""
    from pythae.data.datasets import DatasetOutput
    from pythae.trainers.training_callbacks import TrainingCallback

    valid = DatasetOutput(data=torch.from_numpy(task.valid).float().div(255))

    def loss() -> float:
        model.eval()
        with torch.no_grad():
            return float(model(valid).loss)

    class Gate(TrainingCallback):
        steps = 0

        def on_train_begin(self, *_: Any, **__: Any) -> None:  # what `train` does before is start-up
            channel.ready("torch", parameters=sum(p.numel() for p in model.parameters()))

        def on_train_step_begin(self, *_: Any, **__: Any) -> None:  # an epoch's begin, once
            self.steps = 0
            channel.wait_for_train(loss)

        def on_train_step_end(self, *_: Any, **__: Any) -> None:  # a batch's end
            self.steps += 1
            if self.steps == task.epoch_steps:
                channel.trained(self.steps * task.batch)

    return Gate()


if __name__ == "__main__":
    main()
