"""Tables and pictures of one's own: what is read, how it is split, and every mistake in a sentence."""

import csv
import datetime
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.targets import Classes, Labels, Numbers, SmoothL1
from tasks.pipeline import splits
from tasks.pipeline.params import validate
from tasks.prepare import own_pictures, own_tables, parts
from tasks.prepare.__main__ import main as prepare
from tasks.prepare.of_files import FolderParams
from tasks.prepare.params import AnyData, DataParams, TableParams
from tasks.prepare.splits import Split
from tasks.prepare.ways import ByShares
from tests.homes import home

FILE = "data/own/rows.csv"
PHOTOS = "data/own/photos"
SPLITS = ("train", "validation", "test")
WORDS = ("red", "green", "blue")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path) -> Iterator[None]:
    with home(tmp_path, params={"seed": 3}):
        Path("data/own").mkdir(parents=True)
        yield


def rows(count: int = 40) -> list[dict[str, Any]]:
    """Return rows of two numbers, a word, a group of four, a number to predict, labels and a split."""
    generator = np.random.Generator(np.random.PCG64(1))
    values = generator.normal(size=(count, 2)).round(4)
    return [
        {
            "width": values[row, 0],
            "height": values[row, 1],
            "colour": WORDS[row % 3],
            "box": row // 4,
            "price": round(100 + 7 * values[row, 0], 4),
            "tags": " ".join(word for place, word in enumerate(WORDS) if (row + 1) >> place & 1),
            "part": SPLITS[min(row % 10 // 4, 2)],
        }
        for row in range(count)
    ]


def write(content: list[dict[str, Any]], path: str = FILE) -> None:
    if path.endswith(".csv"):
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, [*content[0]])
            writer.writeheader()
            writer.writerows(content)
    elif path.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(content), path)
    else:
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in content))


def section(**more: Any) -> dict[str, Any]:
    shares = {"kind": "shares", "validation": 0.2, "test": 0.25}
    found = {"source": "table", "file": FILE, "numbers": ["width", "height"], "split": shares} | more
    return {key: value for key, value in found.items() if value is not None}


def table(**more: Any) -> TableParams:
    return validate(section(**more), DataParams, "data")


PRICE = {"kind": "numbers", "columns": ["price"]}
WIDTH = {"kind": "numbers", "columns": ["width"]}
COLOUR = {"kind": "classes", "column": "colour"}


def drawn(**more: Any) -> tuple[dict[str, Examples], list[str]]:
    found = own_tables.draw(table(**more), 5)
    return found.splits, found.notes


def tensors(examples: Examples) -> dict[str, torch.Tensor]:
    assert isinstance(examples.images, Rows)
    return dict(examples.images.tensors)


# --- tables


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_each_row_of_a_table_comes_out_once_with_its_own_number(ending: str) -> None:
    path = f"data/own/rows.{ending}"
    write(rows(), path)
    found, _ = drawn(file=path, categories=["colour"], target=PRICE)
    assert [len(found[name]) for name in SPLITS] == [22, 8, 10]
    seen = []
    for each in found.values():
        columns = tensors(each)
        assert list(columns) == ["numbers", "colour"]
        assert columns["numbers"].dtype == torch.float32 and columns["colour"].dtype == torch.int64
        for numbers, colour, price in zip(
            columns["numbers"].tolist(), columns["colour"].tolist(), each.known_labels.tolist(), strict=True
        ):
            seen.append((*numbers, sorted(WORDS)[colour - 1], *price))
    expected = [
        (
            *np.float32([row["width"], row["height"]]).tolist(),
            row["colour"],
            *np.float32([row["price"]]).tolist(),
        )
        for row in rows()
    ]
    assert sorted(seen) == sorted(expected)


