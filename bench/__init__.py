"""Measurements that anybody can repeat: steps of every method and policy behind one function."""

from .step import Step, build_step

__all__ = ["Step", "build_step"]
