"""Seeds: one for each model, derived from the one in params.yaml and the model's name."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, name: str) -> int:
    """Return the seed of one model, in [0, 2^63): other names give other seeds, in any order of running."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1
