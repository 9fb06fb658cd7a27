"""The state of an interrupted training: a file named by a hash of all that the training depends on."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from decant.outputs import replacing

SCRATCH = Path(".scratch")


@dataclass(frozen=True)
class Scratch:
    """A place for the state of one training of one model.

    Attributes:
        folder: The model's folder; other trainings of the same model may lie there too.
        identity: Hash of all that decides the training's bits.
    """

    folder: Path
    identity: str = ""

    @property
    def file(self) -> Path:
        """Where the state lies."""
        return self.folder / f"{self.identity}.pt"

    def part(self, name: str) -> Scratch:
        """Return the place of one of several trainings of the same model; `clear` deletes all of them."""
        return Scratch(self.folder, hashlib.sha256(f"{self.identity}/{name}".encode()).hexdigest()[:20])

    def read(self) -> dict[str, Any] | None:
        """Return the state, or None where there is none that can be read; nothing in the file is executed."""
        try:
            loaded: dict[str, Any] = torch.load(self.file, weights_only=True)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            print(f"{self.file} cannot be read ({error}); starting from the first epoch", file=sys.stderr)
            return None
        return loaded

    def write(self, content: Mapping[str, Any]) -> None:
        """Replace the state by `content`: tensors, numbers, strings, and lists and mappings of these."""
        with replacing(self.file) as temporary:
            torch.save(dict(content), temporary)

    def clear(self) -> None:
        """Delete the state and older trainings of the same model: it is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def scratch(folder: Path, recipe: Mapping[str, Any], files: Iterable[Path], code: str) -> Scratch:
    """Return the place for a training.

    Args:
        folder: The model's own.
        recipe: All that the training's bits depend on beside files and code.
        files: What it reads.
        code: Identifies this version of the code.
    """
    digest = hashlib.sha256(json.dumps([torch.__version__, recipe, code], sort_keys=True).encode())
    for file in sorted(files):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return Scratch(folder, digest.hexdigest()[:20])
