"""Numbers drawn from a seed, for all tests that need some."""

import torch
from torch import Tensor


def drawn(seed: int, *shape: int) -> Tensor:
    """Return normally distributed numbers of a shape, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
