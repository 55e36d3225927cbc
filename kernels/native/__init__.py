"""The C++ kernels of the CPU, through ctypes; see kernels.cpp for what they compute and how they sum.

All take fp32 maps that are contiguous NHWC, or, where it says so, a slice of a wider map along the channels.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from ctypes import c_double, c_float, c_int, c_long, c_void_p

import torch
from torch import Tensor

SETS = ("baseline", "AVX2", "AVX-512")
_SIGNATURES: dict[str, tuple[list[type], type | None]] = {
    "depthwise_weight_grad": ([c_void_p] * 3 + [c_long] * 4 + [c_int] * 4, None),
    "batch_stats": ([c_void_p, c_long, c_long, c_void_p, c_double, c_int], None),
    "accumulate": ([c_void_p, c_long, c_long, c_float, c_void_p, c_long, c_void_p, c_double, c_int], None),
    "normalize": ([c_void_p, c_long, c_long, c_void_p, c_void_p, c_int, c_int], None),
    "norm_backward": (
        [c_void_p, c_long, c_void_p, c_long, c_long, c_float, c_void_p, c_void_p, c_int, c_int], c_double,
    ),
    "add_where_positive": ([c_void_p, c_long, c_void_p, c_void_p, c_long, c_long, c_long, c_int], None),
    "max_pool": ([c_void_p, c_long, c_void_p] + [c_long] * 4 + [c_int] * 2, None),
    "max_pool_backward": ([c_void_p, c_long, c_void_p, c_void_p, c_long] + [c_long] * 4 + [c_int] * 2, None),
    "instruction_set": ([], c_int),
    "limit_instruction_set": ([c_int], c_int),
}  # fmt: skip


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """(library, None), or (None, why there is none)."""
    spec = importlib.util.find_spec(f"{__name__}._kernels")
    if spec is None or spec.origin is None:
        return None, "the C++ kernels are not built (a C++ compiler at install time builds them)"
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:
        return None, f"the C++ kernels do not load: {error}"
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(library, f"msgdas_{name}")
        function.argtypes, function.restype = arguments, result
    return library, None


def why_not() -> str | None:
    """None where the kernels can run, else the reason in a few words."""
    return _load()[1]


def instruction_set() -> str:
    """What this CPU's kernels are compiled for."""
    return SETS[_call("instruction_set")]


def limit_instruction_set(highest: int) -> str:
    """Use at most SETS[highest]; for tests and comparisons."""
    return SETS[_call("limit_instruction_set", highest)]


def _call(name: str, *arguments: float) -> int:
    library, reason = _load()
    assert library is not None, reason
    return getattr(library, f"msgdas_{name}")(*arguments)


def takes(*maps: Tensor) -> bool:
    """Whether these maps are what the kernels compute on: fp32 on the CPU, and real."""
    return all(type(m) in (Tensor, torch.nn.Parameter) and m.dtype == torch.float32 and m.is_cpu for m in maps)


def _rows(x_BHWC: Tensor) -> int:
    return x_BHWC.numel() // x_BHWC.shape[-1]


def depthwise_weight_grad(g_BHWC: Tensor, x_BHWC: Tensor, side: int, dilation: int, stride: int) -> Tensor:
    """[C, 1, k, k], a view of the taps [k * k, C] that the kernel writes."""
    g_BHWC, x_BHWC = g_BHWC.contiguous(), x_BHWC.contiguous()
    batch, height, width, channels = x_BHWC.shape
    taps = x_BHWC.new_empty(side, side, channels)
    _call(
        "depthwise_weight_grad", x_BHWC.data_ptr(), g_BHWC.data_ptr(), taps.data_ptr(), batch, height, width, channels,
        side, dilation, stride, torch.get_num_threads(),
    )  # fmt: skip
    return taps.permute(2, 0, 1).unsqueeze(1)


