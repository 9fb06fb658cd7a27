"""Cut weights to a range, or set the small ones to zero."""
