"""What models answer, on disk: what was written is read; anything else is refused with the way out."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from decant.errors import DecantError
from tasks.pipeline import predictions

ANSWERS = torch.tensor([[3.0], [0.0], [255.0], [-256.5], [299.0], [1e-30]])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with an output for each of six images."""
    predictions.write(tmp_path / "deep" / "teacher.npy", ANSWERS)
    return tmp_path / "deep" / "teacher.npy"


def npy(array: np.ndarray) -> bytes:  # type: ignore[type-arg]  # any dtype
    np.save(buffer := io.BytesIO(), array, allow_pickle=True)
    return buffer.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\1\0v\0" + text.encode().ljust(117) + b"\n" + bytes(6 * 8 + 32)


def test_what_was_written_is_read_and_is_the_same_bytes_again(path: Path) -> None:
    assert torch.equal(predictions.read(path, (6, 1)), ANSWERS)
    first = path.read_bytes()
    predictions.write(path, ANSWERS)
    assert path.read_bytes() == first


def test_numpy_reads_them_too(path: Path) -> None:
    assert np.load(path).tolist() == ANSWERS.tolist()


def test_a_missing_file_names_the_stage_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(DecantError, match=r"No .*teacher\.npy; run `dvc repro -f evaluate-teacher`"):
        predictions.read(tmp_path / "teacher.npy", (4, 1))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"\x93NUMPY\x01\x00",
        npy(ANSWERS.numpy()),
        npy(ANSWERS.numpy().astype(np.uint8)),
        npy(ANSWERS.numpy().astype(np.float64)),
        npy(np.zeros((2, 3), np.int64)),
        npy(np.array([object] * 6)),
        header("{'descr': '<i8', 'fortran_order': False, 'shape': ((((("),
        header("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (6,), }"),
        header("__import__('os').mkdir('canary')"),
    ],
)
def test_another_file_is_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(
        DecantError, match=r"teacher\.npy does not hold .* run `dvc repro -f evaluate-teacher`$"
    ):
        predictions.read(path, (6, 1))


def test_a_long_file_is_not_read(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(DecantError, match="1,099,511,627,776 bytes, where it can have 184"):
        predictions.read(path, (6, 1))


def test_each_byte_is_under_the_sum(path: Path) -> None:
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(DecantError):
            predictions.read(path, (6, 1))


@pytest.mark.parametrize("count", [0, 5, 7])
def test_another_number_of_images_is_refused(count: int, path: Path) -> None:
    with pytest.raises(DecantError, match=rf"does not hold the 1 outputs each of {count} rows|it can have"):
        predictions.read(path, (count, 1))


def test_predictions_of_another_teacher_are_refused(path: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "model"
    teacher.write_bytes(b"one")
    predictions.write(path, ANSWERS, [teacher])
    assert torch.equal(predictions.read(path, (6, 1), [teacher]), ANSWERS)
    teacher.write_bytes(b"two")
    with pytest.raises(DecantError, match="of another model or other rows"):
        predictions.read(path, (6, 1), [teacher])


# --- outputs of several numbers

OUTPUTS = torch.tensor([[0.5, -1e-30], [3e38, 0.0], [-2.25, 7.0]])


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A file with the outputs of three rows."""
    predictions.write(tmp_path / "teacher.npy", OUTPUTS)
    return tmp_path / "teacher.npy"


def test_outputs_come_back_as_they_were_and_numpy_reads_them(kept: Path) -> None:
    assert torch.equal(predictions.read(kept, (3, 2)), OUTPUTS)
    assert np.array_equal(np.load(kept), OUTPUTS.numpy())


@pytest.mark.parametrize("shape", [(3, 1), (2, 3), (6, 1), (3, 3)])
def test_outputs_of_another_shape_are_refused(shape: tuple[int, int], kept: Path) -> None:
    with pytest.raises(
        DecantError, match=r"does not hold the .* run `dvc repro -f evaluate-teacher`|it can have"
    ):
        predictions.read(kept, shape)


def test_each_byte_of_outputs_is_under_the_sum(kept: Path) -> None:
    good = kept.read_bytes()
    for place in range(len(good)):
        kept.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(DecantError):
            predictions.read(kept, (3, 2))


def test_outputs_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "MOST", 23)
    with pytest.raises(DecantError, match=r"3 test rows of 2 outputs take 24 bytes, and at most 23 are kept"):
        predictions.write(tmp_path / "teacher.npy", OUTPUTS)
    assert not (tmp_path / "teacher.npy").exists()
