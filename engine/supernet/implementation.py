"""Which implementation of the cells a search runs with, and why."""

from __future__ import annotations

from typing import Literal

import torch

from ...kernels import backend
from ..errors import ConfigError
from ..settings.config import SearchConfig
from ..settings.train_config import TrainConfig
from ..spaces.space import space_named

# Dtypes of maps whose weights and statistics are float32.
NARROW = ("bfloat16", "float16")
Impl = Literal["triton", "native", "reference"]


def device_of(config: SearchConfig | TrainConfig) -> torch.device:
    """The device that `auto` stands for, or the one asked for if it is there."""
    available = torch.cuda.is_available()
    if config.device == "auto":
        return torch.device("cuda" if available else "cpu")
    if config.device.startswith("cuda") and not available:
        raise ConfigError("no CUDA device can be used", got=config.device, allowed="cpu, auto", next="--device cpu")
    return torch.device(config.device)


def resolve(config: SearchConfig, device: torch.device) -> tuple[Impl, str | None]:
    """`choose` on a device that is here."""
    if device.type == "cpu":
        return choose(config, "cpu", no_triton=backend.why_not_triton(device), no_native=backend.why_not_native())
    return choose(config, device.type, no_triton=backend.why_not_triton(device))


def choose(
    config: SearchConfig, device_type: str, *, no_triton: str | None, no_native: str | None = None
) -> tuple[Impl, str | None]:
    """The implementation, and one line on why it is not the quickest where `auto` had to fall back.

    Args:
        config: impl, dtype, gate and policy are read.
        device_type: cpu or cuda.
        no_triton, no_native: why the device cannot run these, None where it can.

    Raises:
        ConfigError: where the implementation that was asked for cannot run; where `auto` would run bf16 maps on a GPU
            without Triton.
    """
    reason, asked = _why_not_triton(config) or no_triton, config.impl
    missing = "it is for CPU tensors" if device_type != "cpu" else no_native
    if config.dtype in NARROW:
        missing = f"it is for float32 maps, not {config.dtype}"
    if asked == "triton":
        if reason is not None:
            raise ConfigError(
                'impl = "triton" cannot run', got=reason, allowed="impl auto, native or reference", next="--impl auto"
            )
        return "triton", None
    if asked == "native":
        if missing is not None:
            raise ConfigError('impl = "native" cannot run', got=missing, allowed="auto, reference", next="--impl auto")
        return "native", None
    if asked == "reference":
        return "reference", None
    if config.dtype == "bfloat16" and device_type != "cpu" and reason is not None:
        raise ConfigError(
            "bfloat16 maps need the Triton kernels to be quick on a GPU", got=reason,
            allowed="impl reference, or dtype float32", next="--set dtype=float32",
        )  # fmt: skip
    fast = device_type != "cpu" or (config.dtype == "bfloat16" and reason is None)
    best: Impl = "triton" if fast else "native"
    lacking = reason if fast else missing
    return (best, None) if lacking is None else ("reference", f"cells run in plain PyTorch: {lacking}")


def _why_not_triton(config: SearchConfig) -> str | None:
    if config.gate == "recompute":
        return "gate recompute runs operations that were not sampled, which only the host can know"
    if config.policy == "autograd":
        return "policy autograd is the plain path"
    if space_named(config.space).chain is not None:
        return f"space {config.space} has no Triton kernels"
    if config.dtype == "float16":
        return "its kernels take float32 and bfloat16 maps"
    return None
