"""The order of the training examples, and batches of them with their noise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vae.data.dataset import Split
from vae.likelihoods import Likelihood

#: Bytes of float32 pixels that are drawn, converted and prepared at once: several batches where they are
#: small, which saves calls, but never more than a processor's cache holds.
DRAW_BYTES = 2**20


class Batches:
    """An endless row of epoch permutations of a split, cut into batches.

    Every batch is full and an epoch's end falls inside one. Which examples come depends on the seed and on how
    many have been seen, on nothing else: a resumed run needs no history to find its place.
    """

    def __init__(
        self,
        split: Split,
        likelihood: Likelihood,
        batch_size: int,
        latent_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.split = split.to(device)
        self.batch_size = batch_size
        #: Batches that are best drawn at once.
        self.at_once = max(1, DRAW_BYTES // (4 * split.base.shape[1] * batch_size))
        self._likelihood = likelihood
        self._latent_size = latent_size
        self._seed = seed
        self._device = device
        self._last_order: tuple[int, Tensor] | None = None

    def draw(self, seen: int, n_batches: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The next batches after `seen` examples, prepared (B, D), and their noise (B, L), from torch's global
        generator."""
        n = n_batches * self.batch_size
        x = self._likelihood.prepare_train(self.split.batch(self.indices(seen, n), self._device))
        noise = torch.randn(n, self._latent_size, device=self._device)
        return zip(torch.split(x, self.batch_size), torch.split(noise, self.batch_size), strict=True)

    def indices(self, seen: int, n: int) -> Tensor:
        """Indices (n,) of the next n examples after `seen`."""
        epoch, offset = divmod(seen, len(self.split))
        pieces = [self._order(epoch)[offset : offset + n]]
        while (missing := n - sum(map(len, pieces))) > 0:
            epoch += 1
            pieces.append(self._order(epoch)[:missing])
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _order(self, epoch: int) -> Tensor:
        if self._last_order is None or self._last_order[0] != epoch:
            seed = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(self.split), generator=generator).to(self._device)
            self._last_order = (epoch, order)
        return self._last_order[1]
