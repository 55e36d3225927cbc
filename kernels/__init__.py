"""Mathematics on tensors, forward and backward, without modules or state."""
