"""Tables, texts and rows of functions that are read by batches: the same bytes as where all is in memory."""

import errno
import json
import os
import random
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
import pytest
import safetensors.torch
import torch

from decant.errors import DecantError
from tasks.pipeline import arrays as files
from tasks.prepare import arrays, generators, own_tables, readers, room
from tasks.prepare.__main__ import main as prepare
from tasks.prepare.columns import Lists, Source
from tests.homes import home, write_params
from tests.test_own_networks import git

SHARES = {"kind": "shares", "validation": 0.1, "test": 0.2}
PART = {"kind": "column", "column": "part"}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path) -> Iterator[None]:
    with home(tmp_path, params={"seed": 3}):
        Path("data/own").mkdir(parents=True)
        yield


def table(count: int = 700) -> pa.Table:
    draw = random.Random(0)
    return pa.table(
        {
            "width": [draw.gauss(0, 1) for _ in range(count)],
            "seats": [None if row % 7 == 0 else row % 50 for row in range(count)],
            "colour": [draw.choice(["red", "green", "", "blue"]) for _ in range(count)],
            "kind": [draw.choice("xyz") for _ in range(count)],
            "box": [draw.randrange(90) for _ in range(count)],
            "tags": [" ".join(draw.sample("abc", draw.randrange(4))) for _ in range(count)],
            "price": [round(draw.gauss(9, 4), 2) for _ in range(count)],
            "part": [draw.choice(["train", "train", "validation", "test"]) for _ in range(count)],
            "text": [
                " ".join(draw.choices(["buy", "now", "dear"], k=draw.randint(2, 9))) for _ in range(count)
            ],
        }
    )