def test_the_scale_of_a_target_is_its_deviation_over_the_training_rows() -> None:
    write(rows())
    found, _ = drawn(target=PRICE | {"loss": {"kind": "smooth-l1", "beta": 0.2}})
    target = found["test"].target
    assert isinstance(target, Numbers) and target.penalty == SmoothL1(beta=0.2)
    deviation = found["train"].known_labels.double().std(correction=0).item()
    assert target.scale[0] == pytest.approx(deviation, rel=1e-5) and target == found["train"].target


def test_a_category_that_training_rows_lack_is_none_of_those_known() -> None:
    content = rows()
    first = next(row for row, each in enumerate(content) if each["part"] == "test")
    content[first] |= {"colour": "violet"}
    content[0] |= {"colour": ""}
    write(content)
    split = {"kind": "column", "column": "part"}
    found, notes = drawn(split=split, categories=["colour"], target=PRICE)
    assert tensors(found["test"])["colour"][0] == 0
    assert 0 not in tensors(found["validation"])["colour"]
    assert "colour: 3 categories from 1 on" in "\n".join(notes)


def test_dates_are_days_and_switches_are_numbers() -> None:
    days = [datetime.date(1970, 1, 1) + datetime.timedelta(days=row) for row in range(40)]
    content = [
        {"day": days[row], "hour": datetime.datetime(1970, 1, 2, 12), "on": row % 2 == 0, "price": row}
        for row in range(40)
    ]
    write(content, "data/own/rows.parquet")
    found, _ = drawn(file="data/own/rows.parquet", numbers=["day", "hour", "on"], target=PRICE)
    for each in found.values():
        numbers, price = tensors(each)["numbers"], each.known_labels[:, 0]
        assert torch.equal(numbers[:, 0], price)
        assert set(numbers[:, 1].tolist()) == {1.5}
        assert torch.equal(numbers[:, 2], (price % 2 == 0).float())


def test_classes_and_labels_of_a_table() -> None:
    write(rows())
    found, notes = drawn(target=COLOUR | {"balanced": True})
    assert found["train"].classes == ("blue", "green", "red")
    assert found["train"].target == Classes(balanced=True)
    assert any(line.startswith("train: 22 rows (blue ") for line in notes)
    given, _ = drawn(target=COLOUR | {"names": ["red", "green", "blue"]})
    assert torch.equal(given["test"].known_labels, 2 - found["test"].known_labels)
    several, _ = drawn(target={"kind": "labels", "column": "tags"})
    assert several["train"].target == Labels(names=("blue", "green", "red"))
    marks = torch.cat([each.known_labels for each in several.values()])
    assert marks.sum(0).tolist() == [sum(word in row["tags"] for row in rows()) for word in sorted(WORDS)]


def test_lists_in_a_table_are_labels_too() -> None:
    content = [row | {"tags": row["tags"].split()} for row in rows()]
    write(rows())
    words, _ = drawn(target={"kind": "labels", "column": "tags"})
    write(content, "data/own/rows.parquet")
    lists, _ = drawn(file="data/own/rows.parquet", target={"kind": "labels", "column": "tags"})
    assert torch.equal(lists["train"].known_labels, words["train"].known_labels)


def test_a_table_without_a_target_has_no_labels() -> None:
    write(rows())
    found, _ = drawn()
    assert all(each.labels is None and each.classes == () for each in found.values())


def test_missing_numbers_are_refused_or_kept() -> None:
    content = rows()
    content[6] |= {"height": ""}
    content[9] |= {"height": ""}
    write(content)
    with pytest.raises(DecantError, match=r"rows.csv, row 7: height is missing \(2 such rows in all\)"):
        drawn(target=PRICE)
    found, notes = drawn(target=PRICE, missing="keep")
    assert sum(int(tensors(each)["numbers"].isnan().sum()) for each in found.values()) == 2
    assert "height: 2 of 40 values are missing" in notes


