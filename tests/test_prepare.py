"""The stage `prepare`: the splits, the tables, the ways to the files, and every error a person can meet."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import json
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from decant.errors import DecantError
from tasks.pipeline.params import validate
from tasks.pipeline.seals import BLANK, seal_
from tasks.pipeline.splits import TEST, TRAIN, VALIDATION, read, read_splits
from tasks.prepare import __main__ as stage
from tasks.prepare import files, idx, splits, tables
from tasks.prepare.params import PrepareParams
from tasks.prepare.sources import (
    SOURCES,
    STEMS,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    DigitsSource,
    IdxSource,
)

DIGITS = SOURCES["digits"]
CLOSED = "http://127.0.0.1:9/"
SPLITS = ("train", "validation", "test")


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


def toy_contents(train: int = 30, test: int = 6) -> dict[str, bytes]:
    """Four IDX files of 2 x 3 pixels; pixel (0, 0) is the image's number, so that rows can be recognized."""
    contents = {}
    for (images, labels), count in (
        ((TRAIN_IMAGES, TRAIN_LABELS), train),
        ((TEST_IMAGES, TEST_LABELS), test),
    ):
        pixels = np.zeros((count, 2, 3))
        pixels[:, 0, 0] = np.arange(count)
        contents[images], contents[labels] = idx_bytes(pixels), idx_bytes(np.arange(count) % 3)
    return contents


def toy_source(contents: dict[str, bytes], **changes: object) -> IdxSource:
    source = IdxSource(
        name="toy",
        classes=("zero", "one", "two"),
        sums={stem: hashlib.sha256(content).hexdigest() for stem, content in contents.items()},
        sizes={stem: len(content) for stem, content in contents.items()},
        address=CLOSED,
    )
    return dataclasses.replace(source, **changes)


