"""Measurements that anybody can repeat: steps of every method and policy behind one function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .step import Step, build_step

__all__ = ["Step", "build_step"]


def __getattr__(name: str) -> Any:
    """Import torch with the first use: `python -m msgdas.bench --help` answers without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import step

    return getattr(step, name)
