"""Alpha, the draws, and one step on the weights and one on alpha."""