def put(folder: Path, contents: dict[str, bytes], stems: Sequence[str] = STEMS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        (folder / files._names(stem)[0]).write_bytes(gzip.compress(contents[stem]))


@pytest.fixture(autouse=True)
def _bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the real machine is a way in: no folder, no package, no proxy, no apt-get."""
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv(files.FOLDERS_VARIABLE, raising=False)


@pytest.fixture
def contents() -> dict[str, bytes]:
    return toy_contents()


@pytest.fixture
def toy(contents: dict[str, bytes]) -> IdxSource:
    return toy_source(contents)


# --- the splits


def test_splits_are_a_partition_of_the_source(contents: dict[str, bytes], toy: IdxSource) -> None:
    put(files.RAW, contents)
    drawn = splits.draw(toy, validation=5, seed=0)
    assert {name: len(split) for name, split in drawn.items()} == {"train": 25, "validation": 5, "test": 6}
    numbers = [drawn[name].images[:, 0, 0, 0].tolist() for name in SPLITS]
    assert sorted(numbers[0] + numbers[1]) == list(range(30))
    assert numbers[2] == list(range(6)), "the test split keeps its order"
    assert numbers[0] != sorted(numbers[0]), "the training split is shuffled"
    for split in drawn.values():
        assert (split.labels == split.images[:, 0, 0, 0] % 3).all(), "labels follow their images"


def test_another_seed_draws_other_splits(contents: dict[str, bytes], toy: IdxSource) -> None:
    put(files.RAW, contents)
    first, again, other = (splits.draw(toy, 5, seed)["validation"].images for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_digits_are_all_of_the_source_scaled_to_bytes() -> None:
    from sklearn.datasets import load_digits

    drawn = splits.draw(DIGITS, validation=300, seed=3)
    assert isinstance(DIGITS, DigitsSource)
    assert {name: len(split) for name, split in drawn.items()} == {
        "train": 1797 - 300 - 360,
        "validation": 300,
        "test": 360,
    }
    images = np.concatenate([drawn[name].images for name in SPLITS])
    labels = np.concatenate([drawn[name].labels for name in SPLITS])
    assert images.shape == (1797, 1, 8, 8)
    originals = load_digits()
    expected = {
        (bytes(round(value * 255 / 16) for value in image.ravel()), label)
        for image, label in zip(originals.images, originals.target, strict=True)
    }
    assert {(image.tobytes(), label) for image, label in zip(images, labels, strict=True)} == expected


@pytest.mark.parametrize("validation", [30, 31])
def test_holding_out_everything_is_an_error(
    contents: dict[str, bytes], toy: IdxSource, validation: int
) -> None:
    put(files.RAW, contents)
    with pytest.raises(DecantError, match=rf"data\.validation holds out {validation} of the 30 .* below 30"):
        splits.draw(toy, validation, seed=0)
    assert len(splits.draw(toy, 29, seed=0)["train"]) == 1


# --- the tables


def test_data_reads_what_tables_wrote(tmp_path: Path, contents: dict[str, bytes], toy: IdxSource) -> None:
    put(files.RAW, contents)
    drawn = splits.draw(toy, 5, seed=0)
    tables.write(drawn, tmp_path / "data", toy)
    for name, split in drawn.items():
        examples = read(tmp_path / "data" / f"{name}.parquet")
        assert (examples.images.numpy() == split.images).all()
        assert (examples.labels.numpy() == split.labels).all()
        assert examples.classes == toy.classes
        assert examples.shape == (1, 2, 3)
    assert [str(path) for path in (TRAIN, VALIDATION, TEST)] == [f"data/{name}.parquet" for name in SPLITS]


def test_a_table_is_plain_and_in_one_piece(tmp_path: Path) -> None:
    tables.write(splits.draw(DIGITS, 300, seed=0), tmp_path, DIGITS)
    parquet = pq.ParquetFile(tmp_path / "train.parquet")
    assert parquet.metadata.num_row_groups == 1
    column = parquet.metadata.row_group(0).column(0)
    assert (column.compression, column.has_dictionary_page) == ("UNCOMPRESSED", False)
    assert str(parquet.schema_arrow.field("image").type) == "fixed_size_binary[64]"
    known = {b"shape", b"classes", b"source", b"split", b"drawn", b"seal"}
    assert set(parquet.schema_arrow.metadata) == known
    assert column.total_compressed_size < 1.02 * 64 * parquet.metadata.num_rows


def write_params(validation: int = 300, seed: int = 1, source: str = "digits") -> None:
    Path("params.yaml").write_text(f"seed: {seed}\ndata: {{source: {source}, validation: {validation}}}\n")


def read_tables() -> dict[str, bytes]:
    return {name: (Path("data") / f"{name}.parquet").read_bytes() for name in SPLITS}


def test_the_stage_writes_the_same_bytes_again() -> None:
    write_params()
    stage.main()
    first = read_tables()
    stage.main()
    assert read_tables() == first
    write_params(seed=2)
    stage.main()
    assert all(read_tables()[name] != first[name] for name in SPLITS)


def test_a_failing_stage_leaves_the_old_tables() -> None:
    write_params()
    stage.main()
    before = read_tables()
    write_params(validation=5000)
    with pytest.raises(DecantError, match=r"data\.validation"):
        stage.main()
    assert read_tables() == before


def test_tables_change_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables.write(splits.draw(DIGITS, 300, seed=0), tmp_path / "data", DIGITS)
    before = read_tables()
    write, written = pq.ParquetWriter.write_table, list[int]()

    def write_until_the_disk_is_full(writer: object, table: pa.Table, **options: object) -> None:
        write(writer, table, **options)
        written.append(len(table))
        if len(written) == len(SPLITS):
            raise OSError("No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write_until_the_disk_is_full)
    with pytest.raises(OSError, match="No space"):
        tables.write(splits.draw(DIGITS, 300, seed=9), tmp_path / "data", DIGITS)
    assert read_tables() == before
    assert sorted(path.name for path in Path("data").iterdir()) == sorted(
        f"{name}.parquet" for name in SPLITS
    )


def test_the_stage_does_not_import_torch() -> None:
    code = "import sys, tasks.prepare.__main__; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    root = Path(stage.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# --- tables that are not what was written


IMAGES = np.arange(60 * 64, dtype=np.uint8).reshape(60, 1, 8, 8)
LABELS = np.arange(60) % 10


def put_table(labels: np.ndarray = LABELS, name: str = "train") -> Path:
    tables.write({name: splits.Split(IMAGES, labels)}, Path("data"), DIGITS)
    return Path("data", f"{name}.parquet")


def labelled(values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(1, pa.field("label", values.type, False), values)


def pictured(values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(0, pa.field("image", values.type, False), values)


def described(**changes: str) -> Callable[[pa.Table], pa.Table]:
    encoded = {key.encode(): value for key, value in changes.items()}
    return lambda table: table.replace_schema_metadata(table.schema.metadata | encoded)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.replace(IMAGES[5].tobytes(), IMAGES[6].tobytes()),
        lambda content: content.replace(b"digits", b"digit!"),
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        lambda content: content[: len(content) // 2],
        lambda content: content + content,
        lambda content: content[:-1] + b"!",
        lambda content: b"",
        lambda content: b"PAR1" + 4000 * b"\xff" + b"\xff\xff\xff\x7fPAR1",
        lambda content: content[:4] + bytes(len(content) - 4),
    ],
)
def test_a_table_with_any_other_byte_is_refused_before_it_is_parsed(
    damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put_table()
    before = path.read_bytes()
    path.write_bytes(after := damage(before))
    assert after != before
    monkeypatch.setattr(pq, "ParquetFile", None)
    with pytest.raises(DecantError, match=r"^data/train\.parquet .*run `dvc repro -f prepare`$"):
        read(path)


FORGED = {
    "labels up to 249": (labelled(pa.array(LABELS + 240)), "labels from 240 to 249 of 10 classes"),
    "labels below 0": (labelled(pa.array(LABELS - 1)), "labels from -1 to 8"),
    "labels of a byte": (labelled(pa.array(LABELS.astype("u1"))), "its columns are not"),
    "labels in words": (labelled(pa.array(LABELS.astype(str))), "its columns are not"),
    "lists for labels": (labelled(pa.array([[1]] * 60)), "its columns are not"),
    "a label missing": (
        lambda table: table.set_column(1, "label", pa.array([None, *LABELS[1:].tolist()])),
        "1 values are missing",
    ),
    "no images": (lambda table: table.set_column(0, "image", pa.nulls(60)), "its columns are not"),
    "images of another size": (pictured(pa.array([b"x" * 32] * 60, pa.binary(32))), "its columns are not"),
    "another column": (lambda table: table.append_column("more", pa.array(LABELS)), "its columns are not"),
    "a column twice": (lambda table: table.append_column("label", pa.array(LABELS)), "its columns are not"),
    "no rows": (lambda table: table.slice(0, 0), "its rows are not in one piece"),
    "a number for the shape": (described(shape="5"), "shape: must be a list"),
    "another shape": (described(shape="[1, 4, 4]"), "its columns are not"),
    "words for the shape": (described(shape='["a", "b", 1]'), r"shape\.0: must be a whole number"),
    "brackets for the shape": (described(shape="[" * 9999), "Error"),
    "nothing for classes": (described(classes="null"), "classes: must be a list"),
    "one class": (described(classes='["a"]'), "labels from 0 to 9 of 1 classes"),
    "no JSON": (described(source="x"), "Expecting value"),
    "bytes for a name": (described(source=b"\xff\xfe"), "Error"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_table_of_another_form_is_refused_though_its_sum_is_right(what: str) -> None:
    edit, message = FORGED[what]
    path = put_table()
    table = edit(pq.read_table(path))
    assert BLANK.encode() in table.schema.metadata.values()
    pq.write_table(table, path, compression="NONE", use_dictionary=False, write_statistics=False)
    seal_(path)
    with pytest.raises(DecantError, match=rf"^data/train\.parquet .*{message}.*run `dvc repro -f prepare`$"):
        read(path)


@pytest.mark.parametrize("form", [{"compression": "GZIP"}, {"use_dictionary": True}, {"row_group_size": 7}])
def test_a_table_that_is_small_only_on_disk_is_refused(form: dict[str, object]) -> None:
    path = put_table()
    plain = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pq.read_table(path), path, **plain | form)
    with pytest.raises(DecantError, match=r"no sum|not the sum"):
        read(path)
    seal_(path)
    with pytest.raises(DecantError, match="its rows are not in one piece"):
        read(path)


def test_a_split_is_not_read_as_another() -> None:
    put_table(name="train").rename(VALIDATION)
    with pytest.raises(DecantError, match=r"validation\.parquet .* it is the split train"):
        read(VALIDATION)


def test_tables_that_params_yaml_does_not_ask_for_are_refused() -> None:
    write_params()
    stage.main()
    assert len(read_splits().validation) == 300
    for changed in ({"validation": 200}, {"seed": 2}):
        write_params(**changed)
        with pytest.raises(
            DecantError, match=r"^data/train\.parquet was drawn by .* run `dvc repro prepare`"
        ):
            read_splits()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: None])
def test_what_is_no_file_is_no_table(make: Callable[[Path], None]) -> None:
    Path("data").mkdir()
    make(TRAIN)
    with pytest.raises(DecantError, match=r"data/train\.parquet.* run `dvc repro (-f )?prepare`"):
        read(TRAIN)


def test_more_classes_than_a_byte_can_tell_are_read_as_they_were_written() -> None:
    many = dataclasses.replace(DIGITS, classes=tuple(map(str, range(300))))
    labels = np.arange(60) * 5
    tables.write({"train": splits.Split(IMAGES, labels)}, Path("data"), many)
    assert read(TRAIN).labels.tolist() == labels.tolist()
    assert pq.read_schema(TRAIN).metadata[b"classes"] == json.dumps(many.classes).encode()


# --- params.yaml


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(
        DecantError, match=r"data\.source: unknown source 'fashion-mnst'; did you mean 'fashion-mnist'"
    ):
        validate({"source": "fashion-mnst", "validation": 10}, PrepareParams, "data")


@pytest.mark.parametrize("validation", [0, -1, 2.5])
def test_validation_is_a_positive_count(validation: float) -> None:
    with pytest.raises(DecantError, match=r"data\.validation: must be"):
        validate({"source": "digits", "validation": validation}, PrepareParams, "data")


# --- the sources


@pytest.mark.parametrize("name", SOURCES)
def test_an_entry_is_complete(name: str) -> None:
    source = SOURCES[name]
    assert source.name == name
    assert len(set(source.classes)) == len(source.classes) <= 256
    if isinstance(source, IdxSource):
        assert tuple(source.sums) == STEMS
        assert all(len(bytes.fromhex(value)) == 32 for value in source.sums.values())
        assert tuple(source.sizes) == STEMS
        assert source.address.endswith("/")


# --- IDX


def test_decode_returns_what_was_encoded() -> None:
    values = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    assert (idx.decode(idx_bytes(values), 3, "it") == values).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is not an IDX file .* 0 bytes and begins with nothing, not 00 00 08 03"),
        (b"<html>no such page</html>", "it is not an IDX file .* begins with 3c 68 74 6d"),
        (idx_bytes(np.zeros(4)), "it is not an IDX file .* in 3 dimension.* begins with 00 00 08 01"),
        (bytes([0, 0, 8, 3, 0, 0]), "it is not an IDX file .* 6 bytes"),
        (
            idx_bytes(np.zeros((4, 2, 3)))[:-1],
            r"it holds 3 of the 4 entries .* \(23 bytes of values, not 24\)",
        ),
        (
            idx_bytes(np.zeros((4, 2, 3))) + b"!",
            r"it holds 4 of the 4 entries .* \(25 bytes of values, not 24\)",
        ),
    ],
    ids=["empty", "web page", "labels", "cut header", "too few", "too many"],
)
def test_decode_refuses_other_content(content: bytes, message: str) -> None:
    with pytest.raises(DecantError, match=message):
        idx.decode(content, 3, "it")


# --- files that are there and wrong


def prepare(source: IdxSource) -> None:
    tables.write(splits.draw(source, 5, seed=0), Path("data"), source)


def assert_no_table() -> None:
    assert not [path for path in Path("data").iterdir() if path.name != "raw"]


def test_a_wrong_sum_names_the_file(contents: dict[str, bytes], toy: IdxSource) -> None:
    put(files.RAW / "toy", {**contents, TEST_IMAGES: contents[TEST_IMAGES][:-1] + b"!"})
    with pytest.raises(
        DecantError,
        match=r"data/raw/toy/t10k-images-idx3-ubyte\.gz is not the t10k-images of toy: .* remove it",
    ):
        prepare(toy)
    assert_no_table()


def test_a_truncated_file_names_the_file(contents: dict[str, bytes], toy: IdxSource) -> None:
    put(files.RAW, contents)
    path = files.RAW / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DecantError, match=r"data/raw/train-images-idx3-ubyte\.gz is cut off: .* whole copy"):
        prepare(toy)
    assert_no_table()


def test_a_damaged_file_names_the_file(contents: dict[str, bytes], toy: IdxSource) -> None:
    put(files.RAW, contents)
    path = files.RAW / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(DecantError, match=r"train-images-idx3-ubyte\.gz cannot be decompressed \(CRC"):
        prepare(toy)


def test_an_unreadable_file_names_the_file(
    contents: dict[str, bytes], toy: IdxSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(files.RAW, contents)

    def refuse(path: Path, mode: str) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        DecantError, match=r"Cannot read data/raw/train-images-idx3-ubyte\.gz: Permission denied"
    ):
        prepare(toy)


@pytest.mark.parametrize(
    ("stem", "values", "message"),
    [
        (
            TRAIN_LABELS,
            np.arange(30),
            r"train-labels\S+ has the label 3 at position 3 \(27 such .* labels 0 to 2",
        ),
        (TRAIN_LABELS, np.zeros(29), r"train-images\S+ has 30 images and \S+train-labels\S+ 29 labels"),
        (
            TRAIN_IMAGES,
            np.zeros((29, 2, 3)),
            r"train-images\S+ has 29 images and \S+train-labels\S+ 30 labels",
        ),
        (TRAIN_IMAGES, np.zeros((0, 2, 3)), r"train-images\S+ holds no image"),
        (
            TEST_IMAGES,
            np.zeros((6, 3, 3)),
            r"train-images\S+ and \S+t10k-images\S+ hold .* 2x3 and 3x3 pixels",
        ),
        (TEST_LABELS, np.zeros((6, 1)), r"t10k-labels\S+ is not an IDX file"),
    ],
    ids=["label out of range", "a label less", "an image less", "no image", "other size", "other dimensions"],
)
def test_broken_content_names_the_file(
    contents: dict[str, bytes], stem: str, values: np.ndarray, message: str
) -> None:
    contents[stem] = idx_bytes(values)
    put(files.RAW, contents)
    with pytest.raises(DecantError, match=message):
        prepare(toy_source(contents))
    assert_no_table()


def test_too_few_images_name_the_file(contents: dict[str, bytes]) -> None:
    contents[TRAIN_IMAGES] = contents[TRAIN_IMAGES][: 16 + 12 * 6]
    put(files.RAW, contents)
    with pytest.raises(DecantError, match=r"train-images\S+ holds 12 of the 30 entries .* whole copy"):
        prepare(toy_source(contents))
    assert_no_table()


# --- more than there can be


MUCH = 64 << 20
MORE = "(it has more than the 196 bytes|has more than 65732 bytes, which it cannot have).* remove it"


@pytest.mark.parametrize(
    "content",
    [gzip.compress(bytes(MUCH)), gzip.compress(b"") * 4_000, gzip.compress(bytes(1 << 20)) * 64],
    ids=["one member", "of nothing", "many members"],
)
def test_a_file_that_unpacks_to_much_is_refused_in_little_memory(
    contents: dict[str, bytes], toy: IdxSource, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "AROUND", 1 << 16)
    put(files.RAW / "toy", contents)
    (files.RAW / "toy" / "train-images-idx3-ubyte.gz").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DecantError, match=rf"data/raw/toy/train-images-idx3-ubyte\.gz.* {MORE}"):
        files.find(toy)
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_a_file_that_is_long_is_not_read_to_its_end(contents: dict[str, bytes], toy: IdxSource) -> None:
    put(files.RAW / "toy", contents)
    with (files.RAW / "toy" / "train-images-idx3-ubyte.gz").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DecantError, match=f"data/raw/toy/train-images-idx3-ubyte.gz.* {MORE}"):
        files.find(toy)


def test_an_answer_that_is_long_is_a_reason(contents: dict[str, bytes], published: tuple[Path, str]) -> None:
    folder, address = published
    put(folder, contents)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(bytes(4 << 20))
    with pytest.raises(DecantError, match=r"train-images-idx3-ubyte\.gz has more than 1048772 bytes"):
        files.find(toy_source(contents, address=address))
    assert not files.RAW.exists()


def test_a_package_that_unpacks_to_much_is_a_reason(
    tmp_path: Path, contents: dict[str, bytes], toy: IdxSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "DEBIAN", Path("/usr/share/datasets"))
    put_apt(tmp_path, contents)
    with (tmp_path / "package/usr/a").open("wb") as file:
        file.truncate(1 << 25)
    with pytest.raises(DecantError, match=r"dataset-toy_1_all\.deb has more than \d+ bytes"):
        files.find(dataclasses.replace(toy, package="dataset-toy"))


# --- the ways to the files


@pytest.mark.parametrize(
    "name",
    [
        "t10k-images-idx3-ubyte.gz",
        "t10k-images-idx3-ubyte",
        "t10k-images.idx3-ubyte.gz",
        "t10k-images.idx3-ubyte",
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_file_goes_by_four_names(
    contents: dict[str, bytes], toy: IdxSource, name: str, packed: bool
) -> None:
    put(files.RAW, contents, [stem for stem in STEMS if stem != TEST_IMAGES])
    content = contents[TEST_IMAGES]
    (files.RAW / name).write_bytes(gzip.compress(content) if packed else content)
    assert files.find(toy)[TEST_IMAGES].content == content


def test_the_order_of_the_folders(
    tmp_path: Path, contents: dict[str, bytes], toy: IdxSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From last to first: a file put into an earlier place is taken from there."""
    monkeypatch.setenv(files.FOLDERS_VARIABLE, os.pathsep.join(["one", "", str(tmp_path / "two")]))
    toy = dataclasses.replace(toy, package="dataset-toy")
    two, one = tmp_path / "two", Path("one")
    for place in (files.DEBIAN / "toy", two, two / "toy", one, one / "toy", files.RAW, files.RAW / "toy"):
        put(place, contents)
        assert {Path(file.origin).parent for file in files.find(toy).values()} == {place}


def test_each_file_is_looked_for_by_itself(
    contents: dict[str, bytes], toy: IdxSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(files.FOLDERS_VARIABLE, "more")
    put(files.RAW, contents, STEMS[:1])
    put(Path("more"), contents, STEMS[1:])
    assert [Path(files.find(toy)[stem].origin).parent.name for stem in STEMS] == [
        "raw",
        "more",
        "more",
        "more",
    ]


def test_folders_of_two_sources_side_by_side(
    contents: dict[str, bytes], toy: IdxSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DECANT_DATASETS=a:b, each with the same four names: a known other source's files are passed over."""
    others = toy_contents(train=9, test=3)
    other = toy_source(others, name="other")
    monkeypatch.setattr(files, "SOURCES", {"toy": toy, "other": other})
    monkeypatch.setenv(files.FOLDERS_VARIABLE, os.pathsep.join(["a", "b"]))
    put(Path("a"), others)
    put(Path("b"), contents)
    assert {Path(file.origin).parent.name for file in files.find(toy).values()} == {"b"}
    put(files.RAW / "toy", others)
    with pytest.raises(DecantError, match="data/raw/toy/train-images"):
        files.find(toy)


def test_no_way_in_lists_them_all_with_reasons(toy: IdxSource) -> None:
    with pytest.raises(DecantError) as caught:
        files.find(dataclasses.replace(toy, package="dataset-toy"))
    message = str(caught.value)
    for part in (
        "No train-images, train-labels, t10k-images, t10k-labels of toy",
        "in data/raw/toy or data/raw",
        "DECANT_DATASETS is not set",
        "apt install dataset-toy",
        f"{CLOSED}train-images-idx3-ubyte.gz: <urlopen error [Errno 111] Connection refused>",
        "apt-get download dataset-toy: no apt-get and no dpkg-deb on this machine",
    ):
        assert part.replace("[Errno 111] ", "") in message.replace("[Errno 111] ", "").replace(
            "[Errno 61] ", ""
        )


def test_no_package_is_a_reason_too(toy: IdxSource) -> None:
    with pytest.raises(DecantError, match="Debian has no package of toy"):
        files.find(toy)


# --- the public address


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which a real server on this machine offers it."""
    folder = tmp_path / "published"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]  # the base class wants three

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()  # half a second less
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_the_address_is_asked_once(contents: dict[str, bytes], published: tuple[Path, str]) -> None:
    folder, address = published
    put(folder, contents)
    source = toy_source(contents, address=address)
    found = files.find(source)
    assert {stem: file.content for stem, file in found.items()} == contents
    assert all(file.origin.startswith(address) for file in found.values())
    assert sorted(path.name for path in (files.RAW / "toy").iterdir()) == sorted(
        p.name for p in folder.iterdir()
    )
    again = files.find(dataclasses.replace(source, address=CLOSED))
    assert all(Path(file.origin).parent == files.RAW / "toy" for file in again.values())


def test_a_wrong_answer_is_a_reason_and_is_not_kept(
    contents: dict[str, bytes], published: tuple[Path, str]
) -> None:
    """A network that asks for a log-in answers every address with its own page."""
    folder, address = published
    put(folder, contents)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"<html>log in</html>")
    with pytest.raises(
        DecantError, match=r"train-labels-idx1-ubyte\.gz is not the train-labels of toy"
    ) as caught:
        files.find(toy_source(contents, address=address))
    assert "No train-labels, t10k-images, t10k-labels of toy" in str(caught.value)
    assert [path.name for path in (files.RAW / "toy").iterdir()] == ["train-images-idx3-ubyte.gz"]


def test_a_missing_page_is_a_reason(contents: dict[str, bytes], published: tuple[Path, str]) -> None:
    with pytest.raises(DecantError, match=r"train-images-idx3-ubyte\.gz: HTTP Error 404"):
        files.find(toy_source(contents, address=published[1]))


def test_a_silent_server_is_given_up(toy: IdxSource, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(files, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = dataclasses.replace(toy, address=f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(DecantError, match=r"train-images-idx3-ubyte\.gz: timed out"):
            files.find(source)


# --- apt-get


def put_tool(name: str, script: str) -> None:
    """Put an executable onto PATH; the real tools come back for the script's own use."""
    path = Path("bin") / name
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\nset -e\n{script}")
    path.chmod(0o755)


def put_apt(tmp_path: Path, contents: dict[str, bytes]) -> None:
    """Stand in for apt-get and dpkg-deb: a package is a tar archive; every call is written down."""
    put(tmp_path / "package/usr/share/datasets/toy", contents)
    put_tool(
        "apt-get",
        f'echo "$@" >> {tmp_path}/calls\n'
        'for word; do case $word in Dir::State::lists=*) test -d "${word#*=}/partial";; esac; done\n'
        f'case "$*" in *download*) tar -cf dataset-toy_1_all.deb -C {tmp_path}/package usr;; esac\n',
    )
    put_tool("dpkg-deb", 'test "$1" = --fsys-tarfile; cat "$2"\n')


def test_the_package_is_fetched_without_root(
    tmp_path: Path, contents: dict[str, bytes], toy: IdxSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "DEBIAN", Path("/usr/share/datasets"))
    put_apt(tmp_path, contents)
    found = files.find(dataclasses.replace(toy, package="dataset-toy"))
    assert {stem: file.content for stem, file in found.items()} == contents
    update, download = (tmp_path / "calls").read_text().splitlines()
    assert update.endswith(" update")
    assert download.endswith(" download dataset-toy")
    assert all("Dir::Cache=" in call and "Dir::State::lists=" in call for call in (update, download))
    assert {Path(file.origin).parent for file in files.find(toy).values()} == {files.RAW / "toy"}


def test_a_package_of_something_else_is_a_reason(
    tmp_path: Path, contents: dict[str, bytes], toy: IdxSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "DEBIAN", Path("/usr/share/datasets"))
    put_apt(tmp_path, {**contents, TRAIN_IMAGES: b"else"})
    with pytest.raises(
        DecantError, match=r"apt-get download dataset-toy: .*train-images is not the train-images of toy"
    ):
        files.find(dataclasses.replace(toy, package="dataset-toy"))
    assert not list(files.RAW.rglob("*"))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'E: no such host'; exit 100\n", "apt-get update exited 100: E: no such host"),
        ("exit 100\n", "apt-get update exited 100: nothing said"),
        ("exit 0\n", "it left no package"),
        ('case "$*" in *download*) touch a.deb;; esac\n', "empty file"),
        ('case "$*" in *download*) tar -cf a.deb -T /dev/null;; esac\n', "no train-images, .* of toy in it"),
        ("sleep 10\n", "apt-get update took more than 0 s"),
    ],
)
def test_a_failing_apt_is_a_reason(
    toy: IdxSource, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    monkeypatch.setattr(files, "APT_TIMEOUT", 0.3)
    put_tool("apt-get", script.replace("sleep", "exec sleep"))
    put_tool("dpkg-deb", 'cat "$2"\n')
    with pytest.raises(DecantError, match=f"apt-get download dataset-toy: {reason}"):
        files.find(dataclasses.replace(toy, package="dataset-toy"))
