"""A plain script, as PyTorch's own examples/vae: a DataLoader that transforms sample by sample, autograd, Adam.

The example's data set is torchvision's, which makes a PIL image of each sample and transforms it by ToTensor: the
same calls are written out here, for torchvision needs a build of torch of its own. With --tensors there is no image
and a sample is converted at once: the leaner script that somebody who looked at the profile would write.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.protocol import Pixels, Task, read_task, start


class VAE(nn.Module):
    """One hidden layer in encoder and decoder, mean and log-variance from layers of their own."""

    def __init__(self, n_pixels: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(n_pixels, hidden)
        self.fc21 = nn.Linear(hidden, latent)
        self.fc22 = nn.Linear(hidden, latent)
        self.fc3 = nn.Linear(latent, hidden)
        self.fc4 = nn.Linear(hidden, n_pixels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, D) -> pixel probabilities (B, D), mean and log-variance (B, L)."""
        h = F.relu(self.fc1(x))
        mean, log_var = self.fc21(h), self.fc22(h)
        std = torch.exp(0.5 * log_var)
        z = mean + torch.randn_like(std) * std
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mean, log_var


def loss_function(probabilities: Tensor, x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Negative ELBO, nats per example."""
    distortion = F.binary_cross_entropy(probabilities, x, reduction="sum")
    kl = -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
    return (distortion + kl) / len(x)


class Tensors(Dataset[Tensor]):
    """uint8 images, made a float tensor in [0, 1] one at a time."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = torch.from_numpy(pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index].float().div(255)


class Images(Tensors):
    """The same by way of an image, as `torchvision.datasets.MNIST` with `transforms.ToTensor()`."""

    def __getitem__(self, index: int) -> Tensor:
        image = Image.fromarray(self.pixels[index].view(1, -1).numpy())
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True))
        pixels = pixels.view(image.size[1], image.size[0], len(image.getbands()))
        return pixels.permute((2, 0, 1)).contiguous().to(dtype=torch.get_default_dtype()).div(255)


class Plain:
    """The script's model, optimizer and loader."""

    def __init__(self, task: Task, tensors: bool) -> None:
        self.model = VAE(task.train.shape[1], task.hidden, task.latent)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=task.lr)
        images = Tensors(task.train) if tensors else Images(task.train)
        self.loader = DataLoader(images, batch_size=task.batch, shuffle=True)
        self.valid = torch.from_numpy(task.valid).float().div(255)

    def epoch(self) -> int:
        """Train on every image once; how many there were."""
        self.model.train()
        examples, total = 0, 0.0
        for batch in self.loader:
            x = batch.view(len(batch), -1)
            self.optimizer.zero_grad()
            probabilities, mean, log_var = self.model(x)
            loss = loss_function(probabilities, x, mean, log_var)
            loss.backward()
            total += loss.item()
            self.optimizer.step()
            examples += len(x)
        return examples

    def loss(self) -> float:
        """On the validation images, nats per example."""
        self.model.eval()
        with torch.no_grad():
            probabilities, mean, log_var = self.model(self.valid)
            return float(loss_function(probabilities, self.valid, mean, log_var))


def main() -> None:
    """Serve slices."""
    arguments, channel = start()
    torch.set_num_threads(arguments.threads)
    plain = Plain(read_task(arguments), arguments.tensors)
    channel.ready("torch", parameters=sum(p.numel() for p in plain.model.parameters()))
    channel.serve(plain.epoch, plain.loss)


if __name__ == "__main__":
    main()
