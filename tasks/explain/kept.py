"""The teacher's explanations: made once, compared with every model's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from decant.explanations.features import Features
from decant.outputs import write_text
from decant.sealed import read_bytes, reading, seal, unseal
from tasks.explain.methods import METHODS, Explained

TEACHER = Path("explanations/teacher.json")
MOST = 1 << 24
"""Bytes of the file, at most."""

REMEDY = "run `dvc repro -f explain-teacher`"

Draws = dict[str, tuple[Tensor, Tensor]]


def write(path: Path, explained: Explained, sources: Sequence[Path]) -> None:
    """Write the teacher's attributions, sealed, as numbers that read back to the bit.

    Args:
        path: Where to.
        explained: Two draws of each method.
        sources: The files that they follow from; the sum is over them too.
    """
    content = {method: [draw.tolist() for draw in each] for method, each in explained.attributions.items()}
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    write_text(path, seal(text, *_sums(sources)))


def read(path: Path, features: Features, sources: Sequence[Path]) -> Draws:
    """Return the teacher's attributions [N, M] by method, two draws each.

    Raises:
        DecantError: The file is missing or damaged, or of another teacher, other examples or features.
    """
    with reading(path, REMEDY):
        content = unseal(read_bytes(path, MOST), *_sums(sources))
        found = {method: _draws(each, features) for method, each in content.items() if method in METHODS}
        if not found or len(found) != len(content):
            raise ValueError(f"it holds {', '.join(content) or 'nothing'}, expected {', '.join(METHODS)}")
    return found


def _draws(content: object, features: Features) -> tuple[Tensor, Tensor]:
    found = torch.tensor(content, dtype=torch.float64)
    if found.shape != (2, len(features.counts), features.most):
        raise ValueError(
            f"attributions of shape {[*found.shape]}, expected two of {len(features.counts)} examples"
        )
    return found[0], found[1]


def _sums(sources: Sequence[Path]) -> list[bytes]:
    return [sha256(file.read_bytes()).digest() for file in sources]
