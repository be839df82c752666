"""What is asked of the pixels of a data set, and the words of each refusal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vae.data.sources import WHITES, Array
from vae.errors import UserError
from vae.likelihoods import Likelihood, PixelMoments

#: Pixels that are out of [0, 1] by no more than this are there by rounding.
ROUNDING = 1e-3
#: Root mean square of pixels up to which nothing about their scale hinders training; standardised data has 1.
LARGEST_SCALE = 10.0


class Survey:
    """What `add` has seen of an array of pixels, chunk by chunk, and whether it can be trained on."""

    def __init__(self, images: Array, likelihood: Likelihood) -> None:
        self._dtype, self._size = images.dtype, images.size
        self._likelihood = likelihood
        if self._dtype == np.uint8:
            self._low, self._high = 0.0, 255.0
        else:
            # A double beyond float32's largest would be infinite in a batch; float16 can't even be compared with it.
            largest = min(float(np.finfo(np.float32).max), float(np.finfo(self._dtype).max))
            least, most = likelihood.support
            self._low, self._high = max(least, -largest), min(most, largest)
        self._broken, self._outside = _Tally(), _Tally()
        self._least, self._largest = np.inf, -np.inf

    def add(self, chunk: Array, start: int) -> None:
        """Look at examples start, start + 1, ..., a chunk (n, ...) of the array."""
        with np.errstate(invalid="ignore"):  # NaN is counted below
            least, largest = float(chunk.min()), float(chunk.max())
        if not (self._low <= least and largest <= self._high):  # NaN is in no order: it comes in here
            finite = np.isfinite(chunk)
            self._broken.add(~finite, start)
            self._outside.add(finite & ((chunk < self._low) | (chunk > self._high)), start)
            least = float(chunk.min(where=finite, initial=np.inf))
            largest = float(chunk.max(where=finite, initial=-np.inf))
        self._least, self._largest = min(self._least, least), max(self._largest, largest)

    def refuse(self, origin: str) -> None:
        """Raises UserError (how many, the first, the way out) where a pixel is NaN, infinite or outside the
        likelihood's support, or where black and white are saved as 0 and 1 of 255."""
        if self._broken.count:
            raise UserError(
                f"{origin}: {self._broken.count} of {self._size} pixels are NaN or infinite, the first at index "
                f"{self._broken.first}: replace them (numpy.nan_to_num) or drop those examples."
            )
        if self._outside.count:
            raise UserError(
                f"{origin}: {self._outside.count} of {self._size} pixels lie outside [{self._low:g}, "
                f"{self._high:g}], which {self._likelihood.name} needs (min {self._shown(self._least)}, "
                f"max {self._shown(self._largest)}, the first at index {self._outside.first}): {self._way_in()}."
            )
        if self._dtype == np.uint8 and self._largest == 1.0:
            # Read as 0..255, black and white would be trained on as black and black.
            raise UserError(
                f"{origin}: no pixel is above 1, but uint8 is read as 0..255: save black and white as 0 and 255, "
                "or as float32."
            )

    def _way_in(self) -> str:
        """How these pixels come into the support."""
        if not np.isfinite(self._likelihood.support).all():
            return "subtract their mean and divide by their standard deviation"
        if self._least >= -ROUNDING and self._largest <= 1.0 + ROUNDING:
            return "that much is rounding, so numpy.clip(images, 0, 1)"
        if self._least < 0.0:
            return "subtract the least and divide by the range, or use the likelihood gaussian"
        return f"divide by the largest there can be ({WHITES}), or use the likelihood gaussian"

    def _shown(self, value: float) -> str:
        """With all the digits that tell it from its neighbours: 1.0000001 is not 1."""
        return str(self._dtype.type(value)).removesuffix(".0")


@dataclass
class _Tally:
    """How many, and the index of the first."""

    count: int = 0
    first: tuple[int, ...] = ()

    def add(self, marked: Array, start: int) -> None:
        if not self.count and marked.any():
            row, *rest = np.unravel_index(int(marked.argmax()), marked.shape)
            self.first = (start + int(row), *(int(i) for i in rest))
        self.count += int(marked.sum())


def scaling_hint(pixels: PixelMoments) -> str:
    """What helps a training that diverged because its data is far from the scale that networks start from; "" where
    the data is of that scale."""
    scale = float((pixels.mean.square() + pixels.variance).double().mean().sqrt())
    if scale <= LARGEST_SCALE:
        return ""
    return (
        f"The data has a root mean square of {scale:.3g}: subtract its mean and divide by its standard deviation. "
        "Without that no lr helps."
    )
