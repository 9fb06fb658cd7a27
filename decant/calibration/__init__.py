"""Calibration: ranges of weights and of layers' inputs, and the integer grids that cover them."""
