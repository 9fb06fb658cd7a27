"""Training: the loop, its losses and recipes, and how an interrupted run is resumed."""
