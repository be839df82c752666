"""Bits-back coding with asymmetric numeral systems (Townsend, Bird & Barber 2019, "Practical lossless compression with
latent variables using bits back coding"), on the coder of the library constriction.

B images, D pixels, L latent dimensions. Whatever is coded is a row of binary decisions, the highest bit of a number
first: a pixel's level among the likelihood's, and of each latent dimension which of 2^16 bins of equal prior mass it
lies in. A batch of images is coded by popping its latents off the stack by q(z|x), then pushing its pixels by p(x|z)
and its latents by the prior, so the latents' random bits are those of the images before.

Both sides must give the coder the same probabilities, though a sum may be ordered otherwise by another processor or
number of threads. So the networks run in float64 and every probability is rounded to a multiple of 2^-16; and as a
number that lies next to the middle between two multiples may be rounded either way, the encoder notes those that do
(`CLOSE`), and the decoder takes them from the note. Two machines thus agree as long as their float64 results differ by
less than `CLOSE` * 2^-16 = 1.5e-11.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae.checkpoint import TrainedModel
from vae.elbo import Model
from vae.errors import FailureError, UserError
from vae.likelihoods import Discrete, discrete, likelihood

Levels = NDArray[np.uint8]
"""(n, D): a pixel's level, from 0 (black) to the last of its likelihood's (white)."""
Words = NDArray[np.uint32]

#: Bits of a latent's bin.
LATENT_BITS = 16
#: Probabilities are multiples of 1 / GRID, from the first to the last but one.
GRID = 1 << 16
#: Of a multiple: so near to the middle between two of them a probability's rounding is noted.
CLOSE = 1e-6
#: Images that are coded at once, at most, and their pixels.
BATCH_IMAGES, BATCH_PIXELS = 256, 2**20
#: Bits that a latent is expected to take off the stack, at most: batches are no larger than the stack has room for.
EXPECTED_BITS = 20
#: Where posteriors are coded as if they were no further out, no narrower and no wider: nothing that a trained model
#: has, but beyond it a float64 has too few digits for the probabilities of bins.
MEAN_LIMIT, LOG_VAR_LIMITS = 8.0, (-12.0, 4.0)

#: What a decision belongs to.
PIXEL, LATENT = 0, 1

NOTE = np.dtype([("of", "<u1"), ("bit", "<u1"), ("unit", "<u4"), ("multiple", "<u2")])
"""A probability whose rounding is told: of which kind of number, of which of its bits, which number of the block."""


class Coded(NamedTuple):
    """A block of images as the coder leaves it."""

    words: Words
    """The stack, its top last."""
    sizes: tuple[int, ...]
    """Images in each batch, in the order of coding."""
    notes: NDArray[Any]
    """(k,) of NOTE."""
    n_initial: int
    """Words that lay on the stack before: they come out again with the last latents, and are part of `words`."""


#: (probabilities of 1 (n,), what they are of, the first one's number in the block, its bit) -> multiples of 1 / GRID.
Rounding = Callable[[NDArray[np.float64], int, int, int], NDArray[np.float64]]


class _Noting:
    """The encoder's rounding."""

    def __init__(self) -> None:
        self.found: list[NDArray[Any]] = []

    def __call__(self, p: NDArray[np.float64], of: int, first: int, bit: int) -> NDArray[np.float64]:
        multiple = _nearest(p)
        scaled = p * GRID
        # Below the first middle and above the last one both neighbours are clipped to the same multiple.
        inner = (scaled > 1.0) & (scaled < GRID - 1.0)
        close = np.flatnonzero(inner & (np.abs(scaled - np.floor(scaled) - 0.5) < CLOSE))
        if len(close):
            notes = np.zeros(len(close), NOTE)
            notes["of"], notes["bit"], notes["unit"] = of, bit, first + close
            notes["multiple"] = multiple[close]
            self.found.append(notes)
        return multiple / GRID


class _Told:
    """The decoder's rounding."""

    def __init__(self, notes: NDArray[Any]) -> None:
        self._notes = notes

    def __call__(self, p: NDArray[np.float64], of: int, first: int, bit: int) -> NDArray[np.float64]:
        multiple, notes = _nearest(p), self._notes
        here = notes[(notes["of"] == of) & (notes["bit"] == bit)] if len(notes) else notes
        here = here[(here["unit"] >= first) & (here["unit"] < first + len(p))]
        multiple[here["unit"].astype(np.int64) - first] = here["multiple"]
        return multiple / GRID


