"""Which implementation of the cells a search runs with, and why."""

from __future__ import annotations

from typing import Literal

import torch

from ..kernels import backend
from .config import SearchConfig
from .errors import ConfigError

Impl = Literal["triton", "native", "reference"]


def device_of(config: SearchConfig) -> torch.device:
    """The device that `auto` stands for, or the one asked for if it is there."""
    available = torch.cuda.is_available()
    if config.device == "auto":
        return torch.device("cuda" if available else "cpu")
    if config.device.startswith("cuda") and not available:
        raise ConfigError("no CUDA device can be used", got=config.device, allowed="cpu, auto", next="--device cpu")
    return torch.device(config.device)


def resolve(config: SearchConfig, device: torch.device) -> tuple[Impl, str | None]:
    """The implementation, and one line on why it is not the quickest where `auto` had to fall back.

    Raises:
        ConfigError: where the implementation that was asked for cannot run; bf16 maps need `triton`.
    """
    reason = _why_not_triton(config, device)
    asked = config.impl
    if asked == "triton" or config.dtype == "bfloat16":
        if reason is not None:
            what = 'impl = "triton" cannot run' if asked == "triton" else "bfloat16 maps need the Triton kernels"
            raise ConfigError(what, got=reason, allowed="impl auto, native or reference in float32", next="--impl auto")
        return "triton", None
    if asked == "native":
        missing = "it is for CPU tensors" if device.type != "cpu" else backend.why_not_native()
        if missing is not None:
            raise ConfigError('impl = "native" cannot run', got=missing, allowed="auto, reference", next="--impl auto")
        return "native", None
    if asked == "reference":
        return "reference", None
    if device.type == "cuda":
        return ("triton", None) if reason is None else ("reference", f"cells run in plain PyTorch: {reason}")
    missing = backend.why_not_native()
    return ("native", None) if missing is None else ("reference", f"cells run in plain PyTorch: {missing}")


def _why_not_triton(config: SearchConfig, device: torch.device) -> str | None:
    if config.gate == "recompute":
        return "gate recompute runs operations that were not sampled, which only the host can know"
    if config.policy == "autograd":
        return "policy autograd is the plain path"
    return backend.why_not_triton(device)
