"""The teacher's answers on the test split: computed once, read by every evaluation.

They come out of the test split, so nothing that trains, prunes or calibrates may read them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decant.errors import DecantError
from decant.outputs import replacing

TEACHER = Path("predictions/teacher.npy")


def write(path: Path, classes: Tensor) -> None:
    """Write the predicted classes [N], below 256, one byte for each image."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, classes.to(torch.uint8).numpy())


def read(path: Path, count: int) -> Tensor:
    """Return the predicted classes [count] of as many images.

    Raises:
        DecantError: The file is missing, is no array of one byte for each image, or has another count.
    """
    again = "run `dvc repro evaluate-teacher`"
    try:
        with path.open("rb") as file:  # not np.load, which takes archives and pickles too
            classes = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise DecantError(f"No {path}; {again}") from None
    except ValueError as error:
        raise DecantError(f"{path} is no array that can be read ({error}); {again}") from None
    if classes.dtype != np.uint8 or classes.shape != (count,):
        found = f"{classes.dtype} {list(classes.shape)}"
        raise DecantError(f"{path}: expected uint8 [{count}], found {found}; {again}")
    return torch.from_numpy(classes).long()
