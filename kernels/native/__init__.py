"""The C++ kernels of the CPU, through ctypes; the .cpp files say what they compute.

Shape suffixes: B batch, H height, W width, C channels. All take fp32 NHWC maps that `fits` accepts; where it says so
they also take a slice of a wider map along the channels, which `pixel_stride` knows. They run on torch's number of
threads, which no result depends on.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from ctypes import c_double, c_int, c_long, c_void_p
from typing import Any, ClassVar

import torch
from torch import Tensor

SETS = ("baseline", "AVX2", "AVX-512")
INTERFACE = 3  # As in dispatch.cpp: an editable install can outlive the signatures that its library was built with.
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "depthwise_weight_grad": ([c_void_p] * 3 + [c_long] * 4 + [c_int] * 4, None),
    "batch_stats": ([c_void_p, c_long, c_long, c_void_p, c_double, c_int], None),
    "accumulate": ([c_void_p, c_long, c_long, c_double, c_void_p, c_long, c_void_p, c_double, c_int], None),
    "norm_backward": ([c_void_p, c_long, c_void_p, c_long, c_long, c_double, c_void_p, c_int], c_double),
    "add_where_positive": ([c_void_p, c_long, c_void_p, c_void_p, c_long, c_long, c_long, c_int], None),
    "max_pool": ([c_void_p, c_long, c_void_p] + [c_long] * 4 + [c_int] * 2, None),
    "max_pool_backward": ([c_void_p, c_long, c_void_p, c_void_p, c_long] + [c_long] * 4 + [c_int] * 3, None),
    "avg_pool": ([c_void_p, c_long, c_void_p] + [c_long] * 4 + [c_int] * 2, None),
    "avg_pool_backward": ([c_void_p, c_void_p, c_long] + [c_long] * 4 + [c_int] * 3, None),
    "separable_forward": ([c_void_p, c_int, c_double, c_void_p, c_long], None),
    "separable_backward": ([c_void_p, c_void_p, c_long, c_double, c_void_p], c_double),
    "projection_forward": ([c_void_p, c_void_p, c_void_p, c_int, c_double], None),
    "projection_backward": ([c_void_p] * 7, None),
    "instruction_set": ([], c_int),
    "limit_instruction_set": ([c_int], c_int),
}  # fmt: skip


class _Separable(ctypes.Structure):
    _fields_: ClassVar = [
        ("x", c_void_p), ("depthwise", c_void_p * 2), ("pointwise", c_void_p * 2), ("z", c_void_p * 2),
        ("stats", c_void_p * 2), *((name, c_long) for name in ("x_stride", "batch", "height", "width", "channels")),
        *((name, c_int) for name in ("side", "dilation", "stride", "stages", "threads")), ("epsilon", c_double),
    ]  # fmt: skip


class _SeparableGrads(ctypes.Structure):
    _fields_: ClassVar = [
        ("dx", c_void_p), ("depthwise", c_void_p * 2), ("pointwise", c_void_p * 2), ("dx_stride", c_long),
        ("add", c_int),
    ]  # fmt: skip


class _Projection(ctypes.Structure):
    _fields_: ClassVar = [
        ("x", c_void_p), ("weights", c_void_p * 2),
        *((name, c_long) for name in ("batch", "height", "width", "inputs", "outputs")), ("threads", c_int),
    ]  # fmt: skip


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


def _call(name: str, *arguments: Any) -> Any:
    library, reason = _load()
    assert library is not None, reason
    return getattr(library, f"msgdas_{name}")(*arguments)


_REAL = (Tensor, torch.nn.Parameter)


def takes(x: Tensor) -> bool:
    """Whether the kernels compute on this tensor: fp32 on the CPU, and real."""
    return x.dtype is torch.float32 and type(x) in _REAL and x.is_cpu


def fits(*maps_BHWC: Tensor) -> bool:
    """Whether these tensors are contiguous besides."""
    return all(takes(x) and x.is_contiguous() for x in maps_BHWC)


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


def norm_backward_(dy_BHWC: Tensor, z_BHWC: Tensor, stats_2C: Tensor, gate: float) -> tuple[Tensor, float]:
    """(dz of gate * BatchNorm(z), gradient of the gate); dz is written over z. dy may be a slice along the channels."""
    gate_grad = _call(
        "norm_backward", dy_BHWC.data_ptr(), _pixel(dy_BHWC), z_BHWC.data_ptr(), _rows(z_BHWC), z_BHWC.shape[-1],
        gate, stats_2C.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return z_BHWC, gate_grad


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


class SeparableWeights:
    """The weights of a separable convolution as the kernels read them; keeps them alive.

    Attributes:
        side: of the depthwise kernels.
        depthwise, pointwise: addresses by stage.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = weights
        self.side = weights[0].shape[-1]
        self.depthwise, self.pointwise = _addresses(weights[::2]), _addresses(weights[1::2])

    @classmethod
    def of(cls, weights: Sequence[Tensor]) -> SeparableWeights | None:
        """None where the kernels do not take them: they lie channels last, as in a cell's arenas.

        Args:
            weights: depthwise [C, 1, k, k] and pointwise [C, C] of each of the one or two stages.
        """
        for depthwise, pointwise in zip(weights[::2], weights[1::2], strict=True):
            if not (takes(depthwise) and takes(pointwise) and pointwise.is_contiguous()):
                return None
            channels, _, side, _ = depthwise.shape
            of_channel, _, of_row, of_column = depthwise.stride()
            if side not in (3, 5) or (of_channel, of_row, of_column) != (1, side * channels, channels):
                return None
        return cls(weights)


