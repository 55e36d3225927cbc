"""Which implementation runs: Triton, C++ on the CPU, or plain PyTorch."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Where each function lives: kernels/<module>.py and its twin kernels/reference/<module>.py.
MODULES = {
    "gumbel_topk": "gumbel_topk",
    "grouped_stage": "grouped_stage",
    "bn_combine": "bn_combine",
    "bn_combine_backward": "bn_combine",
    "point_backward": "stage_backward",
    "taps_backward": "stage_backward",
    "gather_backward": "gather_backward",
    "stage_weight_grads": "stage_weights",
    "drop_mask": "drop_mask",
    "prepare_into": "prepare",
    "prepare_backward": "prepare_backward",
}
TWIN_MODULES = {**MODULES, "drop_mask": "dropblock", "gather_backward": "stage_backward", "prepare_backward": "prepare"}


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, so that they take CPU tensors."""
    if importlib.util.find_spec("triton") is None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


@functools.cache
def _load(name: str, reference: bool) -> Callable[..., Any]:
    package = __package__ + (".reference" if reference else "")
    module = importlib.import_module(f"{package}.{(TWIN_MODULES if reference else MODULES)[name]}")
    return getattr(module, name)


def function(name: str, tensor: Tensor) -> Callable[..., Any]:
    """The Triton function for CUDA tensors and in the interpreter, its plain-PyTorch twin elsewhere."""
    return _load(name, reference=not (tensor.is_cuda or interpreting()))


def runs_triton(tensor: Tensor) -> bool:
    """Whether a kernel takes this tensor: on CUDA, in the interpreter, or without data."""
    return tensor.is_cuda or interpreting() or torch._guards.active_fake_mode() is not None


def why_not_triton(device: torch.device) -> str | None:
    """None where the Triton kernels run on tensors of this device, else the reason in a few words."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreting() or torch._guards.active_fake_mode() is not None:
        return None
    if device.type != "cuda":
        return f"Triton needs a CUDA device, this one is {device.type}"
    if not torch.cuda.is_available():
        return "no CUDA driver"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the kernels are built for sm_80 and later, this GPU is sm_{major}{minor}"
    return _why_not_built(device)


@functools.cache
def _why_not_built(device: torch.device) -> str | None:
    """None where Triton builds and starts a small kernel on the device, else the reason in a few words."""
    try:
        build_one(device)
    except Exception as error:
        reason = build_failure(error)
        if reason is None:
            raise
        return reason
    return None


def build_one(device: torch.device) -> None:
    """Draw one of two operations with the sampler's kernel, which is small and needs all that the others need."""
    alpha_EO, clock = torch.zeros(1, 2, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    tau = torch.ones((), device=device)
    _load("gumbel_topk", reference=False)(
        alpha_EO, clock, tau, k=1, stream=0, relaxation="soft", noise=True, mode="union", assign="rank"
    )  # fmt: skip


def build_failure(error: BaseException) -> str | None:
    """In a few words why Triton could not build one of these kernels; None for any other error, such as one of CUDA."""
    frames, at = [], error.__traceback__
    while at is not None:
        frames.append(str(at.tb_frame.f_globals.get("__name__")))
        at = at.tb_next
    modules = [*(base.__module__ for base in type(error).__mro__), *frames]
    ours = any(name.startswith(f"{__package__}.") for name in frames)
    if not ours or not any(name.partition(".")[0] == "triton" for name in modules):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    # The compiler begins with where in the source it stands, and ends with what is wrong.
    said = lines[-1] if lines[0].startswith("at ") else lines[0]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "CUDA" in said:
        return None
    return f"Triton cannot build a kernel here ({type(error).__name__}: {said[:160]})"


def why_not_native() -> str | None:
    """None where the C++ kernels are built and load, else the reason in a few words."""
    from . import native

    return native.why_not()
