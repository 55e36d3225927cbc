"""What a step takes: predicted, planned, measured, and kept within a budget."""
