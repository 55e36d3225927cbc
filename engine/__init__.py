"""The engine: search spaces, the supernet, the sampler, the search loop and the command line."""
