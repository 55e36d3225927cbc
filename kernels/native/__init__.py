"""The C++ kernels of the CPU, through ctypes; norm.cpp, pool.cpp and depthwise.cpp say what they compute.

Shape suffixes: B batch, H height, W width, C channels. All take fp32 NHWC maps that `fits` accepts; where it says so
they also take a slice of a wider map along the channels, which `pixel_stride` knows. They run on torch's number of
threads, which no result depends on.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from ctypes import c_double, c_int, c_long, c_void_p
from typing import Any

import torch
from torch import Tensor

SETS = ("baseline", "AVX2", "AVX-512")
INTERFACE = 2  # As in dispatch.cpp: an editable install can outlive the signatures that its library was built with.
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "depthwise_weight_grad": ([c_void_p] * 3 + [c_long] * 4 + [c_int] * 4, None),
    "batch_stats": ([c_void_p, c_long, c_long, c_void_p, c_double, c_int], None),
    "accumulate": ([c_void_p, c_long, c_long, c_double, c_void_p, c_long, c_void_p, c_double, c_int], None),
    "normalize": ([c_void_p, c_long, c_long, c_void_p, c_void_p, c_int, c_int], None),
    "norm_backward": (
        [c_void_p, c_long, c_void_p, c_long, c_long, c_double, c_void_p, c_void_p, c_int, c_int], c_double,
    ),
    "xhat_backward": ([c_void_p, c_void_p, c_long, c_long, c_void_p, c_void_p, c_int], None),
    "add_where_positive": ([c_void_p, c_long, c_void_p, c_void_p, c_long, c_long, c_long, c_int], None),
    "max_pool": ([c_void_p, c_long, c_void_p] + [c_long] * 4 + [c_int] * 2, None),
    "max_pool_backward": ([c_void_p, c_long, c_void_p, c_void_p, c_long] + [c_long] * 4 + [c_int] * 3, None),
    "avg_pool": ([c_void_p, c_long, c_void_p] + [c_long] * 4 + [c_int] * 2, None),
    "avg_pool_backward": ([c_void_p, c_void_p, c_long] + [c_long] * 4 + [c_int] * 3, None),
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
    if not hasattr(library, "msgdas_interface") or library.msgdas_interface() != INTERFACE:
        return None, "the C++ kernels were built from an older source; install again"
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


def fits(*maps_BHWC: Tensor) -> bool:
    """Whether these maps are contiguous besides."""
    return takes(*maps_BHWC) and all(x.is_contiguous() for x in maps_BHWC)


def pixel_stride(x_BHWC: Tensor) -> int | None:
    """How far apart a map's pixels lie, in values; None where they do not lie in order at one distance.

    Strides of sides of one pixel mean nothing and are not looked at.
    """
    if not takes(x_BHWC):
        return None
    batch, height, width, channels = x_BHWC.shape
    if x_BHWC.is_contiguous():
        return channels
    of_sample, of_row, of_pixel, of_channel = x_BHWC.stride()
    pixel = of_pixel if width > 1 else of_row if height > 1 else of_sample
    in_order = (
        (height == 1 or of_row == width * pixel)
        and (batch == 1 or of_sample == height * width * pixel)
        and (channels == 1 or of_channel == 1)
    )
    return pixel if in_order and pixel >= channels else None


def _pixel(x_BHWC: Tensor) -> int:
    pixel = pixel_stride(x_BHWC)
    assert pixel is not None, f"strides {x_BHWC.stride()} of {tuple(x_BHWC.shape)}"
    return pixel


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
        "accumulate", z_BHWC.data_ptr(), _rows(z_BHWC), z_BHWC.shape[-1], gate, out_BHWC.data_ptr(), _pixel(out_BHWC),
        stats.data_ptr(), epsilon, torch.get_num_threads(),
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
    dy_BHWC: Tensor, z_BHWC: Tensor, stats_2C: Tensor, gate: float, *, behind_relu: bool = False
) -> tuple[Tensor, float]:
    """(dz of gate * BatchNorm(z), gradient of the gate); dz is written over z.

    With `behind_relu` dy counts where xhat is positive only. dy may be a slice along the channels.
    """
    gate_grad = _call(
        "norm_backward", dy_BHWC.data_ptr(), _pixel(dy_BHWC), z_BHWC.data_ptr(), _rows(z_BHWC), z_BHWC.shape[-1],
        gate, stats_2C.data_ptr(), z_BHWC.data_ptr(), behind_relu, torch.get_num_threads(),
    )  # fmt: skip
    return z_BHWC, gate_grad


def xhat_backward_(dy_BHWC: Tensor, xhat_BHWC: Tensor, rstd_C: Tensor) -> Tensor:
    """dz of BatchNorm(z) where the normalised map was kept; written over dy."""
    _call(
        "xhat_backward", dy_BHWC.data_ptr(), xhat_BHWC.data_ptr(), _rows(dy_BHWC), dy_BHWC.shape[-1],
        rstd_C.data_ptr(), dy_BHWC.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return dy_BHWC


def add_where_positive_(d_BHWC: Tensor, da_BHWC: Tensor, x_BHWC: Tensor) -> None:
    """d += da where x > 0; d and x may be slices along the channels."""
    _call(
        "add_where_positive", d_BHWC.data_ptr(), _pixel(d_BHWC), da_BHWC.data_ptr(), x_BHWC.data_ptr(),
        _pixel(x_BHWC), _rows(da_BHWC), da_BHWC.shape[-1], torch.get_num_threads(),
    )  # fmt: skip


def max_pool(x_BHWC: Tensor, stride: int) -> Tensor:
    """Maximum over 3x3, padding 1; x may be a slice along the channels."""
    return _pool("max_pool", x_BHWC, stride)


def avg_pool(x_BHWC: Tensor, stride: int) -> Tensor:
    """Mean over the pixels of 3x3 inside the map; x may be a slice along the channels."""
    return _pool("avg_pool", x_BHWC, stride)


def _pool(name: str, x_BHWC: Tensor, stride: int) -> Tensor:
    batch, height, width, channels = x_BHWC.shape
    y_BHWC = x_BHWC.new_empty(batch, -(-height // stride), -(-width // stride), channels)
    _call(
        name, x_BHWC.data_ptr(), _pixel(x_BHWC), y_BHWC.data_ptr(), batch, height, width, channels, stride,
        torch.get_num_threads(),
    )  # fmt: skip
    return y_BHWC


def max_pool_backward_(d_BHWC: Tensor, g_BHWC: Tensor, x_BHWC: Tensor, stride: int, *, add: bool) -> None:
    """Write the pool's input gradient to d, or add it; a window's goes to its first maximum in row-major order.

    d and x may be slices along the channels.
    """
    batch, height, width, channels = x_BHWC.shape
    _call(
        "max_pool_backward", x_BHWC.data_ptr(), _pixel(x_BHWC), g_BHWC.data_ptr(), d_BHWC.data_ptr(), _pixel(d_BHWC),
        batch, height, width, channels, stride, add, torch.get_num_threads(),
    )  # fmt: skip


def avg_pool_backward_(d_BHWC: Tensor, g_BHWC: Tensor, stride: int, *, add: bool) -> None:
    """As above for the mean."""
    batch, height, width, channels = d_BHWC.shape
    _call(
        "avg_pool_backward", g_BHWC.data_ptr(), d_BHWC.data_ptr(), _pixel(d_BHWC), batch, height, width, channels,
        stride, add, torch.get_num_threads(),
    )  # fmt: skip
