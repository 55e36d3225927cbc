"""The definition of right in plain PyTorch, clean in fp64, and the CPU's path."""
