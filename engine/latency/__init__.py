"""Latencies of operations and networks, measured on this machine."""