def test_whole_numbers_beyond_those_of_float64_are_rounded() -> None:
    content = [row | {"width": (2**53 + 1) * (1 + place % 2)} for place, row in enumerate(rows())]
    write(content)
    found, _ = drawn(numbers=["width"])
    assert {*tensors(found["train"])["numbers"].flatten().tolist()} == {float(2**53), float(2**54)}


@pytest.mark.parametrize("how", ["input", "target"])
def test_numbers_that_float32_does_not_keep_apart_are_refused(how: str) -> None:
    """Of seconds since 1970, 40 after another, float32 makes one number: its steps are 128 there."""
    write([row | {"width": 1_600_000_000 + place} for place, row in enumerate(rows())])
    asked = {"target": PRICE} if how == "input" else {"numbers": ["height"], "target": WIDTH}
    with pytest.raises(DecantError, match=r"width has numbers around 1.6e\+09 that differ by 11.5 \(their"):
        drawn(**asked)
    write([row | {"width": 1_600_000_000 + 10_000 * place} for place, row in enumerate(rows())])
    assert len({*tensors(drawn(target=PRICE)[0]["train"])["numbers"][:, 0].tolist()}) == 22


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_words_with_zeros_before_them_are_words_of_their_own(ending: str) -> None:
    path = f"data/own/rows.{ending}"
    write([row | {"colour": ("7", "07", "10")[place % 3]} for place, row in enumerate(rows())], path)
    found, _ = drawn(file=path, target=COLOUR)
    assert found["train"].classes == ("07", "7", "10")
    counts = torch.cat([each.known_labels for each in found.values()]).bincount().tolist()
    assert counts == [13, 14, 13]
    several, _ = drawn(file=path, target={"kind": "labels", "column": "colour"})
    assert several["train"].target == Labels(names=("07", "7", "10"))


def test_whole_numbers_of_any_length_are_words() -> None:
    words = ("8" * 5000, "9")
    write([row | {"colour": words[place % 2]} for place, row in enumerate(rows())], "data/own/rows.parquet")
    assert drawn(file="data/own/rows.parquet", target=COLOUR)[0]["train"].classes == (words[1], words[0])


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        (["red", None], "row 4: tags has a label that is missing"),
        ([["red"], ["blue"]], "expected lists of words or whole numbers"),
    ],
)
def test_labels_in_lists_are_words(tags: list[Any], sentence: str) -> None:
    nested = isinstance(tags[0], list)
    others = [["red"], ["green"]] if nested else ["red", "green"]
    content = [row | {"tags": others} for row in rows()]
    content[3] |= {"tags": tags}
    write(content, "data/own/rows.parquet")
    with pytest.raises(DecantError, match=sentence):
        drawn(file="data/own/rows.parquet", target={"kind": "labels", "column": "tags"})


def test_letters_of_another_code_are_told() -> None:
    write(rows())
    Path(FILE).write_bytes(Path(FILE).read_bytes().replace(b"green", "gr\u00fcn".encode("latin-1")))
    with pytest.raises(
        DecantError, match="colour holds binary, or letters that are no UTF-8, expected words"
    ):
        drawn(categories=["colour"])


def test_whole_numbers_are_ordered_by_their_value() -> None:
    write([row | {"colour": (11 * (number % 3)) - 11} for number, row in enumerate(rows())])
    found, _ = drawn(target=COLOUR)
    assert found["train"].classes == ("-11", "0", "11")
    write([row | {"colour": (9 * (number % 3))} for number, row in enumerate(rows())])
    assert drawn(target=COLOUR)[0]["train"].classes == ("0", "9", "18")


# --- mistakes in a table


