"""Grey pixels made zeros and ones, the same for the same image wherever and whenever it is asked."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def binarise(x: Tensor) -> Tensor:
    """Static binarisation of grey pixels (B, D) in [0, 1]: 1 with probability x, (B, D) of zeros and ones.

    The uniform that each pixel is compared with is a hash of the whole image and of the pixel's position. So
    an image is binarised the same way in every epoch, batch, split, process and resumed run, whatever its
    neighbours are, and there is no random state to keep; and the noise is independent between images and
    between pixels, which one threshold field shared by all images would not give. Equal images get equal
    noise.
    """
    weights, positions = _hash_fields(x.shape[-1], x.device)
    bits = x.to(torch.float32).contiguous().view(torch.int32)
    # Pixels such as k / 16 have only high bits set: fold them down, or the products would lose them.
    image = (bits ^ (bits >> 16)).mul_(weights).sum(-1, keepdim=True, dtype=torch.int64)  # mod 2^32 below
    image = (image & 0xFFFF_FFFF).sub_(1 << 31).to(torch.int32)
    uniform = _mix(image ^ positions).bitwise_and_(0xFF_FFFF)  # 24 bits: exact in float32
    return (x * float(1 << 24) > uniform).to(x.dtype)


@functools.lru_cache(maxsize=8)
def _hash_fields(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Odd weights and position keys, (D,) int32 each; from the positions alone, no generator takes part."""
    index = torch.arange(size, dtype=torch.int32, device=device)
    return _mix(index * 2 + 1) | 1, _mix(index * 2 + 2)


def _mix(h: Tensor) -> Tensor:
    """The 32-bit finaliser of MurmurHash3 (Appleby 2011), in place on int32, which wraps. Returns `h`."""
    h ^= (h >> 16) & 0xFFFF  # int32 shifts keep the sign: the masks make them logical shifts
    h *= -2_048_144_789  # 0x85EBCA6B
    h ^= (h >> 13) & 0x7_FFFF
    h *= -1_028_477_387  # 0xC2B2AE35
    h ^= (h >> 16) & 0xFFFF
    return h
