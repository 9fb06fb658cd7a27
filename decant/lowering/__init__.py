"""Models as integer kernels need them: batch norms folded, weights and biases in integers."""
