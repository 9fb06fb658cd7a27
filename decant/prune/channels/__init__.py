"""Pruning of whole channels, which are removed from the network."""