class Separable:
    """One separable convolution on its way through the kernels (separable.cpp).

    Args:
        weights: of its one or two stages.
        x_BHWC: input; may be a slice along the channels.
        dilation, stride: of the depthwise convolutions; the second stage has stride 1.
        zs: of each stage before its BatchNorm, written by `forward`.
        stats: (mean, rstd) [2, C] of each z; those that are not known yet are written by `forward`.
        epsilon: of BatchNorm.
    """

    def __init__(
        self, weights: SeparableWeights, x_BHWC: Tensor, dilation: int, stride: int, zs: Sequence[Tensor],
        stats: Sequence[Tensor], epsilon: float,
    ) -> None:  # fmt: skip
        self._pixel = pixel_stride(x_BHWC)
        self._kept = (weights, x_BHWC, zs, stats)
        self._call = _Separable(
            x_BHWC.data_ptr(), weights.depthwise, weights.pointwise, _addresses(zs), _addresses(stats),
            self._pixel or 0, *x_BHWC.shape, weights.side, dilation, stride, len(zs), torch.get_num_threads(), epsilon,
        )  # fmt: skip

    def forward(self, known: int, out: Tensor | None, gate: float) -> bool:
        """Write z of each stage, and the statistics beyond the first `known`; out += gate * BatchNorm(last z).

        `out` may be a slice along the channels. False, and nothing done, for maps that the kernels do not take.
        """
        pixel = 0 if out is None else pixel_stride(out)
        if self._pixel is None or pixel is None:
            return False
        _call(
            "separable_forward", ctypes.byref(self._call), known, gate, None if out is None else out.data_ptr(), pixel
        )
        return True

    def backward(
        self, dy_BHWC: Tensor, gate: float, dx: Tensor | None, add: bool, weight_grads: Sequence[Tensor]
    ) -> float | None:
        """The gradient of the gate for a node's gradient dy, which may be a slice along the channels.

        dx is written or added to; the weights' gradients are written to tensors laid out as they are, unless there are
        none. Where there are two stages, the last z is overwritten. None, and nothing done, for maps that the kernels
        do not take.
        """
        pixel, dx_pixel = pixel_stride(dy_BHWC), 0 if dx is None else pixel_stride(dx)
        if self._pixel is None or pixel is None or dx_pixel is None:
            return None
        address = None if dx is None else dx.data_ptr()
        to = _SeparableGrads(address, _addresses(weight_grads[::2]), _addresses(weight_grads[1::2]), dx_pixel, add)
        return _call("separable_backward", ctypes.byref(self._call), dy_BHWC.data_ptr(), pixel, gate, ctypes.byref(to))


_Pair = c_void_p * 2
_NONE = _Pair()


def _addresses(tensors: Sequence[Tensor | None]) -> Any:
    if not tensors:
        return _NONE
    return _Pair(*[None if tensor is None else tensor.data_ptr() for tensor in tensors])


def _projection(x_BHWC: Tensor, weights: Sequence[Tensor]) -> _Projection:
    first, second = (*weights, None)[:2]
    outputs = sum(weight.shape[0] for weight in weights)
    return _Projection(x_BHWC.data_ptr(), _addresses((first, second)), *x_BHWC.shape, outputs, torch.get_num_threads())


def projects(x_BHWC: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the two functions below take these: contiguous, and even sides where there are two weights."""
    even = len(weights) == 1 or (x_BHWC.shape[1] % 2 == 0 and x_BHWC.shape[2] % 2 == 0)
    return even and fits(x_BHWC, *weights)


def projection(
    x_BHWC: Tensor, weights: Sequence[Tensor], stats_2O: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """(xhat of the 1x1 convolutions of relu(x), its statistics [2, O]): one weight [O, C], or the two of a
    FactorizedReduce [O / 2, C]. Given statistics are used as they are."""
    batch, height, width, _ = x_BHWC.shape
    halves, outputs = len(weights), sum(weight.shape[0] for weight in weights)
    xhat_BHWO = x_BHWC.new_empty(batch, height // halves, width // halves, outputs)
    stats = x_BHWC.new_empty(2, outputs) if stats_2O is None else stats_2O
    call = _projection(x_BHWC, weights)
    known = stats_2O is not None
    _call("projection_forward", ctypes.byref(call), xhat_BHWO.data_ptr(), stats.data_ptr(), known, epsilon)
    return xhat_BHWO, stats


def projection_backward(
    d_BHWO: Tensor, xhat_BHWO: Tensor, x_BHWC: Tensor, weights: Sequence[Tensor], rstd_O: Tensor,
    *, need_x: bool, need_w: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
    """(dx, gradients of the weights) of `projection`, None where not needed."""
    dx = x_BHWC.new_empty(x_BHWC.shape) if need_x else None
    grads: list[Tensor | None] = [torch.empty_like(weight) if need_w else None for weight in weights]
    call = _projection(x_BHWC, weights)
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in (dx, *grads, None)[:3]]
    _call(
        "projection_backward", ctypes.byref(call), d_BHWO.data_ptr(), xhat_BHWO.data_ptr(), rstd_O.data_ptr(), *pointers
    )
    return dx, grads
