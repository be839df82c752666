"""glibc's allocator, told to keep what it has."""

from __future__ import annotations

import ctypes
import functools

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 1024 * 1024


@functools.cache
def keep_freed_memory() -> bool:
    """From now on this process keeps freed memory for its next tensors; whether that could be arranged.

    glibc gives a large block, and a free end of its heap, back to the system at once. A training step asks for the
    same blocks again, and each page then is faulted in and zeroed anew: with two threads at 784-500-30 that took
    up to half of the time. Only glibc has these settings; elsewhere nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or Windows
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    settings = ((_M_MMAP_THRESHOLD, 32 * _MIB), (_M_TRIM_THRESHOLD, 512 * _MIB), (_M_TOP_PAD, 64 * _MIB))
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)