class BitsBack:
    """Codes blocks of images with a model. `trained` is not changed."""

    def __init__(self, trained: TrainedModel) -> None:
        """Raises UserError for a model whose likelihood has no probabilities, and where constriction isn't there."""
        self.of = require_discrete(trained)
        self.n_bits = (self.of.levels or 2).bit_length() - 1
        self._model = _in_float64(trained)
        self._latents = trained.recipe.latent_size
        self._size = math.prod(trained.shape)
        self._library = _constriction()
        self._decision = self._library.stream.model.Bernoulli(perfect=False)
        self._prior = self._library.stream.model.Uniform(1 << LATENT_BITS)

    @property
    def _largest(self) -> int:
        return max(1, min(BATCH_IMAGES, BATCH_PIXELS // self._size))

    def encode(self, images: Levels) -> Coded:
        """Code a block (n, D), n >= 1. Raises FailureError where the network gives NaN."""
        rounding = _Noting()
        n_initial, sizes = 2, []
        stack = self._stack(_initial(n_initial))
        start, n = 0, len(images)
        while start < n:
            room = stack.num_bits() // (EXPECTED_BITS * self._latents)
            batch = images[start : start + max(1, min(room, self._largest))].astype(np.int64)
            posterior = self._posterior(batch)
            while True:
                # Were the stack emptied, the latents would be no draws from q any more: more is put under it.
                tried, n_notes = stack.clone(), len(rounding.found)
                bins = self._pop_bins(tried, posterior, start, rounding)
                if tried.num_words() > 2:
                    break
                del rounding.found[n_notes:]
                more = _initial(2 * n_initial)[:n_initial]
                stack = self._stack(np.concatenate([more, stack.get_compressed()]))
                n_initial *= 2
            stack = tried
            self._push_pixels(stack, batch, bins, start, rounding)
            stack.encode_reverse(bins.reshape(-1).astype(np.int32), self._prior)
            sizes.append(len(batch))
            start += len(batch)
        notes = np.concatenate(rounding.found) if rounding.found else np.zeros(0, NOTE)
        return Coded(stack.get_compressed(), tuple(sizes), notes, n_initial)

    def decode(self, block: Coded) -> Levels | None:
        """The images of a block (n, D); None where what is left on the stack at the end isn't what lay there at the
        beginning: then this machine's arithmetic isn't the encoder's, or the block is another model's."""
        rounding = _Told(block.notes)
        stack = self._stack(block.words)
        start = sum(block.sizes)
        images = np.zeros((start, self._size), dtype=np.uint8)
        for size in reversed(block.sizes):
            start -= size
            bins = stack.decode(self._prior, size * self._latents).reshape(size, -1).astype(np.int64)
            batch = self._pop_pixels(stack, bins, start, rounding)
            images[start : start + size] = batch
            self._push_bins(stack, bins, self._posterior(batch), start, rounding)
        left = stack.get_compressed()
        return images if np.array_equal(left, _initial(block.n_initial)) else None

    def _stack(self, words: Words) -> Any:
        return self._library.stream.stack.AnsCoder(words)

    def _posterior(self, batch: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, L) that the latents of images (B, D) are coded by."""
        white = (1 << self.n_bits) - 1
        with torch.inference_mode():
            mean, log_var = self._model.encode(torch.from_numpy(batch).double() / white)
        mean, log_var = _finite(mean), _finite(log_var)
        std = torch.exp(0.5 * log_var.clamp(*LOG_VAR_LIMITS))
        return mean.clamp(-MEAN_LIMIT, MEAN_LIMIT), std

    def _pop_bins(
        self, stack: Any, posterior: tuple[Tensor, Tensor], start: int, rounding: Rounding
    ) -> NDArray[np.int64]:
        """The bins (B, L) of a batch that begins at image `start` of its block, drawn by the bits on the stack."""
        prefix = torch.zeros(posterior[0].shape, dtype=torch.int64)
        for bit in range(LATENT_BITS):
            p = rounding(_flat(_bin_bit(posterior, prefix, bit)), LATENT, start * self._latents, bit)
            prefix = 2 * prefix + _popped(stack, self._decision, p).view(prefix.shape)
        return prefix.numpy()

    def _push_bins(
        self,
        stack: Any,
        bins: NDArray[np.int64],
        posterior: tuple[Tensor, Tensor],
        start: int,
        rounding: Rounding,
    ) -> None:
        """What `_pop_bins` took."""
        for bit, prefix, decided in _bits(bins, LATENT_BITS):
            p = rounding(_flat(_bin_bit(posterior, prefix, bit)), LATENT, start * self._latents, bit)
            stack.encode_reverse(decided, self._decision, p)

    def _parameters(self, bins: NDArray[np.int64]) -> Tensor:
        with torch.inference_mode():
            return _finite(self._model.decode(_centres()[torch.from_numpy(bins)]))

    def _push_pixels(
        self, stack: Any, batch: NDArray[np.int64], bins: NDArray[np.int64], start: int, rounding: Rounding
    ) -> None:
        parameters = self._parameters(bins)
        for bit, prefix, decided in _bits(batch, self.n_bits):
            p = self.of.bit_probability(parameters, prefix, bit)
            stack.encode_reverse(decided, self._decision, rounding(_flat(p), PIXEL, start * self._size, bit))

    def _pop_pixels(
        self, stack: Any, bins: NDArray[np.int64], start: int, rounding: Rounding
    ) -> NDArray[np.int64]:
        parameters = self._parameters(bins)
        prefix = torch.zeros(len(bins), self._size, dtype=torch.int64)
        for bit in range(self.n_bits):
            p = self.of.bit_probability(parameters, prefix, bit)
            popped = _popped(stack, self._decision, rounding(_flat(p), PIXEL, start * self._size, bit))
            prefix = 2 * prefix + popped.view(prefix.shape)
        return prefix.numpy()


def require_discrete(trained: TrainedModel) -> Discrete:
    """The model's likelihood. Raises UserError for one without probabilities."""
    of = discrete(likelihood(trained.recipe.likelihood))
    if of is None:
        raise UserError(
            f"A model with the likelihood {trained.recipe.likelihood} gives pixels no probabilities, so it can't "
            "compress them: train one with --set likelihood=discretised_logistic (8-bit pixels) or bernoulli (black "
            "and white)."
        )
    return of


def _constriction() -> Any:
    try:
        import constriction
    except ModuleNotFoundError:
        raise UserError(
            "Compression needs the library constriction: pip install 'vae-study[compress]'."
        ) from None
    return constriction


def _in_float64(trained: TrainedModel) -> Model:
    return cast(Model, copy.deepcopy(trained.model).double().eval())


def _finite(x: Tensor) -> Tensor:
    if not bool(x.isfinite().all()):
        raise FailureError(
            "The model gives NaN or infinite numbers for these images: it can't compress them."
        )
    return x


def _flat(p: Tensor) -> NDArray[np.float64]:
    return p.reshape(-1).numpy()


def _nearest(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiples of 1 / GRID, none of them 0 or 1."""
    return np.clip(np.rint(p * GRID), 1.0, GRID - 1.0)


def _popped(stack: Any, decision: Any, p: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(stack.decode(decision, p).astype(np.int64))


def _bits(numbers: NDArray[np.int64], n_bits: int) -> Iterator[tuple[int, Tensor, NDArray[np.int32]]]:
    """(which, the bits above it as a number, itself) of each bit of numbers (B, n), the lowest bit first: what is
    pushed last is popped first."""
    for bit in range(n_bits - 1, -1, -1):
        shifted = numbers >> (n_bits - 1 - bit)
        yield bit, torch.from_numpy(shifted >> 1), (shifted & 1).reshape(-1).astype(np.int32)


@cache
def _edges() -> Tensor:
    """Where the bins end: 2^16 + 1 quantiles of N(0, 1), from -inf to inf."""
    edges: Tensor = torch.special.ndtri(torch.arange(2**LATENT_BITS + 1).double() / 2**LATENT_BITS)
    return edges


@cache
def _centres() -> Tensor:
    """The latents that bins stand for, (2^16,): the medians of the prior within each."""
    centres: Tensor = torch.special.ndtri((torch.arange(2**LATENT_BITS).double() + 0.5) / 2**LATENT_BITS)
    return centres


def _bin_bit(posterior: tuple[Tensor, Tensor], prefix: Tensor, bit: int) -> Tensor:
    """P(bit = 1 | the bits above it are `prefix`) under N(mean, std^2), (B, L)."""
    mean, std = posterior
    width = 2 ** (LATENT_BITS - bit)
    low = prefix * width
    at = [(_edges()[low + part] - mean) / std for part in (0, width // 2, width)]
    odds: Tensor = _log_mass(at[1], at[2]) - _log_mass(at[0], at[1])
    return torch.sigmoid(torch.nan_to_num(odds, nan=0.0))


def _log_mass(low: Tensor, high: Tensor) -> Tensor:
    """ln(Phi(high) - Phi(low)), taken in the lower tail, where it keeps its digits."""
    upper = low + high > 0
    low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)
    log_high: Tensor = torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))


def _initial(n: int) -> Words:
    """The n words that lie on a stack before its first image: known to all, never 0. More lie below fewer."""
    digest = hashlib.shake_256(b"vae-study: initial bits").digest(4 * n)
    return (np.frombuffer(digest, dtype="<u4")[::-1] | np.uint32(1)).astype(np.uint32)
