"""Bytes and devices: what a step keeps alive, what the device holds; knows neither kernels nor engine."""
