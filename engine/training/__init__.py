"""A derived network trained from scratch and judged."""
