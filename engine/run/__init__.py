"""A run folder, its checkpoints, and the processes that share a run."""