def write(content: pa.Table, ending: str) -> str:
    path = f"data/own/rows.{ending}"
    if ending == "csv":
        pyarrow.csv.write_csv(content, path)
    elif ending == "parquet":
        pyarrow.parquet.write_table(content, path, row_group_size=300)
    else:
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in content.to_pylist()))
    return path


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes everything count as large, and read a few rows at a time."""

    def make() -> None:
        for name, value in (("SMALL", 1000), ("BLOCK", 1 << 13), ("ROWS", 64)):
            monkeypatch.setattr(readers, name, value)
        monkeypatch.setattr(room, "SMALL", 1000)
        for module in (own_tables, arrays):
            monkeypatch.setattr(module, "is_large", lambda *_: True)
        monkeypatch.setattr(files, "SMALL", 1000)
        monkeypatch.setattr(files, "GROUP", 333)
        monkeypatch.setattr(files, "group_rows", lambda _: 7)
        monkeypatch.setattr(own_tables, "SEEN", 100)

    return make


def prepared(data: dict[str, Any]) -> dict[str, bytes]:
    write_params({"seed": 3, "data": data})
    prepare()
    return {path.name: path.read_bytes() for path in Path("data").glob("*.parquet")}


TABLE = {"source": "table", "numbers": ["width", "seats"], "categories": ["colour"], "missing": "keep"}


@pytest.mark.parametrize(
    ("ending", "target", "split"),
    [
        ("csv", {"kind": "numbers", "columns": ["price"]}, PART),
        ("parquet", {"kind": "classes", "column": "kind"}, SHARES | {"stratified": True}),
        ("jsonl", {"kind": "labels", "column": "tags"}, SHARES | {"groups": "box"}),
    ],
)
def test_a_table_that_is_read_by_batches_becomes_the_same_bytes(
    ending: str,
    target: dict[str, Any],
    split: dict[str, Any],
    large: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = TABLE | {"file": write(table(), ending), "target": target, "split": split}
    before, told = prepared(data), capsys.readouterr().out
    large()
    assert prepared(data) == before and len(before) == 3
    assert capsys.readouterr().out == told and "train: " in told


@pytest.mark.parametrize("target", [{"kind": "tokens"}, {"kind": "classes", "column": "kind"}])
def test_texts_that_are_read_by_batches_become_the_same_bytes(
    target: dict[str, Any], large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers")
    from tests.test_texts import words_file

    words_file()
    data = {"source": "text", "column": "text", "tokenizer": "data/own/tokenizer.json", "length": 5}
    data |= {"file": write(table(), "csv"), "target": target, "split": PART}
    before = prepared(data)
    large()
    monkeypatch.setattr("tasks.prepare.own_texts.BATCH", 50)
    assert prepared(data) == before


def test_lines_that_are_read_by_batches_are_the_same(large: Callable[[], None]) -> None:
    path = Path("data/own/lines.txt")
    path.write_bytes(b"buy now\r\n\n" + b"dear friend\n" * 900 + b"cheap")
    expected = [line.removesuffix(b"\r") for line in path.read_bytes().split(b"\n")]
    large()
    found = readers.lines(path, "text").column("text")
    assert found.to_pylist() == expected and found.num_chunks > 1


def test_rows_of_a_function_that_lie_in_a_file_become_the_same_bytes(
    large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("networks").mkdir()
    code = """
        import numpy as np

        def rows():
            for number in range(400):
                yield {"wide": np.full((2, 3), number, np.float32), "code": number, "kind": "ab"[number % 2]}
        """
    Path("networks/made.py").write_text(textwrap.dedent(code))
    git("init", "--quiet")
    git("add", "networks/made.py")
    monkeypatch.setattr(
        generators, "_second_run", lambda params: map(generators.sum_of, generators.run_once(params, 1))
    )
    data = {"source": "python", "file": "networks/made.py", "function": "rows", "split": SHARES}
    data |= {"target": {"kind": "classes", "column": "kind"}}
    before = prepared(data)
    large()
    assert prepared(data) == before


def named() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((400, 3, 2))
    return {
        "by columns": np.asfortranarray(x),
        "foreign": x[:, 0].astype(">f4"),
        "few": draw.integers(0, 9, (400, 1), np.int8),
        "kind": np.arange(400) % 3,
    }


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("test", [70, "data/arrays/more.safetensors"])
def test_arrays_that_are_read_by_blocks_become_the_same_bytes(
    write: Callable[..., None], test: Any, large: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data/arrays").mkdir()
    write("data/arrays/all.npz", **named())
    more = {
        name: torch.from_numpy(np.array(each[:90], each.dtype.newbyteorder("="), order="C"))
        for name, each in named().items()
    }
    safetensors.torch.save_file(more, "data/arrays/more.safetensors")
    data = {
        "source": "arrays",
        "train": "data/arrays/all.npz",
        "labels": "kind",
        "validation": 50,
        "test": test,
    }
    before, told = prepared(data), capsys.readouterr().out
    large()
    assert prepared(data) == before and len(before) == 3
    assert capsys.readouterr().out == told and "train: " in told
    assert not [path for path in Path("data").iterdir() if path.is_file() and path.suffix != ".parquet"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content: content[:6000] + b"\1" + content[6001:], "Bad CRC-32 for file 'by columns.npy'"),
        (lambda content: content[:9000], "File is not a zip file"),
        (lambda content: content.replace(b"(400, 3, 2)", b"(999, 3, 2)"), "by columns is cut off"),
        (lambda content: content.replace(b"'<f8'", b"'|O8'"), "by columns is of object"),
    ],
)
def test_large_arrays_that_are_not_whole_are_refused(
    change: Callable[[bytes], bytes], sentence: str, large: Callable[[], None]
) -> None:
    path = Path("data/own/all.npz")
    np.savez(path, **named())
    path.write_bytes(change(path.read_bytes()))
    large()
    with pytest.raises(DecantError, match=rf"all.npz does not hold tensors \({sentence}"):
        files.read_arrays(path, room.empty)


def test_large_arrays_without_room_are_no_broken_ones(
    large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    np.savez("data/own/all.npz", **named())
    large()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        files.read_arrays(Path("data/own/all.npz"), room.empty)


# --- types


MIXED = {
    "whole, then fractions": ["1"] * 900 + ["2.5"],
    "empty, then whole": [""] * 900 + ["3"],
    "dates, then words": ["2020-01-02"] * 900 + ["never"],
    "switches, then numbers": ["true"] * 900 + ["7"],
    "times of the day": ["2020-01-02 03:04:05"] * 900 + ["2020-01-02 03:04:05.5"],
    "words, then no UTF-8": ["a"] * 900 + ["caf\udce9"],
}


@pytest.mark.parametrize("values", MIXED.values(), ids=MIXED.keys())
def test_a_column_of_csv_has_one_type_wherever_the_odd_value_stands(
    values: list[str], large: Callable[[], None]
) -> None:
    path = Path("data/own/rows.csv")
    lines = ["row,x", *(f"{row},{value}" for row, value in enumerate(values))]
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    expected = readers.whole(path, long=False)
    large()
    found, names = readers.mapped(path, ["x"], long=False)
    assert names == ["row", "x"] and found.column_names == ["x"]
    assert found.column("x").combine_chunks().equals(expected.column("x").combine_chunks())


@pytest.mark.parametrize(
    "values",
    [[1] * 900 + [2.5], [None] * 900 + ["a"], ["2020-01-02"] * 900 + ["never"], [["a"]] * 900 + [[]]],
)
def test_a_column_of_json_has_one_type_wherever_the_odd_value_stands(
    values: list[Any], large: Callable[[], None]
) -> None:
    path = Path("data/own/rows.jsonl")
    path.write_text("".join(json.dumps({"row": row, "x": each}) + "\n" for row, each in enumerate(values)))
    expected = readers.whole(path, long=False)
    large()
    found, _ = readers.mapped(path, ["x"], long=False)
    assert found.column("x").combine_chunks().equals(expected.column("x").combine_chunks())


def test_a_column_that_is_a_word_here_and_a_number_there_is_refused(large: Callable[[], None]) -> None:
    path = Path("data/own/rows.jsonl")
    path.write_text('{"x": 1}\n' * 2000 + '{"x": "a"}\n')
    large()
    with pytest.raises(DecantError, match=r"rows.jsonl is no table .* in row 2001\)"):
        Source(path, ["x"])


def test_mistakes_in_large_tables_name_row_and_column(large: Callable[[], None]) -> None:
    path = write(table(), "csv")
    lines = Path(path).read_text().splitlines()
    lines[651] = "inf" + lines[651][lines[651].index(",") :]
    Path(path).write_text("\n".join(lines) + "\n")
    large()
    data = TABLE | {"file": path, "split": PART}
    with pytest.raises(DecantError, match="row 651: width is infinite, or beyond float32; leave such"):
        own_tables.draw(_params(data), 1)
    with pytest.raises(DecantError, match=r"no column 'seat'; did you mean 'seats'\?"):
        own_tables.draw(_params(data | {"numbers": ["seat"]}), 1)


def _params(data: dict[str, Any]) -> Any:
    from tasks.pipeline.params import validate
    from tasks.prepare.params import DataParams

    return validate(data, DataParams, "data")


# --- columns


def test_words_are_numbered_and_lists_are_one_after_another() -> None:
    content = pa.table({"tag": ["b", None, "a", "", "b"], "tags": [["b", "a"], [], ["a"], ["c", "b"], []]})
    source = Source.of(Path("rows"), content)
    words = source.words("tag")
    assert [*words] == ["b", None, "a", None, "b"] and words[2] == "a"
    assert words.places(("a", "b", "z")).tolist() == [1, -1, 0, -1, 1]
    assert words.among(np.array([1, 2])) == {"a"}
    lists = source.lists("tags", " ")
    assert isinstance(lists, Lists)
    assert [*lists.words] == ["b", "a", "a", "c", "b"] and lists.rows.tolist() == [0, 0, 2, 3, 3]


# --- room


def test_room_on_a_full_disk_is_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(room, "SMALL", 10)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        room.empty((100,), np.float32)
    assert not [path for path in Path("data").iterdir() if path.is_file()]


def test_files_without_a_name_hold_what_was_added() -> None:
    growing = room.Growing(np.int32)
    for part in ([1, 2], [], [3]):
        growing.add(np.array(part))
    assert growing.array().tolist() == [1, 2, 3]
    assert room.Growing(np.int64).array().tolist() == []
    assert not [path for path in Path("data").iterdir() if path.is_file()]
