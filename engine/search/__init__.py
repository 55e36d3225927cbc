"""The search: epochs of steps, resumed bit for bit, and the cell that comes out."""
