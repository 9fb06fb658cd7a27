"""Data larger than memory: rows in groups, their order, what is written of them, mapped and learned from."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from decant import row_groups
from decant.adoption.adopting import _some
from decant.errors import DecantError
from decant.examples import Examples, Rows, Splits
from decant.inputs import IDS, LENGTH, MASK, TensorInput, inputs_of
from decant.networks.architectures import Mlp, build
from decant.networks.execution import predict
from decant.networks.layers import Normalize
from decant.networks.statistics import channels, deviations, fit_statistics_, means
from decant.row_groups import RowGroups, full, in_groups, order
from decant.seeds import derive_seed
from decant.targets import Numbers, Tokens, next_tokens
from decant.training.batches import batches
from decant.training.fresh import train
from decant.training.loading import loaded
from decant.training.recipe import Training
from tasks.pipeline.seals import seal_
from tasks.pipeline.splits import LOADERS, TEST, TRAIN, VALIDATION, bytes_of, read
from tasks.prepare import own_files, splits, tables
from tasks.prepare.__main__ import main as prepare
from tasks.prepare.sources import SOURCES
from tests.homes import home
from tests.imports import ROOT

DIGITS = SOURCES["digits"]
IN_A_GROUP, WINDOW = 32, 4
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make row groups of 32 digits, and windows of four of them."""
    monkeypatch.setattr(row_groups, "GROUP", IN_A_GROUP * 64 + 63)
    monkeypatch.setattr(row_groups, "WINDOW", WINDOW)
    with home(tmp_path, params={"seed": 3}):
        yield


def grouped(tensor: Tensor, size: int = 7) -> RowGroups:
    """Return a tensor in row groups, whose bytes lie where numbers of its type may not."""
    content = tensor.contiguous().reshape(len(tensor), -1).view(torch.uint8)
    shifted = [
        torch.cat([torch.zeros(1, dtype=torch.uint8), each.flatten()])[1:] for each in content.split(size)
    ]
    pieces = tuple(each.reshape(-1, content.shape[1]) for each in shifted)
    return RowGroups(pieces, tuple(tensor.shape[1:]), tensor.dtype)


