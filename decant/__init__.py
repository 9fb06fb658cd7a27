"""decant."""
