"""mixed_precision."""