# --- rows


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64, torch.bool])
def test_rows_in_groups_are_those_of_the_tensor(dtype: torch.dtype) -> None:
    plain = torch.randint(0, 200, (24, 2, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    found = grouped(plain)
    assert (len(found), found.shape, found.dim(), found.nbytes) == (24, (24, 2, 3), 3, plain.nbytes)
    for rows in (
        slice(None),
        slice(3, 17),
        slice(-5, None),
        slice(20, 99),
        slice(9, 4),
        slice(None, None, 3),
    ):
        assert torch.equal(found[rows], plain[rows])
    for at in (torch.tensor([23, 0, 7, 7, 6, -1]), torch.arange(0), plain[:, 0, 0] > 100):
        assert torch.equal(found[at], plain[at])
    assert all(map(torch.equal, found.split(10), plain.split(10)))
    with pytest.raises(IndexError, match="rows from 3 to 24 of 24"):
        found[torch.tensor([3, 24])]


def test_what_is_taken_is_a_copy() -> None:
    found = grouped(torch.zeros(24, 4, dtype=torch.uint8))
    found[3:5].fill_(1)
    found[torch.tensor([3])].fill_(1)
    assert not found[:].any()


def test_inputs_are_described_without_reading_them_at_once() -> None:
    codes = torch.tensor([3, 9, -4, 8] * 6)[:, None]
    numbers = torch.linspace(0, 1, 24)[:, None]
    rows = Rows({"codes": grouped(codes), "numbers": grouped(numbers)})
    assert inputs_of(rows.tensors) == inputs_of({"codes": codes, "numbers": numbers})
    assert (inputs_of(rows.tensors)["codes"].at_least, inputs_of(rows.tensors)["codes"].below) == (-4, 10)


def test_a_row_with_a_gap_is_found_in_any_group() -> None:
    numbers = torch.ones(200, 3)
    numbers[150, 1] = math.nan
    found = _some(Rows({"numbers": grouped(numbers)}))
    assert isinstance(found, Rows) and bool(torch.isnan(found.tensors["numbers"][:]).any())


# --- the order


def test_few_rows_are_shuffled_as_a_whole() -> None:
    (found,) = order(WINDOW * IN_A_GROUP, 64, torch.Generator().manual_seed(5))
    assert torch.equal(found, torch.randperm(128, generator=torch.Generator().manual_seed(5)))


def test_many_rows_come_once_each_and_a_windows_groups_at_a_time() -> None:
    count = 20 * IN_A_GROUP + 5
    windows = [*order(count, 64, torch.Generator().manual_seed(5))]
    assert sorted(torch.cat(windows).tolist()) == list(range(count))
    of = [sorted({row // IN_A_GROUP for row in window.tolist()}) for window in windows]
    assert [len(each) for each in of] == [4, 4, 4, 4, 4, 1]
    groups = [*chain.from_iterable(of)]
    assert sorted(groups) == list(range(21)) != groups
    inside = [row // IN_A_GROUP for row in windows[0].tolist()]
    assert len({*inside[:16]}) == WINDOW, "the first rows are of all groups of the window"


def test_the_order_is_the_generators() -> None:
    def drawn(seed: int) -> Tensor:
        return torch.cat([*order(700, 64, torch.Generator().manual_seed(seed))])

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_batches_go_on_over_the_ends_of_windows() -> None:
    rows = torch.arange(23)
    found = [*full(rows.split(6), 4)]
    assert torch.equal(torch.cat(found), rows[:20]) and {len(each) % 4 for each in found} == {0}
    assert [len(each) for each in full([torch.arange(8)], 4)] == [8]
    assert [*full([torch.arange(3)], 4)] == []


def test_batches_are_the_same_wherever_the_rows_lie() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (700, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (700,), generator=generator)
    recipe = Training(epochs=1, batch_size=30, augmentation={"shift": 1, "flip": True})
    seed, place = derive_seed(1, "epoch 0"), torch.device("cpu")
    both = [
        [*batches(Examples(each, labels, tuple("0123456789")), recipe, seed, place)]
        for each in (images, grouped(images, 32), grouped(images, 50))
    ]
    assert len(both[0]) == 23
    for found in both[1:]:
        for (one, one_label), (other, other_label) in zip(both[0], found, strict=True):
            assert torch.equal(one, other) and torch.equal(one_label, other_label)


@pytest.mark.slow
def test_what_forks_passes_in_a_process_of_its_own() -> None:
    words = ["-q", "-m", "alone", "-p", "no:cacheprovider", str(Path(__file__))]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert re.search(r"^4 passed", done.stdout, re.M), done.stdout[-500:]


@pytest.mark.alone
@pytest.mark.parametrize("processes", [1, 2])
def test_batches_are_the_same_with_any_number_of_processes_that_read_ahead(
    processes: int,
) -> None:
    numbers = torch.randn(700, 16, generator=torch.Generator().manual_seed(0))
    examples = Examples(Rows({"numbers": grouped(numbers), "codes": torch.arange(700)}), None, ())
    recipe, place = Training(epochs=1, batch_size=30), torch.device("cpu")
    state = torch.get_rng_state()
    expected = [*batches(examples, recipe, 7, place)]
    found = [*batches(replace(examples, loaders=processes), recipe, 7, place)]
    assert len(found) == len(expected) == 23
    for (one, _), (other, labels) in zip(expected, found, strict=True):
        assert isinstance(one, Rows) and isinstance(other, Rows) and labels is None
        assert all(torch.equal(one.tensors[name][:], other.tensors[name][:]) for name in one.tensors)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from the global generator"


@pytest.mark.parametrize("wrong", ["-1", "two", "1.5", "65", "²"])
def test_the_environment_says_how_many_processes_read_ahead(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.write(splits.draw(DIGITS, 300, seed=0), Path("data"), DIGITS)
    assert read(TRAIN).loaders == 0
    monkeypatch.setenv(LOADERS, "3")
    assert read(TRAIN).loaders == 3
    monkeypatch.setenv(LOADERS, wrong)
    with pytest.raises(DecantError, match=r"DECANT_LOADERS is .* expected a whole number from 0 to 64"):
        read(TRAIN)


@pytest.mark.alone
def test_a_loader_that_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel ends one that finds no shared memory; the others must not be waited for for ever."""
    images = grouped(torch.zeros(700, 64, dtype=torch.uint8))
    monkeypatch.setattr(RowGroups, "__getitem__", lambda self, rows: os._exit(1))
    with pytest.raises(
        DecantError, match=r"A process that reads examples ended \(.*give it more of that, or"
    ):
        next(loaded(Examples(images, None, (), loaders=1), iter([torch.arange(9)])))


# --- statistics


def test_channels_are_summed_up_without_rounding() -> None:
    images = torch.randint(
        0, 256, (500, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    images[:, 1] //= 50
    mean, deviation = channels(grouped(images, 42))
    expected = images.numpy().astype(np.float64) / 255
    assert np.allclose(mean, expected.mean((0, 2, 3)), rtol=1e-14)
    assert np.allclose(deviation, expected.std((0, 2, 3), ddof=1), rtol=1e-12)
    assert torch.equal(channels(images)[1], deviation)


def test_a_network_gets_the_same_statistics_wherever_the_images_lie() -> None:
    images = torch.randint(
        0, 256, (500, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    images[250:] //= 3
    found = []
    for each in (images, grouped(images, IN_A_GROUP)):
        module = build(Mlp(hidden=(4,)), (1, 8, 8), 10, seed=0)
        fit_statistics_(module, Examples(each, torch.zeros(500, dtype=torch.int64), tuple("0123456789")))
        normalize = module.get_submodule("normalize")
        assert isinstance(normalize, Normalize)
        found.append((normalize.mean.item(), normalize.deviation.item()))
    assert found[0] == found[1]
    plain = images.numpy().astype(np.float64) / 255
    assert found[0] == pytest.approx((plain.mean(), plain.std(ddof=1)), rel=1e-6)


def test_means_and_deviations_of_groups_leave_gaps_out() -> None:
    rows = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1e4
    rows[::3, 1] = math.nan
    rows[:, 2] = math.nan
    rows[:2900, 3] = math.nan
    assert len([*in_groups(rows)]) > 5
    expected = rows.double().numpy()
    there = [0, 1, 3]
    for found in (rows, grouped(rows, 11)):
        assert np.allclose(means(found)[there], np.nanmean(expected[:, there], 0), rtol=1e-12)
        assert np.allclose(deviations(found)[there], np.nanstd(expected[:, there], 0), rtol=1e-9)
        assert (means(found)[2], deviations(found)[2]) == (0, 1)
    assert torch.equal(means(rows), means(grouped(rows, 11)))


# --- tables


def test_digits_come_back_to_the_bit_from_groups_and_from_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = splits.draw(DIGITS, 300, seed=0)
    tables.write(drawn, Path("data"), DIGITS)
    for name, path in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        examples = read(path)
        assert isinstance(examples.images, RowGroups)
        assert (examples.images[:].numpy() == drawn[name].images).all()
        assert examples.labels.tolist() == drawn[name].labels.tolist()
        assert [len(each) for each in examples.images.groups[:-1]] == [IN_A_GROUP] * (
            len(examples) // IN_A_GROUP
        )
        metadata = pq.ParquetFile(path).metadata
        assert metadata.row_group(0).column(0).compression == "UNCOMPRESSED"
        plain = pq.read_table(path)
        assert plain["image"].to_pylist() == [image.tobytes() for image in drawn[name].images]
    groups, written = read(TRAIN), TRAIN.read_bytes()
    tables.write(drawn, Path("data"), DIGITS)
    assert TRAIN.read_bytes() == written, "the same bytes again"
    monkeypatch.setattr(row_groups, "WINDOW", 1000)
    tables.write(drawn, Path("data"), DIGITS)
    assert isinstance(whole := read(TRAIN).images, Tensor) and torch.equal(whole, groups.images[:])


def test_a_page_holds_a_whole_group_of_many_narrow_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers have pages of 20,000 rows at most, and of 1 MB, where nothing else is said."""
    monkeypatch.setattr(row_groups, "GROUP", 1 << 21)
    count = 700_000
    numbers, codes = torch.arange(count, dtype=torch.float32)[:, None] / 7, torch.arange(count)[:, None]
    rows = Rows({"numbers": numbers, "codes": codes})
    labels = torch.stack([numbers[:, 0], -numbers[:, 0]], 1)
    target = {"kind": "numbers", "names": ("a", "b"), "scale": (1.0, 1.0)}
    examples = Examples(rows, labels, (), Numbers.model_validate(target))
    tables.write_rows({"train": examples}, Path("data"), {"seed": 3})
    found = read(TRAIN)
    assert pq.ParquetFile(TRAIN).metadata.num_row_groups == -(-count * 12 // (1 << 21))
    assert isinstance(found.images, Rows) and isinstance(found.images.tensors["codes"], RowGroups)
    assert torch.equal(found.images.tensors["numbers"][:], numbers)
    assert torch.equal(found.images.tensors["codes"][:], codes) and torch.equal(found.known_labels, labels)
    again = Examples(found.images, found.labels, (), found.target)
    before = TRAIN.read_bytes()
    tables.write_rows({"train": again}, Path("data"), {"seed": 3})
    assert TRAIN.read_bytes() == before, "what is mapped is written as what is in memory"


def texts(count: int = 300) -> tuple[Examples, Tensor]:
    """Return texts of 2 to 8 of 9 tokens, whose next tokens are predicted, and the bytes of each."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 9, (count,), generator=generator)
    mask = (torch.arange(8) < lengths[:, None]).long()
    ids = torch.randint(1, 9, (count, 8), generator=generator) * mask
    form = {"dtype": "int64", "at_least": 0, "shape": [LENGTH], "example": [8]}
    inputs = {
        name: TensorInput.model_validate(form | {"below": below}) for name, below in ((IDS, 9), (MASK, 2))
    }
    rows = Rows({IDS: ids, MASK: mask}, inputs)
    return Examples(rows, next_tokens(ids, mask), (), Tokens(vocabulary=9)), 3 * lengths


def test_texts_come_back_from_groups_with_their_next_tokens() -> None:
    examples, sizes = texts()
    tables.write_rows({"train": examples}, Path("data"), {"seed": 3}, "text", sizes={"train": sizes})
    found = read(TRAIN)
    assert pq.ParquetFile(TRAIN).metadata.num_row_groups == -(-300 // (IN_A_GROUP // 2))
    assert isinstance(examples.images, Rows) and isinstance(found.images, Rows)
    for name, tensor in examples.images.tensors.items():
        mapped = found.images.tensors[name]
        assert isinstance(mapped, RowGroups) and torch.equal(mapped[:], tensor[:])
    assert found.images.inputs == examples.images.inputs and found.target == examples.target
    assert torch.equal(found.known_labels, examples.known_labels)
    assert torch.equal(found.images.lengths, examples.images.lengths)
    assert torch.equal(bytes_of(TRAIN), sizes)


@pytest.mark.alone
def test_batches_of_large_texts_hold_like_lengths_and_each_text_once() -> None:
    examples, _ = texts()
    assert isinstance(examples.images, Rows)
    tensors = {name: grouped(tensor[:]) for name, tensor in examples.images.tensors.items()}
    mapped = replace(examples, images=Rows(tensors, examples.images.inputs))
    recipe, place = Training(epochs=1, batch_size=5, accumulate=2), torch.device("cpu")
    found = [[*batches(each, recipe, 7, place)] for each in (examples, mapped, replace(mapped, loaders=1))]
    assert len(found[0]) == 30
    seen, spread = list[bytes](), list[int]()
    for one, *others in zip(*found, strict=True):
        for (images, labels), (other, told) in ((one, each) for each in others):
            assert isinstance(images, Rows) and isinstance(other, Rows)
            assert torch.equal(images.tensors[IDS][:], other.tensors[IDS][:]) and torch.equal(labels, told)
        images, labels = one
        own = images.lengths
        assert len(images) == 10 and images.tensors[IDS].shape[1] == int(own.max()) == labels.shape[1]
        spread.append(int(own.max() - own.min()))
        seen += [row[:end].numpy().tobytes() for row, end in zip(images.tensors[IDS], own, strict=True)]
    rows = zip(examples.images.tensors[IDS], examples.images.lengths, strict=True)
    assert sorted(seen) == sorted(row[:end].numpy().tobytes() for row, end in rows)
    assert sum(spread) / len(spread) < 3, "of a batch drawn from all, it would be nearly 6"


@pytest.mark.parametrize(
    ("size", "page", "sentence"),
    [
        (31, None, "its rows are not in one piece"),
        (IN_A_GROUP, 512, "row group 0 does not lie as it is mapped"),
    ],
)
def test_other_groups_and_pages_are_not_mapped(size: int, page: int | None, sentence: str) -> None:
    tables.write(splits.draw(DIGITS, 300, seed=0), Path("data"), DIGITS)
    plain = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
    table = pq.read_table(TRAIN)
    pq.write_table(table, TRAIN, row_group_size=size, data_page_size=page, write_batch_size=8, **plain)
    seal_(TRAIN)
    with pytest.raises(DecantError, match=rf"^data/train\.parquet .*{sentence}.*run `dvc repro -f prepare`$"):
        read(TRAIN)


def test_a_byte_that_changed_in_any_group_is_found() -> None:
    tables.write(splits.draw(DIGITS, 300, seed=0), Path("data"), DIGITS)
    content = bytearray(TRAIN.read_bytes())
    content[len(content) // 2] ^= 1
    TRAIN.write_bytes(content)
    with pytest.raises(DecantError, match="not the sum"):
        read(TRAIN)


# --- pictures


def photos(folder: str = "data/own/photos", count: int = 100) -> dict[bytes, int]:
    """Write pictures of two classes; return the class of each one's pixels."""
    found = {}
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        path = Path(folder, ("berry", "sky")[number % 2], f"{number:03}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        found[pixels.tobytes()] = number % 2
    return found


DATA = {
    "source": "folder", "folder": "data/own/photos", "size": [8, 8], "colours": "grey", "bad": "skip",
    "split": {"kind": "shares", "validation": 0.02, "test": 0.02},
}  # fmt: skip


def test_pictures_are_decoded_group_by_group_in_the_order_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written, seen = photos(), list[int]()
    Path("data/own/photos/sky/000.png").write_text("no picture")
    room = own_files.Files._room
    monkeypatch.setattr(own_files.Files, "_room", lambda self, rows: seen.append(rows) or room(self, rows))
    monkeypatch.setattr(row_groups, "WINDOW", 2)
    with home(Path(), params={"seed": 3, "data": DATA}):
        prepare()
        assert max(seen) == IN_A_GROUP, "no more pictures are in memory than a group has"
        found = [read(path) for path in (TRAIN, VALIDATION, TEST)]
        content, pixels = TRAIN.read_bytes(), torch.cat([each.images[:] for each in found])
        labels = torch.cat([each.known_labels for each in found]).tolist()
        assert isinstance(found[0].images, RowGroups)
        assert {
            image.numpy().tobytes(): label for image, label in zip(pixels, labels, strict=True)
        } == written
        assert "1 of 101 pictures cannot be read: they are skipped" in capsys.readouterr().out
        monkeypatch.setattr(row_groups, "WINDOW", 100)
        prepare()
        whole = torch.cat([read(path).images[:] for path in (TRAIN, VALIDATION, TEST)])
        assert torch.equal(whole, pixels) and TRAIN.read_bytes() != content


def test_sounds_in_folders_are_read_group_by_group_in_the_order_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile = pytest.importorskip("soundfile", reason="the extra `sound` is not installed")
    for number in range(100):
        path = Path("data/own/calls", ("high", "low")[number % 2], f"{number:02}.wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full(16 + number % 2, number / 128), 8000, subtype="FLOAT")
    Path("data/own/calls/low/07.wav").write_text("no sound")
    sounds = {"source": "sound", "folder": "data/own/calls", "rate": 8000, "length": 16}
    sounds |= {name: DATA[name] for name in ("bad", "split")}
    room, seen = own_files.Files._room, list[int]()
    monkeypatch.setattr(own_files.Files, "_room", lambda self, rows: seen.append(rows) or room(self, rows))
    monkeypatch.setattr(row_groups, "WINDOW", 2)
    with home(Path(), params={"seed": 3, "data": sounds}):
        prepare()
        assert max(seen) == IN_A_GROUP
        found = [read(path) for path in (TRAIN, VALIDATION, TEST)]
        told = capsys.readouterr().out
        assert "1 of 100 sounds cannot be read: they are skipped" in told
        assert "sounds longer than 16 samples, cropped: 49" in told
        whole = []
        for each in found:
            assert isinstance(each.images, Rows) and each.classes == ("high", "low")
            samples = each.images.tensors["sound"][:]
            assert bool((samples == samples[:, :, :1]).all())
            numbers = (samples[:, 0, 0] * 128).long()
            assert torch.equal(numbers % 2, each.known_labels)
            whole += numbers.tolist()
        assert isinstance(found[0].images, Rows)
        assert isinstance(found[0].images.tensors["sound"], RowGroups)
        assert sorted(whole) == [number for number in range(100) if number != 7]


def test_pictures_that_must_not_be_used_leave_the_old_tables() -> None:
    photos(count=100)
    with home(Path(), params={"seed": 3, "data": DATA}):
        prepare()
    before = TRAIN.read_bytes()
    Path("data/own/photos/sky/000.png").write_text("no picture")
    with (
        home(Path(), params={"seed": 3, "data": DATA | {"bad": "fail"}}),
        pytest.raises(DecantError, match="1 of 101"),
    ):
        prepare()
    assert TRAIN.read_bytes() == before and not [*Path("data").glob(".*partial")]


# --- training


def test_a_network_learns_the_same_from_the_file_and_from_memory() -> None:
    tables.write(splits.draw(DIGITS, 300, seed=0), Path("data"), DIGITS)
    mapped = Splits(read(TRAIN), read(VALIDATION))
    plain = Splits(*(Examples(e.images[:], e.labels, e.classes) for e in (mapped.train, mapped.validation)))
    recipe = Training(epochs=2, batch_size=50, augmentation={"shift": 1}, average=0.9)
    found = [train(Mlp(hidden=(16,)), recipe, each) for each in (mapped, plain)]
    states = [each.model.module.state_dict() for each in found]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    test = read(TEST)
    answers = [predict(found[0].model.module, each) for each in (test.images, test.images[:])]
    assert torch.equal(*answers)
