"""Train a smaller network to say what a larger one says."""
