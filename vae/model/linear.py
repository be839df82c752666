"""Linear layers in float32 by the faster of MKL and oneDNN, and in bfloat16 without units for it.

torch multiplies float32 matrices on the CPU by MKL, which leaves the AVX-512 units of AMD's processors unused: at
256 x 784 x 500 it reached 115 GFLOP/s on one core of a Zen 5, and oneDNN 250. On an AMD with AVX2 only MKL was
the faster by a tenth, and on Intel's processors it is left to its own. The choice rests on the processor and on the
sizes alone, never on a measurement, so that one machine gives one curve.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

#: Multiplications in a product from which oneDNN makes good what a call of it costs more than one of MKL.
_FROM = 2_000_000


def linear_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (m, k), weight (n, k), bias (n,) -> x weight^T + bias, (m, n). No gradient flows through it."""
    if torch.compiler.is_compiling():
        return cast(Tensor, torch.ops.vae_study.linear(x, weight, bias))
    return _linear(x, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], ""))


def _shape_of_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape[0], weight.shape[0])


# The compiler takes oneDNN's layer for constant weights only; an operator of our own it calls as it is.
_library = torch.library.Library("vae_study", "DEF")  # type: ignore[no-untyped-call]
_library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")  # type: ignore[no-untyped-call]
_library.impl("linear", _linear, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("vae_study::linear", _shape_of_linear, lib=_library)


def linear_by_rounding(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (m, k), weight (n, k), bias (n,), all bfloat16 -> x weight^T + bias, (m, n) bfloat16, multiplied and summed in
    float32 and rounded once at the end, as processors with bfloat16 units do it. No gradient flows through it."""
    if (
        torch.compiler.is_compiling()
    ):  # the compiler would take the conversions for superfluous, or multiply in bfloat16
        return cast(Tensor, torch.ops.vae_study.rounding(x, weight, bias))
    return _rounding(x, weight, bias)


def _rounding(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    wide, wide_weight = x.to(torch.float32), weight.to(torch.float32)
    wide_bias = None if bias is None else bias.to(torch.float32)
    if onednn_is_faster(wide, wide_weight):
        return _linear(wide, wide_weight, wide_bias).to(torch.bfloat16)
    return nn.functional.linear(wide, wide_weight, wide_bias).to(torch.bfloat16)


_library.define("rounding(Tensor x, Tensor weight, Tensor? bias) -> Tensor")  # type: ignore[no-untyped-call]
_library.impl("rounding", _rounding, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("vae_study::rounding", _shape_of_linear, lib=_library)


def onednn_is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is the faster way for these two, (m, k) and (n, k)."""
    return (
        x.dtype is torch.float32
        and x.ndim == 2
        and x.shape[0] * weight.shape[0] * weight.shape[1] >= _FROM
        and x.device.type == "cpu"
        and _MKL_IS_SLOW
    )


def _vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line for line in lines if line.startswith("vendor_id")), "")


_MKL_IS_SLOW = (
    torch.backends.cpu.get_cpu_capability() == "AVX512"
    and "AuthenticAMD" in _vendor()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


class Linear(nn.Linear):
    """torch's, by the faster library wherever no gradient is asked for."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in) -> (B, n_out)."""
        wanted_as_it_is = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        if not wanted_as_it_is and onednn_is_faster(x, self.weight):
            return linear_by_onednn(x, self.weight, self.bias)
        return super().forward(x)