@pytest.mark.parametrize(
    ("change", "more", "sentence"),
    [
        ({}, {"numbers": ["widht"]}, r"no column 'widht'; did you mean 'width'\?"),
        (
            {},
            {"numbers": ["colour"]},
            r"row 1: colour holds string such as 'red', expected numbers; name",
        ),
        (
            {"width": "wide"},
            {},
            r"rows.csv, row 3: width holds string such as 'wide', expected",
        ),
        ({"width": "inf"}, {}, "row 3: width is infinite, or beyond float32"),
        ({"width": "1e39"}, {}, "row 3: width is infinite, or beyond float32"),
        ({"price": ""}, {}, "row 3: price is missing"),
        (
            {},
            {"numbers": ["height"], "categories": ["width"]},
            "width holds double, expected words or whole numbers",
        ),
        ({"colour": ""}, {"target": COLOUR}, "row 3: colour is missing"),
        (
            {"part": "tset"},
            {"split": {"kind": "column", "column": "part"}},
            "row 3: part says 'tset', expected",
        ),
        ({}, {"split": {"kind": "shares", "validation": 0.001, "test": 0.2}}, "validation has no row of 40"),
        (
            {},
            {"target": COLOUR | {"names": ["red", "blue"]}},
            "row 2: colour is 'green', which no training row",
        ),
        ({}, {"target": COLOUR | {"names": [*WORDS, "pink"]}}, "no training row is of pink"),
    ],
)
def test_mistakes_in_a_table_name_file_row_and_column(
    change: dict[str, Any], more: dict[str, Any], sentence: str
) -> None:
    content = rows()
    content[2] |= change
    write(content)
    with pytest.raises(DecantError, match=sentence):
        drawn(**{"target": PRICE} | more)


def test_a_class_that_the_test_rows_alone_have_is_refused() -> None:
    content = rows()
    row = next(row for row, each in enumerate(content) if each["part"] == "test")
    content[row] |= {"colour": "violet"}
    write(content)
    with pytest.raises(DecantError, match=f"row {row + 1}: colour is 'violet', which no training row has"):
        drawn(target=COLOUR, split={"kind": "column", "column": "part"})


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("colour", "red", "colour has 1 class in the training rows, expected two or more"),
        ("price", 5, "price is the same in all training rows"),
        ("width", "", "width is missing in all training rows; leave it out"),
    ],
)
def test_a_column_that_says_nothing_is_refused(column: str, value: Any, sentence: str) -> None:
    write([row | {column: value} for row in rows()])
    with pytest.raises(DecantError, match=sentence):
        drawn(target=COLOUR if column == "colour" else PRICE, missing="keep")


@pytest.mark.parametrize(
    ("ending", "content"), [("parquet", b"no"), ("jsonl", b"{]"), ("csv", b"a,b\n1,2,3\n"), ("csv", b"")]
)
def test_a_file_that_is_no_table_is_refused(ending: str, content: bytes) -> None:
    Path(f"data/own/rows.{ending}").write_bytes(content)
    with pytest.raises(DecantError, match=f"rows.{ending} is no table that can be read"):
        drawn(file=f"data/own/rows.{ending}")


def test_a_table_that_is_not_there_or_has_no_row_is_refused() -> None:
    with pytest.raises(DecantError, match=r"No data/own/rows.csv here"):
        drawn()
    Path(FILE).write_text("width,height\n")
    with pytest.raises(DecantError, match=r"rows.csv has no row"):
        drawn()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"file": "rows.csv"}, r"data.file: must lie in data/own/"),
        ({"file": "data/own/../../rows.csv"}, r"data.file: must lie in data/own/"),
        ({"file": "data/own/rows.xlsx"}, r"data.file: must end in .csv, .parquet, .jsonl"),
        ({"numbers": None}, "data: needs numbers or categories"),
        ({"numbers": ["price"], "target": PRICE}, "price is what is to be predicted"),
        ({"categories": ["width"]}, "width is named twice"),
        ({"target": {"kind": "numbers", "columns": ["price", "price"]}}, "'price' stands there twice"),
        ({"target": COLOUR | {"names": ["red", "red"]}}, "data.target.names: 'red' stands there twice"),
        (
            {"categories": ["part"], "split": {"kind": "column", "column": "part"}},
            "part says which split a row",
        ),
        ({"categories": ["numbers"]}, "a category cannot be called numbers"),
        (
            {"split": {"kind": "shares", "validation": 0.5, "test": 0.5}},
            "data.split: .* leaves none to train on",
        ),
        (
            {"split": {"kind": "shares", "validation": 0.1, "test": 0.1, "stratified": True}},
            "stratified is of",
        ),
        (
            {"target": {"kind": "number", "columns": ["price"]}},
            r"data.target: unknown kind 'number'; did you mean",
        ),
        ({"target": PRICE | {"loss": {"kind": "mae"}}}, "data.target.loss: unknown kind 'mae'"),
        ({"nubers": ["width"]}, "data: unknown key 'nubers'; did you mean 'numbers'"),
        ({"source": "tabel"}, "data.source: unknown source 'tabel'; did you mean 'table'"),
        ({"split": None}, "data.split: is missing"),
        ({"leak": "ignore"}, "data.leak: must be 'fail' or 'tell'"),
    ],
)
def test_mistakes_in_params_are_told_before_anything_is_read(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DecantError, match=sentence):
        table(**more)


