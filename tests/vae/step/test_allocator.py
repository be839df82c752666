"""glibc's settings, and C libraries without them."""

from __future__ import annotations

import platform
import sys

import pytest

from vae.step.allocator import keep_freed_memory


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt"
)
def test_glibc_takes_the_settings() -> None:
    """All of them: one that is out of range would be refused."""
    assert keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mallopt, or without a C library to ask, nothing happens."""

    def missing(_: object) -> object:
        raise OSError("no such library")

    for library in (lambda _: object(), missing):
        monkeypatch.setattr("vae.step.allocator.ctypes.CDLL", library)
        assert keep_freed_memory.__wrapped__() is False
