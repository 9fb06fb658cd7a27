"""Networks with weights that other people trained: read, checked, and made a model to compress."""
