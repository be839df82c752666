"""The file of compressed images: a header, then blocks that are each checked, written and read one at a time.

docs/compression.md has the format.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vae.checkpoint import TrainedModel
from vae.compression.bits_back import NOTE, BitsBack, Coded, Levels
from vae.data.dataset import Split
from vae.documents import parse_json
from vae.errors import FailureError, UserError, printable

MAGIC = b"\x89VAEBB\r\n"
FORMAT = 1
#: Pixels of a block: what is lost to its own beginning is then some 0.01 %, and it takes some 100 MB to code.
BLOCK_PIXELS = 2**22
#: Bytes of a header, at most.
MAX_HEADER = 2**16
#: Bytes of a block's batches and notes unpacked, at most.
MAX_SIDE = 2**26

_LENGTH = struct.Struct("<I")
#: A block's images, batches, bytes of notes packed, words, initial words; CRC-32 of its images' levels.
_BLOCK = struct.Struct("<IIIIII")


@dataclass(frozen=True)
class Header:
    """What a file says of itself, before its blocks."""

    model: str
    """SHA-256 (hex) of the model's file."""
    likelihood: str
    shape: tuple[int, ...]
    """Of an image."""
    count: int
    """Images."""
    white: int
    """Stored value of the brightest level: 255, or 16 for digits."""
    versions: dict[str, str]
    """Of what was compressed with; others decode as well, as long as their float64 agrees."""


class Written(NamedTuple):
    """What compressing came to."""

    n_images: int
    n_bytes: int
    n_initial: int
    """Bytes of initial bits, which are among `n_bytes`."""
    n_notes: int
    """Probabilities whose rounding is noted."""


def sha256_of(path: Path) -> str:
    """Of a model's file. Raises UserError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from None


def compress(
    trained: TrainedModel, model_hash: str, split: Split, out: IO[bytes], block_pixels: int = BLOCK_PIXELS
) -> Written:
    """Write the split's images, as the likelihood prepares them, in the split's order; one block, of at most so many
    pixels, is in memory at a time. Raises UserError where they have another size than the model's, or aren't of 8
    bits."""
    coder = BitsBack(trained)
    size = math.prod(trained.shape)
    if split.base.shape[1] != size:
        raise UserError(
            f"The model takes images of shape {trained.shape}, {size} pixels, not {split.base.shape[1]}."
        )
    if split.base.dtype != torch.uint8:
        raise UserError(
            "Only images of uint8 can be had back bit by bit: save (images * 255).round().astype('uint8')."
        )
    header = Header(
        model=model_hash,
        likelihood=coder.of.name,
        shape=trained.shape,
        count=len(split),
        white=round(split.scale),
        versions={name: version(name) for name in ("vae-study", "torch", "constriction")}
        | {"machine": platform.machine()},
    )
    n_bytes = out.write(_framed_header(header))
    n_initial = n_notes = 0
    for index in torch.split(torch.arange(len(split)), max(1, block_pixels // size)):
        levels = levels_of(coder, split, index)
        block = coder.encode(levels)
        n_bytes += out.write(_framed_block(block, levels))
        n_initial += 4 * block.n_initial
        n_notes += len(block.notes)
    return Written(len(split), n_bytes, n_initial, n_notes)


def levels_of(coder: BitsBack, split: Split, index: torch.Tensor) -> Levels:
    """The levels (B, D) of a split's images, as the likelihood prepares them."""
    x = coder.of.prepare_eval(split.batch(index, "cpu"), torch.Generator())
    return (x * ((1 << coder.n_bits) - 1)).round().to(torch.uint8).numpy()


def read_header(file: IO[bytes], path: Path) -> Header:
    """The header, and the file at its first block. Raises UserError for what is none."""
    start = file.read(len(MAGIC) + _LENGTH.size)
    if start[: len(MAGIC)] != MAGIC:
        raise UserError(f"{path} is no file that `python -m vae compress` wrote.")
    if len(start) < len(MAGIC) + _LENGTH.size:
        raise _damaged(path, "its header is cut off")
    (length,) = _LENGTH.unpack(start[len(MAGIC) :])
    if length > MAX_HEADER:
        raise _damaged(path, "its header is too long")
    text, check = file.read(length), file.read(_LENGTH.size)
    if len(check) < _LENGTH.size:
        raise _damaged(path, "its header is cut off")
    if zlib.crc32(start + text) != _LENGTH.unpack(check)[0]:
        raise _damaged(path, "the checksum of its header is wrong")
    try:
        told = parse_json(text.decode("utf-8"))
        if told["format"] != FORMAT:
            raise UserError(
                f"{path} has format {printable(str(told['format'])[:12])}, and this version reads {FORMAT}: use the "
                "one that wrote it."
            )
        header = Header(
            model=str(told["model"]),
            likelihood=str(told["likelihood"]),
            shape=tuple(int(n) for n in told["shape"]),
            count=int(told["count"]),
            white=int(told["white"]),
            versions={str(key): str(value) for key, value in told["versions"].items()},
        )
        if header.count < 0 or not 0 < header.white < 256:
            raise ValueError("counts out of range")
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise _damaged(path, f"its header can't be read ({type(error).__name__})") from None
    return header


