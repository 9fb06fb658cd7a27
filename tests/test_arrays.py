"""Targets of named arrays: classes, numbers, labels; and every array that cannot be one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from decant.errors import DecantError
from decant.examples import Rows
from decant.inputs import kinds_of
from decant.targets import Classes, Labels, Numbers, SmoothL1
from tasks.pipeline import splits
from tasks.pipeline.params import validate
from tasks.prepare import arrays
from tasks.prepare.__main__ import main as prepare
from tasks.prepare.own_tables import Drawn
from tasks.prepare.params import DataParams, PrepareParams
from tests.homes import home, write_params

TRAIN, TEST = "data/arrays/train.npz", "data/arrays/test.npz"
Y = np.array([[2.5 * row, 1 - row] for row in range(20)])


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path) -> Iterator[None]:
    with home(tmp_path, params={"seed": 3}):
        Path("data/arrays").mkdir(parents=True)
        yield


def write(train: NDArray[Any], test: NDArray[Any] | None = None, x: NDArray[Any] | None = None) -> None:
    """Write inputs that are the number of the row, and labels."""
    rows = np.arange(len(train), dtype=np.float32)[:, None] if x is None else x
    np.savez(TRAIN, x=rows, y=train)
    test = train if test is None else test
    np.savez(TEST, x=np.arange(len(test), dtype=np.float32)[:, None], y=test)


def section(**more: Any) -> dict[str, Any]:
    found = {"source": "arrays", "train": TRAIN, "validation": 5, "test": TEST, "labels": "y"} | more
    return {key: value for key, value in found.items() if value is not None}


def drawn(**more: Any) -> Drawn:
    params: PrepareParams = validate(section(**more), DataParams, "data")
    return arrays.draw(params, 1)


def by_row(found: Drawn) -> Iterator[tuple[int, Any]]:
    """Yield the number of each row and its label, for all splits."""
    for each in found.splits.values():
        assert isinstance(each.images, Rows)
        places = each.images.tensors["x"][:, 0].int().tolist()
        yield from zip(places, each.known_labels.tolist(), strict=True)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int16", "uint8"])
def test_numbers_are_read_with_their_deviation_over_training_rows(dtype: str) -> None:
    y = (Y[:, 0] * 2).astype(dtype)
    write(y)
    found = drawn(target={"kind": "numbers", "loss": {"kind": "smooth-l1"}})
    assert all(label == [float(y[row])] for row, label in by_row(found))
    train = found.splits["train"]
    target = train.target
    assert isinstance(target, Numbers) and target.names == ("y",) and target.penalty == SmoothL1()
    by_hand = np.std(train.known_labels[:, 0].double().numpy())
    assert target.scale[0] == pytest.approx(by_hand, rel=1e-5)
    assert all(each.target == target and each.classes == () for each in found.splits.values())


def test_several_numbers_have_names() -> None:
    write(Y)
    found = drawn(target={"kind": "numbers"})
    assert found.splits["test"].target.names == ("y 1", "y 2")  # type: ignore[attr-defined]
    assert all(label == [*Y[row]] for row, label in by_row(found))
    named = drawn(target={"kind": "numbers", "names": ["far", "wide"]}).splits["test"].target
    assert isinstance(named, Numbers) and named.names == ("far", "wide")


@pytest.mark.parametrize("dtype", ["bool", "int64", "float32"])
def test_labels_are_marks_of_any_type(dtype: str) -> None:
    y = np.array([[row % 2, row % 3 == 0, 1] for row in range(20)]).astype(dtype)
    write(y)
    found = drawn(target={"kind": "labels"})
    assert found.splits["train"].target == Labels(names=("0", "1", "2"))
    assert all(label == [*y[row].astype(float)] for row, label in by_row(found))
    named = drawn(target={"kind": "labels", "names": ["a", "b", "c"]}).splits["test"].target
    assert named == Labels(names=("a", "b", "c"))


def test_classes_may_be_balanced() -> None:
    write(np.arange(20) % 3)
    found = drawn(target={"kind": "classes", "balanced": True}, classes=["a", "b", "c"])
    for each in found.splits.values():
        assert each.target == Classes(balanced=True) and each.classes == ("a", "b", "c")
    assert drawn().splits["train"].target == Classes() and all(
        label == row % 3 for row, label in by_row(found)
    )


def test_rows_in_two_splits_are_counted_and_shares_are_told() -> None:
    write(np.arange(20) % 2, np.arange(8) % 2)
    notes = drawn().notes
    assert notes[0].startswith("the same inputs in two splits: ")
    assert "test rows are in train too" in notes[0]
    assert "test: 8 rows (0 50.0%, 1 50.0%)" in notes
    with pytest.raises(DecantError, match=r"data.leak: the same inputs in two splits"):
        drawn(leak="fail")


def test_arrays_have_kinds() -> None:
    np.savez(TRAIN, x=np.zeros((20, 3, 4, 4), np.uint8), z=np.zeros((20, 5), np.float32))
    kinds = {"x": "image", "z": "numbers"}
    data = section(labels=None, test=3, kinds=kinds)
    write_params({"seed": 3, "data": data})
    prepare()
    assert kinds_of(splits.read(splits.TRAIN).shape) == kinds
    with pytest.raises(DecantError, match=r"train.npz: x: rows \[3, 4, 4\] of uint8 are no sound"):
        drawn(labels=None, test=3, kinds={"x": "sound"})
    with pytest.raises(DecantError, match=r"train.npz has no y; it has x, z"):
        drawn(labels=None, test=3, kinds={"y": "sound"})


@pytest.mark.parametrize(
    "target", [None, {"kind": "numbers"}, {"kind": "labels"}, {"kind": "classes", "balanced": True}]
)
def test_what_is_written_is_what_is_read(target: Any) -> None:
    y = np.array([[row % 2, row % 3 == 0] for row in range(20)], np.float32)
    write(y if target and target["kind"] != "classes" else np.arange(20) % 3)
    write_params({"seed": 3, "data": section(target=target)})
    prepare()
    first = splits.TRAIN.read_bytes()
    read = splits.read(splits.TEST)
    expected = drawn(target=target).splits["test"]
    assert torch.equal(read.known_labels, expected.known_labels) and read.classes == expected.classes
    assert read.target == expected.target or isinstance(read.target, Numbers)
    prepare()
    assert splits.TRAIN.read_bytes() == first


def test_classes_that_no_row_has_are_told() -> None:
    write(1 + np.arange(20) % 3)
    assert [line for line in drawn().notes if "no row is of" in line] == [
        "no row is of 0; if that is no class, number the others from 0, without gaps"
    ]
    write(np.arange(20) % 3)
    assert not [line for line in drawn().notes if "no row is of" in line]


def strange(found: Drawn) -> list[str]:
    return [line for line in found.notes if "which no training row is of" in line]


def test_classes_that_no_training_row_has_are_told() -> None:
    write(np.arange(20) % 2, np.arange(20) % 4)
    assert strange(drawn()) == ["test has rows of 2, 3, which no training row is of"]
    marks = np.zeros((20, 2), np.int64)
    marks[:, 0] = 1
    write(marks, 1 - marks)
    assert strange(drawn(target={"kind": "labels"})) == ["test has rows of 1, which no training row is of"]
    write(Y, Y + 1)
    assert strange(drawn(target={"kind": "numbers"})) == []


NUMBERS, LABELS = {"kind": "numbers"}, {"kind": "labels"}
NAN = np.where(np.arange(20) == 4, np.nan, 1.0)


@pytest.mark.parametrize(
    ("y", "more", "sentence"),
    [
        (np.zeros(20, int), {}, "data: y has 1 class, expected two or more; there is nothing to tell apart"),
        (Y[:, 0], {}, r"labels are torch.float64 .*, expected a whole number for each of 20 rows; for n"),
        (np.arange(20) - 1, {}, "a label is -1, expected a class's number, from 0"),
        (NAN, {"target": NUMBERS}, "train.npz: labels holds NaN or infinite values, as in row 4"),
        (Y[:, 0] * 1e39, {"target": NUMBERS}, "labels holds NaN or infinite values, as in row 1"),
        (np.ones(20), {"target": NUMBERS}, "y is the same in all training rows"),
        (Y[:, :, None], {"target": NUMBERS}, "expected one or several numbers for each of 20 rows"),
        (Y, {"target": NUMBERS | {"names": ["a"]}}, "target.names has 1, and a row of labels 2 numbers"),
        (Y, {"target": LABELS}, "labels holds other marks than 0 and 1, as in row 1"),
        (Y[:, 0], {"target": LABELS}, r"of shape \[20\], expected \[20, L\], a mark for each label"),
    ],
)  # fmt: skip
def test_labels_that_are_none_are_refused(y: NDArray[Any], more: dict[str, Any], sentence: str) -> None:
    write(y)
    with pytest.raises(DecantError, match=sentence):
        drawn(**more)


def test_splits_with_other_numbers_of_labels_are_refused() -> None:
    write(Y, Y[:, :1])
    with pytest.raises(
        DecantError, match="as many numbers in each split, and train has 2, validation has 2, test"
    ):
        drawn(target={"kind": "numbers"})


def test_inputs_that_are_nan_name_their_row() -> None:
    x = np.zeros((20, 2), np.float32)
    x[7, 1] = np.nan
    write(np.arange(20) % 2, x=x)
    with pytest.raises(DecantError, match=r"train.npz: x holds NaN, as in row 7"):
        drawn()
    write(np.arange(20) % 2, x=NAN)
    with pytest.raises(DecantError, match=r"train.npz: x holds NaN, as in row 4"):
        drawn()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"labels": None, "target": {"kind": "numbers"}}, "target says what labels are, and none are named"),
        ({"classes": ["a"], "target": {"kind": "labels"}}, "those of labels stand in target.names"),
        ({"target": {"kind": "numbers", "names": ["a", "a"]}}, "'a' stands there twice"),
        ({"target": {"kind": "words"}}, "data.target: unknown kind 'words'"),
        (
            {"source": "digits", "train": None, "test": None, "labels": None, "target": NUMBERS},
            "target belongs to the source arrays",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_params_are_told_before_anything_is_read(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DecantError, match=sentence):
        drawn(**more)


@pytest.mark.parametrize(
    ("labels", "x", "sentence"),
    [
        (np.arange(20) % 2, np.full((20, 1), -np.inf), "x holds infinite values, as in row 0"),
        (
            np.arange(20) % 2,
            np.zeros((20, 2, 0)),
            r"x: rows are of shape \[2, 0\], expected .* one number or more",
        ),
        (np.arange(20) % 2, np.zeros((20, *[1] * 9)), "expected at most 8 dimensions"),
        (np.arange(20) % 2 + 2**62, None, "a label is 4611686018427387905, expected .* from 0 to 99999"),
    ],
)
def test_rows_and_labels_that_no_network_can_take_are_told_at_once(
    labels: NDArray[Any], x: NDArray[Any] | None, sentence: str
) -> None:
    write(labels, x=x)
    with pytest.raises(DecantError, match=sentence) as told:
        drawn()
    assert "\n" not in str(told.value)


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(DecantError, match="'a' stands there twice; name each once"):
        drawn(classes=["a", "b", "a"])
