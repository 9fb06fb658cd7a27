"""Mixed precision: a bit width for each layer, under a budget for all."""
