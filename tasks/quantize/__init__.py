"""Round weights, and the inputs of layers, to a few levels."""