def batch_stats(z_BHWC: Tensor, epsilon: float) -> Tensor:
    """(mean, rstd) [2, C]."""
    stats = z_BHWC.new_empty(2, z_BHWC.shape[-1])
    rows, channels = _rows(z_BHWC), z_BHWC.shape[-1]
    _call("batch_stats", z_BHWC.data_ptr(), rows, channels, stats.data_ptr(), epsilon, torch.get_num_threads())
    return stats


def accumulate_(out_BHWC: Tensor, z_BHWC: Tensor, gate: float, epsilon: float) -> Tensor:
    """out += gate * BatchNorm(z); returns its statistics [2, C]. `out` may be a slice along the channels."""
    stats = z_BHWC.new_empty(2, z_BHWC.shape[-1])
    _call(
        "accumulate", z_BHWC.data_ptr(), _rows(z_BHWC), z_BHWC.shape[-1], gate, out_BHWC.data_ptr(),
        out_BHWC.stride(2), stats.data_ptr(), epsilon, torch.get_num_threads(),
    )  # fmt: skip
    return stats


def normalize(z_BHWC: Tensor, stats_2C: Tensor, *, relu: bool, out: Tensor | None = None) -> Tensor:
    """xhat or relu(xhat); `out` may be z."""
    out = torch.empty_like(z_BHWC) if out is None else out
    _call(
        "normalize", z_BHWC.data_ptr(), _rows(z_BHWC), z_BHWC.shape[-1], stats_2C.data_ptr(), out.data_ptr(), relu,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def norm_backward_(
    dy_BHWC: Tensor, z_BHWC: Tensor, stats_2C: Tensor, gate: float, *, behind_relu: bool = False,
    out: Tensor | None = None,
) -> tuple[Tensor, float]:  # fmt: skip
    """(dz of gate * BatchNorm(z), gradient of the gate); dz goes to `out`, which may be z (the default) or dy.

    With `behind_relu` dy counts where xhat is positive only. dy may be a slice along the channels.
    """
    out = z_BHWC if out is None else out
    gate_grad = _call(
        "norm_backward", dy_BHWC.data_ptr(), dy_BHWC.stride(2), z_BHWC.data_ptr(), _rows(z_BHWC), z_BHWC.shape[-1],
        gate, stats_2C.data_ptr(), out.data_ptr(), behind_relu, torch.get_num_threads(),
    )  # fmt: skip
    return out, gate_grad


def add_where_positive_(d_BHWC: Tensor, da_BHWC: Tensor, x_BHWC: Tensor) -> None:
    """d += da where x > 0; d and x may be slices along the channels."""
    _call(
        "add_where_positive", d_BHWC.data_ptr(), d_BHWC.stride(2), da_BHWC.data_ptr(), x_BHWC.data_ptr(),
        x_BHWC.stride(2), _rows(da_BHWC), da_BHWC.shape[-1], torch.get_num_threads(),
    )  # fmt: skip


def max_pool(x_BHWC: Tensor, stride: int) -> Tensor:
    """Maximum over 3x3, padding 1; x may be a slice along the channels."""
    batch, height, width, channels = x_BHWC.shape
    y_BHWC = x_BHWC.new_empty(batch, -(-height // stride), -(-width // stride), channels)
    _call(
        "max_pool", x_BHWC.data_ptr(), x_BHWC.stride(2), y_BHWC.data_ptr(), batch, height, width, channels, stride,
        torch.get_num_threads(),
    )  # fmt: skip
    return y_BHWC


def max_pool_backward_(d_BHWC: Tensor, g_BHWC: Tensor, x_BHWC: Tensor, stride: int) -> None:
    """Add the pool's input gradient to d; each window's goes to its first maximum in row-major order."""
    batch, height, width, channels = x_BHWC.shape
    _call(
        "max_pool_backward", x_BHWC.data_ptr(), x_BHWC.stride(2), g_BHWC.data_ptr(), d_BHWC.data_ptr(),
        d_BHWC.stride(2), batch, height, width, channels, stride, torch.get_num_threads(),
    )  # fmt: skip
