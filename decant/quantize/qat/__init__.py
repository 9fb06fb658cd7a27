"""Quantization-aware training: weights, and the steps of their levels, trained while they are rounded."""
