"""Train a compressed model further while it stays as compressed as it is."""
