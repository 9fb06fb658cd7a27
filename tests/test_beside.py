"""Pictures with a table beside them: targets, splits and more inputs by its columns."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.targets import Classes, Labels, Numbers
from tasks.pipeline import splits
from tasks.pipeline.params import validate
from tasks.prepare import own_pictures
from tasks.prepare.__main__ import main as prepare
from tasks.prepare.of_files import FolderParams
from tasks.prepare.params import DataParams
from tests.homes import home, write_params

PHOTOS, FILE = "data/own/photos", "data/own/photos.csv"
SPLITS = ("train", "validation", "test")
SHARES = {"kind": "shares", "validation": 0.2, "test": 0.25}
BY_COLUMN = {"kind": "column", "column": "part"}
KIND = {"kind": "classes", "column": "kind"}
PRICE = {"kind": "numbers", "columns": ["price"]}
TAGS = {"kind": "labels", "column": "tags"}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path) -> Iterator[None]:
    with home(tmp_path, params={"seed": 3}):
        Path(PHOTOS, "more").mkdir(parents=True)
        yield


def rows(count: int = 20) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{'more/' if number % 3 == 0 else ''}{number:02}.png",
            "kind": ("rare", "common")[number % 4 > 0],
            "price": 3.5 * number,
            "tags": " ".join(tag for tag, step in (("even", 2), ("third", 3)) if number % step == 0),
            "weight": number / 4,
            "maker": ("x", "y")[number % 2],
            "box": number // 4,
            "part": SPLITS[min(number % 10 // 4, 2)],
        }
        for number in range(count)
    ]


def write(content: list[dict[str, Any]]) -> None:
    """Write the table and its pictures, in each of which all pixels are the number of its row."""
    with Path(FILE).open("w", newline="") as file:
        writer = csv.DictWriter(file, [*content[0]])
        writer.writeheader()
        writer.writerows(content)
    for number, row in enumerate(content):
        if row["name"] and ".." not in row["name"]:
            Image.new("L", (5, 4), number).save(Path(PHOTOS, row["name"]))


def section(table: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    beside = {"file": FILE, "path": "name"} | (table or {})
    found = {"source": "folder", "folder": PHOTOS, "size": [4, 4], "colours": "grey", "split": SHARES}
    return found | {"table": beside} | more


def params(table: dict[str, Any] | None = None, **more: Any) -> FolderParams:
    found: FolderParams = validate(section(table, **more), DataParams, "data")
    return found


def tensors(examples: Examples) -> dict[str, torch.Tensor]:
    assert isinstance(examples.images, Rows)
    return dict(examples.images.tensors)


def numbers(examples: Examples) -> list[int]:
    """Return the number of each row, as its picture shows it."""
    images = tensors(examples)["image"]
    assert images.dtype == torch.uint8 and images.shape[1:] == (1, 4, 4)
    assert bool((images == images[:, :1, :1, :1]).all())
    return images[:, 0, 0, 0].tolist()


def every(found: dict[str, Examples]) -> list[int]:
    return sorted(number for each in found.values() for number in numbers(each))


@pytest.mark.parametrize(
    ("target", "kind", "label"),
    [
        (None, Classes, None),
        (KIND | {"balanced": True}, Classes, lambda n: int(n % 4 == 0)),
        (PRICE, Numbers, lambda n: [3.5 * n]),
        (TAGS, Labels, lambda n: [float(n % 2 == 0), float(n % 3 == 0)]),
    ],
)
def test_each_picture_comes_out_once_with_what_the_table_says(target: Any, kind: type, label: Any) -> None:
    write(rows())
    found = own_pictures.draw(params(split=BY_COLUMN, **({"target": target} if target else {})), 1).splits
    for name, each in found.items():
        assert isinstance(each.target, kind)
        assert sorted(numbers(each)) == [n for n in range(20) if SPLITS[min(n % 10 // 4, 2)] == name]
        if target is None:
            assert each.labels is None
        else:
            assert [*each.known_labels.tolist()] == [label(number) for number in numbers(each)]


def test_numbers_and_categories_of_a_table_are_inputs_too() -> None:
    write(rows())
    table = {"numbers": ["weight"], "categories": ["maker"]}
    drawn = own_pictures.draw(params(table, target=PRICE, split=SHARES | {"groups": "box"}), 1)
    boxes = []
    for each in drawn.splits.values():
        there = tensors(each)
        assert [*there] == ["image", "numbers", "maker"]
        assert there["numbers"][:, 0].tolist() == [number / 4 for number in numbers(each)]
        assert there["maker"].tolist() == [1 + number % 2 for number in numbers(each)]
        boxes.append({number // 4 for number in numbers(each)})
    assert sum(map(len, boxes)) == 5 and drawn.words == {"maker": ["x", "y"]}


def test_pictures_and_classes_of_a_table_are_what_all_architectures_take() -> None:
    write(rows())
    write_params({"seed": 3, "data": section(target=KIND, split=SHARES | {"stratified": True})})
    prepare()
    found = splits.read(splits.TRAIN)
    assert isinstance(found.images, torch.Tensor) and found.classes == ("common", "rare")
    assert found.known_labels.tolist() == [int(n % 4 == 0) for n in found.images[:, 0, 0, 0].tolist()]


def test_broken_pictures_of_a_table_are_skipped_and_no_other_row_moves() -> None:
    content = rows()
    write(content)
    Path(PHOTOS, content[5]["name"]).write_text("no picture")
    Path(PHOTOS, content[8]["name"]).unlink()
    with pytest.raises(DecantError, match=r"2 of 20 pictures cannot be read:\n.*05.png: .*\n.*08.png: "):
        own_pictures.draw(params(target=PRICE), 1)
    found = own_pictures.draw(params(target=PRICE, bad="skip"), 1).splits
    assert every(found) == [n for n in range(20) if n not in (5, 8)]
    for each in found.values():
        assert each.known_labels[:, 0].tolist() == [3.5 * number for number in numbers(each)]


@pytest.mark.parametrize(
    ("change", "more", "sentence"),
    [
        ({"name": ""}, {}, r"photos.csv, row 3: name is missing"),
        ({"name": "../x.png"}, {}, r"row 3: name is '../x.png', expected a path below data/own/photos"),
        ({"price": "dear"}, {"target": PRICE}, "price holds string such as .*, expected numbers"),
        ({"price": ""}, {"target": PRICE}, "row 3: price is missing"),
        ({"kind": "odd", "part": "test"}, {"split": BY_COLUMN}, "row 3: kind is 'odd', which no training"),
        ({"part": "later"}, {"split": BY_COLUMN}, "row 3: part says 'later', expected one of train"),
        ({}, {"table": {"path": "nam"}}, "no column 'nam'; did you mean 'name'"),
        ({}, {"target": KIND | {"names": ["common", "rare", "none"]}}, "no training picture is of none"),
    ],
)  # fmt: skip
def test_mistakes_in_the_table_name_file_and_row(
    change: dict[str, Any], more: dict[str, Any], sentence: str
) -> None:
    content = rows()
    content[2] |= change
    write(content)
    with pytest.raises(DecantError, match=sentence):
        own_pictures.draw(params(**{"target": KIND} | more), 1)


def test_a_table_of_one_class_is_refused() -> None:
    write([row | {"kind": "one"} for row in rows()])
    with pytest.raises(DecantError, match="kind has 1 class in the training rows, expected two or more"):
        own_pictures.draw(params(target=KIND), 1)


def test_pictures_of_one_pixel_are_made_as_large_as_the_others_and_train() -> None:
    content = rows()
    write(content)
    for number, row in enumerate(content):
        Image.new("L", (1, 1), number).save(Path(PHOTOS, row["name"]))
    found = own_pictures.draw(params(target=PRICE), 1).splits
    assert every(found) == [*range(20)]
    small = own_pictures.draw(params(target=PRICE, size=[1, 1]), 1).splits["train"]
    assert tensors(small)["image"].shape[1:] == (1, 1, 1)


def test_what_is_written_is_what_is_read() -> None:
    write(rows())
    write_params({"seed": 3, "data": section({"numbers": ["weight"]}, target=TAGS)})
    prepare()
    first = splits.TEST.read_bytes()
    found = [splits.read(path) for path in (splits.TRAIN, splits.VALIDATION, splits.TEST)]
    prepare()
    assert splits.TEST.read_bytes() == first
    assert b"words" not in (pq.read_schema(splits.TEST).metadata or {})
    for each in found:
        assert np.allclose(tensors(each)["numbers"][:, 0], [number / 4 for number in numbers(each)])
        assert each.target == Labels(names=("even", "third"))
