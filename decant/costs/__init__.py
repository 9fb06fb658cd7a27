"""What a model costs: parameters, multiplications, bytes, and how far its logits move."""
