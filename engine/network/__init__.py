"""The network that a genotype stands for."""
