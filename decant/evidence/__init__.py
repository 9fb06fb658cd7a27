"""What compression did beside the accuracy: corrupted inputs, flips, chance, norms of weights."""
