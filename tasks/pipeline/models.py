"""The models of params.yaml, each in its folder under models/."""

from __future__ import annotations

from pathlib import Path

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import load

MODELS = Path("models")


def load_model(name: str) -> Checkpoint:
    """Return the model of that name, one of params.yaml's or `teacher`."""
    return load(MODELS / name)
