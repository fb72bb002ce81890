"""Training: data, the only training loop, and checkpoints."""