# --- splits


@pytest.mark.parametrize("more", [{}, {"groups": "box"}, {"stratified": True}])
def test_splits_by_shares_are_a_function_of_the_seed(more: dict[str, Any]) -> None:
    write(rows(120))
    split = {"kind": "shares", "validation": 0.2, "test": 0.25} | more
    params = table(target=COLOUR, split=split)
    found = [own_tables.draw(params, seed).splits["test"] for seed in (5, 5, 6)]
    same, other = [torch.equal(tensors(found[0])["numbers"], tensors(each)["numbers"]) for each in found[1:]]
    assert same and not other


def test_groups_stay_whole_and_have_about_their_share() -> None:
    groups = [row // 4 for row in range(400)]
    how = ByShares(validation=0.2, test=0.25, groups="box")
    found = parts.by_shares(how, 400, 1, groups)
    assert sorted(np.concatenate([*found.values()])) == [*range(400)]
    members = [{groups[row] for row in found[name]} for name in SPLITS]
    assert not (members[0] & members[1] or members[0] & members[2] or members[1] & members[2])
    assert [len(found[name]) for name in SPLITS] == [220, 80, 100]
    assert sorted(found["test"]) == [*found["test"]] and sorted(found["train"]) != [*found["train"]]


def test_stratified_splits_have_each_class_by_its_share() -> None:
    classes = ["rare"] * 20 + ["common"] * 380
    how = ByShares(validation=0.2, test=0.25, stratified=True)
    found = parts.by_shares(how, 400, 2, classes)
    counts = {name: Counter(classes[row] for row in found[name]) for name in SPLITS}
    assert [counts[name]["rare"] for name in SPLITS] == [11, 4, 5]
    assert [counts[name]["common"] for name in SPLITS] == [209, 76, 95]


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(
        DecantError, match="has no row of 40; give it a larger share, or the data more groups"
    ):
        parts.by_shares(ByShares(validation=0.2, test=0.2, groups="box"), 40, 1, [1] * 40)


def test_a_split_by_column_puts_rows_where_it_says() -> None:
    write(rows())
    found, _ = drawn(split={"kind": "column", "column": "part"}, target=PRICE)
    expected = [row for row in rows() if row["part"] == "test"]
    assert (
        found["test"].known_labels[:, 0].tolist() == np.float32([row["price"] for row in expected]).tolist()
    )
    write([row | {"part": "train"} for row in rows()])
    with pytest.raises(DecantError, match="part puts no row into validation, test"):
        drawn(split={"kind": "column", "column": "part"}, target=PRICE)


def test_the_same_row_in_two_splits_is_counted_or_refused() -> None:
    content = rows()
    train = [row for row in content if row["part"] == "train"]
    test = [row for row in content if row["part"] == "test"]
    for one, other in zip(train[:3], test, strict=False):
        other |= {"width": one["width"], "height": one["height"]}
    write(content)
    split = {"kind": "column", "column": "part"}
    _, notes = drawn(split=split, target=PRICE)
    assert f"the same inputs in two splits: 3 of {len(test)} test rows are in train too" in notes
    with pytest.raises(DecantError, match=r"data.leak: .* 3 of 8 test rows are in train too; take them out"):
        drawn(split=split, target=PRICE, leak="fail")
    write(rows())
    _, notes = drawn(split=split, target=PRICE, leak="fail")
    assert not any("two splits" in line for line in notes)


# --- on disk


@pytest.mark.parametrize(
    "target", [None, PRICE, COLOUR | {"balanced": True}, {"kind": "labels", "column": "tags"}]
)
def test_what_prepare_writes_is_what_is_read(
    target: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(rows())
    params: dict[str, Any] = {
        "seed": 3,
        "data": section(categories=["colour"] if target == PRICE else None, target=target),
    }
    with home(tmp_path, params=params):
        prepare()
        first = splits.TEST.read_bytes()
        found = {path.stem: splits.read(path) for path in (splits.TRAIN, splits.VALIDATION, splits.TEST)}
        prepare()
        assert splits.TEST.read_bytes() == first
    assert "train: 22 rows" in capsys.readouterr().out
    assert sum(map(len, found.values())) == 40
    kind = {None: Classes, "numbers": Numbers, "classes": Classes, "labels": Labels}
    for each in found.values():
        assert isinstance(each.target, kind[target["kind"] if target else None])
        assert (each.labels is None) == (target is None)
    if target == PRICE:
        by_width = {np.float32(row["width"]): np.float32(row["price"]) for row in rows()}
        for each in found.values():
            pairs = zip(tensors(each)["numbers"][:, 0].numpy(), each.known_labels[:, 0].numpy(), strict=True)
            assert all(by_width[width] == price for width, price in pairs)


def test_the_words_of_codes_stand_in_the_tables(tmp_path: Path) -> None:
    write(rows())
    with home(tmp_path, params={"seed": 3, "data": section(categories=["colour", "box"], target=PRICE)}):
        prepare()
        words = json.loads(pq.read_schema(splits.TEST).metadata[b"words"])
        boxes, colours = (tensors(splits.read(splits.TRAIN))[name] for name in ("box", "colour"))
    assert words["colour"] == ["blue", "green", "red"]
    assert words["box"] == sorted(words["box"], key=int) and int(boxes.max()) == len(words["box"])
    assert set(colours.tolist()) == {1, 2, 3}


def test_a_category_of_very_many_words_is_read_back(tmp_path: Path) -> None:
    write(
        [row | {"colour": f"{place:05}" + "x" * 700} for place, row in enumerate(rows(3000))],
        "data/own/rows.parquet",
    )
    content = section(file="data/own/rows.parquet", categories=["colour"], target=PRICE)
    with home(tmp_path, params={"seed": 3, "data": content}):
        prepare()
        written = splits.TRAIN.read_bytes()
        assert written.rfind(b"decant-sha256:") < len(written) - (1 << 20)
        assert int(tensors(splits.read(splits.TRAIN))["colour"].min()) == 1
        damaged = bytearray(written)
        damaged[-8:-4] = b"\xff" * 4
        splits.TRAIN.write_bytes(damaged)
        with pytest.raises(DecantError, match="does not hold what it should"):
            splits.read(splits.TRAIN)


# --- pictures


def photos(place: str = PHOTOS, count: int = 10) -> None:
    """Write pictures of two classes: red ones and blue ones, each with its number in the green channel."""
    for label, name in enumerate(("berry", "sky")):
        folder = Path(place, name)
        folder.mkdir(parents=True)
        for number in range(count):
            colour = (200, number, 0) if label == 0 else (0, number, 200)
            Image.new("RGB", (8, 6), colour).save(folder / f"{number:02}.png")


def pictures(**more: Any) -> FolderParams:
    shares = {"kind": "shares", "validation": 0.2, "test": 0.3, "stratified": True}
    found: AnyData = validate(
        {"source": "folder", "folder": PHOTOS, "size": [4, 4], "split": shares} | more, DataParams, "data"
    )
    assert isinstance(found, FolderParams)
    return found


def decoded(params: FolderParams) -> tuple[dict[str, Split], list[str]]:
    """Return the splits, with all of their pictures, and what is told of them."""
    found = own_pictures.stream(params, 1)
    whole = {name: [*split.parts(len(split))] for name, split in found.splits.items()}
    notes = found.check()
    return {name: split for name, (split,) in whole.items()}, notes


def test_pictures_in_folders_are_read_by_class() -> None:
    photos()
    found, notes = decoded(pictures())
    assert [len(found[name]) for name in SPLITS] == [10, 4, 6]
    numbers = []
    for each in found.values():
        assert each.images.shape[1:] == (3, 4, 4) and each.images.dtype == np.uint8
        for image, label in zip(each.images, each.labels, strict=True):
            assert image[0].max() == (0 if label else 200) and image[2].max() == (200 if label else 0)
            numbers.append((int(label), int(image[1, 0, 0])))
    assert sorted(numbers) == [(label, number) for label in (0, 1) for number in range(10)]
    assert "test: 6 pictures (berry 50.0%, sky 50.0%)" in notes


def test_grey_pictures_are_the_luma_of_their_colours() -> None:
    photos()
    found = own_pictures.picture(Path(PHOTOS, "sky", "09.png"), pictures(colours="grey"))
    assert found.shape == (1, 4, 4)
    assert set(found.ravel().tolist()) == {round(0.587 * 9 + 0.114 * 200)}


def test_pictures_of_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 32_896], [65_535, 40_000, 128]], np.uint16)
    for path in (tmp_path / "deep.png", tmp_path / "deep.tif"):
        Image.fromarray(deep).save(path)
        read = own_pictures.picture(path, pictures(size=[2, 3], colours="grey"))
        assert read.tolist() == [[[0, 1, 128], [255, round(40_000 / 257), 0]]]
    for content, sentence in ((np.ones((2, 3), np.float32), "fractions"), (deep.astype(np.int32), "32-bit")):
        Image.fromarray(content).save(tmp_path / "plain.tif")
        with pytest.raises(ValueError, match=f"its pixels are {sentence}.*expected 8 or 16 bits"):
            own_pictures.picture(tmp_path / "plain.tif", pictures(size=[2, 3]))


