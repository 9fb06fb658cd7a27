"""Least squares on layers: Hessians of their inputs, and the weights that fit their outputs best."""
