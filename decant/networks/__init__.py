"""Networks: architectures, their layers and shapes, and running them reproducibly."""