def decompress(
    trained: TrainedModel, model_hash: str, header: Header, file: IO[bytes], path: Path
) -> Iterator[NDArray[np.uint8]]:
    """The images, block by block, (B, *shape) of stored values. Each block is checked before and after it is decoded.

    Raises UserError for another model than the one that compressed, FailureError for a damaged file."""
    if header.model != model_hash:
        raise UserError(
            f"{path} was compressed with another model (SHA-256 {printable(header.model[:12])}, not "
            f"{model_hash[:12]}): name that one by --model."
        )
    coder = BitsBack(trained)
    if (header.likelihood, header.shape) != (coder.of.name, trained.shape):
        raise _damaged(path, "its header isn't of this model's images")
    white = (1 << coder.n_bits) - 1
    done, number = 0, 0
    limit = max(1, BLOCK_PIXELS // math.prod(trained.shape))
    while done < header.count:
        number += 1
        block, check = _read_block(file, path, number, min(limit, header.count - done))
        levels = coder.decode(block)
        if levels is None or zlib.crc32(levels.tobytes()) != check:
            told = ", ".join(f"{name} {value}" for name, value in header.versions.items())
            raise FailureError(
                f"Block {number} of {path} doesn't come out as it was, though it is undamaged: the networks' float64 "
                f"differs too much from where it was compressed ({printable(told[:200])}). Decompress it there."
            )
        stored = np.rint(levels.astype(np.float64) * (header.white / white)).astype(np.uint8)
        yield stored.reshape(len(levels), *trained.shape)
        done += len(levels)
    if file.read(1):
        raise _damaged(path, "there is more in it after its last image")


def _framed_header(header: Header) -> bytes:
    text = json.dumps({"format": FORMAT} | asdict(header)).encode()
    start = MAGIC + _LENGTH.pack(len(text)) + text
    return start + _LENGTH.pack(zlib.crc32(start))


def _framed_block(block: Coded, levels: Levels) -> bytes:
    sizes = np.array(block.sizes, dtype="<u2").tobytes()
    side = zlib.compress(sizes + block.notes.tobytes(), 9)
    head = _BLOCK.pack(
        len(levels),
        len(block.sizes),
        len(side),
        len(block.words),
        block.n_initial,
        zlib.crc32(levels.tobytes()),
    )
    body = head + side + block.words.astype("<u4").tobytes()
    return body + _LENGTH.pack(zlib.crc32(body))


def _read_block(file: IO[bytes], path: Path, number: int, most: int) -> tuple[Coded, int]:
    """A block of at most so many images, and the CRC-32 of their levels."""
    cut = _damaged(path, f"block {number} is cut off")
    head = file.read(_BLOCK.size)
    if len(head) < _BLOCK.size:
        raise cut
    n, n_batches, n_side, n_words, n_initial, check = _BLOCK.unpack(head)
    here = file.tell()
    left = file.seek(0, 2) - here
    file.seek(here)
    if (
        n_side + 4 * n_words + _LENGTH.size > left
    ):  # asked first: a damaged length promises any amount of memory
        raise cut
    side, words = file.read(n_side), file.read(4 * n_words)
    if zlib.crc32(head + side + words) != _LENGTH.unpack(file.read(_LENGTH.size))[0]:
        raise _damaged(path, f"the checksum of block {number} is wrong")
    stack = np.frombuffer(words, dtype="<u4").astype(np.uint32)
    try:
        told = zlib.decompressobj().decompress(side, MAX_SIDE)
        sizes = np.frombuffer(told[: 2 * n_batches], dtype="<u2").astype(np.int64)
        notes = np.frombuffer(told[2 * n_batches :], dtype=NOTE)
    except (zlib.error, ValueError):
        raise _damaged(path, f"the notes of block {number} can't be read") from None
    if (
        sizes.sum() != n
        or not 0 < n <= most
        or not sizes.all()
        or n_initial > n_words
        or not stack[-1:].all()
    ):
        raise _damaged(path, f"the counts of block {number} disagree")
    return Coded(stack, tuple(int(size) for size in sizes), notes, n_initial), check


def _damaged(path: Path, how: str) -> FailureError:
    return FailureError(f"{path} is truncated or damaged: {how}.")