def test_the_middle_is_cut_out_or_the_whole_is_squeezed() -> None:
    stripes = np.zeros((12, 36, 3), np.uint8)
    stripes[:, 12:24] = 255
    Image.fromarray(stripes).save("stripes.png")
    assert own_pictures.picture(Path("stripes.png"), pictures()).min() > 200
    squeezed = own_pictures.picture(Path("stripes.png"), pictures(crop=False))
    assert squeezed.min() < 50 and squeezed.max() > 150


def test_pictures_are_turned_as_their_camera_says_and_transparent_parts_are_white() -> None:
    half = np.zeros((4, 4, 3), np.uint8)
    half[:, :2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(half).save("turned.png", exif=exif)
    turned = own_pictures.picture(Path("turned.png"), pictures())
    assert turned[0, 0].tolist() == [255] * 4 and turned[0, 3].tolist() == [0] * 4
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save("glass.png")
    assert own_pictures.picture(Path("glass.png"), pictures()).min() == 255
    Image.new("L", (1, 1), 7).save("point.png")
    assert set(own_pictures.picture(Path("point.png"), pictures()).ravel().tolist()) == {7}


def test_broken_pictures_are_listed_and_refused_or_skipped() -> None:
    photos()
    whole = Path(PHOTOS, "sky", "03.png").read_bytes()
    Path(PHOTOS, "sky", "03.png").write_bytes(whole[: len(whole) // 2])
    Path(PHOTOS, "berry", "04.jpg").write_text("no picture")
    with pytest.raises(DecantError) as error:
        decoded(pictures())
    for text in ("2 of 21 pictures cannot be read", "sky/03.png: ", "berry/04.jpg: ", "`bad: skip`"):
        assert text in str(error.value)
    found, notes = decoded(pictures(bad="skip"))
    assert sum(map(len, found.values())) == 19
    assert "2 of 21 pictures cannot be read: they are skipped" in notes


def test_hidden_files_are_none_of_a_class() -> None:
    """Notebooks leave copies of pictures in folders that begin with a dot, and some systems notes on them."""
    photos()
    plain = decoded(pictures())
    first = Path(PHOTOS, "sky", "03.png")
    Path(PHOTOS, "sky", ".checkpoints").mkdir()
    Path(PHOTOS, "sky", ".checkpoints", "03.png").write_bytes(first.read_bytes())
    Path(PHOTOS, "sky", "._03.png").write_bytes(b"no picture")
    found = decoded(pictures())
    assert found[1] == plain[1] and [*map(len, found[0].values())] == [*map(len, plain[0].values())]


def test_a_folder_of_nothing_but_broken_pictures_is_refused() -> None:
    photos(count=10)
    for path in Path(PHOTOS).rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DecantError, match="20 of 20 pictures cannot be read"):
        decoded(pictures(bad="skip"))


def test_folders_may_say_the_split() -> None:
    for number, name in enumerate(SPLITS, start=2):
        photos(f"{PHOTOS}/{name}", number)
    found, notes = decoded(pictures(split={"kind": "folders"}))
    assert [len(found[name]) for name in SPLITS] == [4, 6, 8]
    assert (
        "the same inputs in two splits: 4 of 6 validation rows are in train too; 4 of 8 test rows are in "
        in ("\n".join(notes))
    )
    with pytest.raises(DecantError, match=r"data.leak"):
        decoded(pictures(split={"kind": "folders"}, leak="fail"))


def test_mistakes_in_a_folder_are_told() -> None:
    with pytest.raises(DecantError, match="No folder data/own/photos here"):
        decoded(pictures())
    photos()
    with pytest.raises(DecantError, match="has the folder sky, which `classes` do not name"):
        decoded(pictures(classes=["berry", "sea"]))
    Path(PHOTOS, "cloud").mkdir()
    with pytest.raises(DecantError, match=r"no pictures \(.*\) of cloud; give .* or take its folder away"):
        decoded(pictures())
    with pytest.raises(
        DecantError, match=r"no pictures \(.*\) of cloud, sea; .* or take it out of `classes`"
    ):
        decoded(pictures(classes=["berry", "cloud", "sea", "sky"]))
    with pytest.raises(DecantError, match=r"data.split: groups stay whole|groups is a column of a table"):
        pictures(split={"kind": "shares", "validation": 0.1, "test": 0.1, "groups": "box"})


def test_a_single_class_is_refused() -> None:
    Path(PHOTOS, "berry").mkdir(parents=True)
    with pytest.raises(DecantError, match="has 1 class, expected two or more"):
        decoded(pictures())


def test_pictures_become_the_tables_that_all_stages_read(tmp_path: Path) -> None:
    photos()
    shares = {"kind": "shares", "validation": 0.2, "test": 0.3}
    data = {"source": "folder", "folder": PHOTOS, "size": [4, 4], "split": shares, "balanced": True}
    with home(tmp_path, params={"seed": 3, "data": data}):
        prepare()
        test = splits.read(splits.TEST)
    assert test.classes == ("berry", "sky") and test.target == Classes(balanced=True)
    assert isinstance(test.images, torch.Tensor) and test.images.shape == (6, 3, 4, 4)
