"""The bytes that a model takes on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import save, size_bytes


def stored(model: Checkpoint) -> float:
    """Return the bytes that the model takes on disk, by writing it."""
    with tempfile.TemporaryDirectory(prefix="decant-size-") as folder:
        save(model, Path(folder))
        return size_bytes(Path(folder))
