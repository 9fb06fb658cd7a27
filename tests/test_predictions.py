"""The teacher's predictions on disk: what was written is read; anything else is told with the way out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from decant.errors import DecantError
from tasks.evaluate import predictions


def test_what_was_written_is_read_at_one_byte_an_image(tmp_path: Path) -> None:
    path, classes = tmp_path / "deep" / "teacher.npy", torch.tensor([3, 0, 255, 9])
    predictions.write(path, classes)
    assert torch.equal(predictions.read(path, 4), classes)
    assert path.stat().st_size == 128 + 4  # NumPy's header, then the classes
    first = path.read_bytes()
    predictions.write(path, classes)
    assert path.read_bytes() == first


def test_a_missing_file_names_the_stage_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(DecantError, match=r"No .*teacher\.npy; run `dvc repro evaluate-teacher`"):
        predictions.read(tmp_path / "teacher.npy", 4)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros(3, np.uint8), r"found uint8 \[3\]"),
        (np.zeros(4, np.int64), r"found int64 \[4\]"),
        (np.zeros((2, 2), np.uint8), r"found uint8 \[2, 2\]"),
        (np.array([object()] * 4), "cannot be loaded|can be read"),
    ],
)
def test_another_array_is_refused(array: np.ndarray, found: str, tmp_path: Path) -> None:  # type: ignore[type-arg]  # any dtype
    np.save(path := tmp_path / "teacher.npy", array)
    with pytest.raises(DecantError, match=found):
        predictions.read(path, 4)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_a_broken_file_is_refused_without_a_trace(content: bytes, tmp_path: Path) -> None:
    (path := tmp_path / "teacher.npy").write_bytes(content)
    with pytest.raises(DecantError, match="run `dvc repro evaluate-teacher`"):
        predictions.read(path, 4)
