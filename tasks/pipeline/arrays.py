"""Named tensors from .npz and .safetensors files, read without running anything."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from decant.errors import DecantError
from decant.sealed import one_line

ENDINGS = (".npz", ".safetensors")


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, in the file's order.

    Raises:
        DecantError: There is no such file; it is another or no whole one; or holds what is no tensor, such as
            words and Python's objects.
    """
    if path.suffix not in ENDINGS:
        raise DecantError(f"{path} is read only as {' or '.join(ENDINGS)}; write named arrays into one")
    if not path.is_file():
        raise DecantError(f"No {path} here; put the file there, or name another")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        return {name: _tensor(name, each) for name, each in found.items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError, TypeError) as error:
        raise DecantError(f"{path} does not hold tensors ({one_line(error)}); write numbers alone") from None
    except Exception as error:  # safetensors has an error of its own
        raise DecantError(f"{path} is damaged ({one_line(error)}); replace it") from None


def _tensor(name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} is of {array.dtype}")
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    return torch.from_numpy(native)
