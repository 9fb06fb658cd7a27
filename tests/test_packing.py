"""Packed integers and masks come back exactly, at exactly the bytes that they should take."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from decant.checkpoints.packing import TAIL, Parts, decode_mask, encode_mask, pack, packed_size, unpack


def drawn(levels: int, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, levels, count).astype(np.uint8)


@given(st.data(), st.integers(2, 256), st.integers(0, 200))
def test_codes_of_any_number_of_levels_survive(data: st.DataObject, levels: int, count: int) -> None:
    codes = data.draw(arrays(np.uint8, count, elements=st.integers(0, levels - 1)))
    packed = pack(codes, levels)
    assert packed.dtype == np.uint8
    assert packed.size == packed_size(count, levels) <= -(-count * (levels - 1).bit_length() // 8)
    assert np.array_equal(unpack(packed, levels, count), codes)


@pytest.mark.parametrize("levels", range(2, 257))
def test_every_number_of_levels_survives_at_its_size(levels: int) -> None:
    for count in (1000, 1001):
        codes = np.r_[drawn(levels, count - 1), levels - 1].astype(np.uint8)
        packed = pack(codes, levels)
        assert np.array_equal(unpack(packed, levels, count), codes)
        bits = (levels - 1).bit_length()
        digits = max(d for d in range(1, 65) if levels**d <= 2**64)
        whole, rest = divmod(count, digits)
        words = 8 * whole + len((levels**rest - 1).to_bytes(8, "little").rstrip(b"\0"))
        assert packed.size == min(-(-count * bits // 8), words)


@given(st.integers(3, 200), st.integers(0, 300), st.integers(0, 99))
def test_digits_of_words_by_whole_numbers_of_any_size(levels: int, count: int, seed: int) -> None:
    # Python's own integers as the second opinion, where the numbers share words.
    codes, digits = drawn(levels, count, seed), max(d for d in range(1, 65) if levels**d <= 2**64)
    words = [codes[start : start + digits].tolist() for start in range(0, count, digits)]
    numbers = [sum(code * levels**place for place, code in enumerate(word)) for word in words]
    expected = b"".join(number.to_bytes(8, "little") for number in numbers)
    packed = pack(codes, levels)
    if packed.size < -(-count * (levels - 1).bit_length() // 8):
        assert packed.tobytes() == expected[: packed.size]
        assert not any(expected[packed.size :])


def test_bit_order_by_hand() -> None:
    # Lowest bit first: 0b001, 0b010, 0b111 -> bits 1 0 0, 0 1 0, 1 1 -> 0b11_010_001; then 1 -> 0b1.
    assert pack(np.array([1, 2, 7], np.uint8), 8).tolist() == [0b11010001, 0b1]


def test_three_levels_by_hand() -> None:
    # 2 + 0 * 3 + 1 * 9 + 2 * 27 + 1 * 81 = 146, five codes in a byte, where whole bits take two.
    assert pack(np.array([2, 0, 1, 2, 1], np.uint8), 3).tolist() == [146]


@pytest.mark.parametrize("count", [40, 1000, 100_000])
def test_three_levels_take_hardly_more_than_their_entropy(count: int) -> None:
    size, least = pack(drawn(3, count), 3).size, count * math.log2(3) / 8
    assert least <= size <= 1.01 * least + 1
    assert size == -(-count * 8 // 40)


@pytest.mark.parametrize(
    ("levels", "bits"), [(2, 1), (3, 1.6), (4, 2), (5, 64 / 27), (7, 64 / 22), (15, 4), (255, 8), (256, 8)]
)
def test_bits_per_code(levels: int, bits: float) -> None:
    # 27 digits of base 5 and 22 of base 7 fit into 64 bits; 16 of base 15 do, which is no gain.
    assert packed_size(64 * 27 * 22 * 5, levels) * 8 / (64 * 27 * 22 * 5) == pytest.approx(bits)


@pytest.mark.parametrize(("code", "levels"), [(16, 16), (3, 3), (9, 7), (255, 255)])
def test_too_large_a_code_is_refused(code: int, levels: int) -> None:
    with pytest.raises(ValueError, match=f"Code {code} is none of {levels} levels"):
        pack(np.array([1, code], np.uint8), levels)


def test_bytes_that_hold_no_level_are_refused() -> None:
    with pytest.raises(ValueError, match="Code 15 is none of 15 levels"):
        unpack(np.array([0xFF], np.uint8), 15, 2)


@pytest.mark.parametrize("levels", [-1, 0, 1, 257])
def test_impossible_numbers_of_levels_are_refused(levels: int) -> None:
    with pytest.raises(ValueError, match=f"2 to 256 levels, got {levels}"):
        pack(np.zeros(3, np.uint8), levels)
    with pytest.raises(ValueError, match=f"2 to 256 levels, got {levels}"):
        unpack(np.zeros(3, np.uint8), levels, 3)


@pytest.mark.parametrize(("levels", "size"), [(3, 2), (16, 4), (2, 1)])
def test_truncated_and_longer_codes_are_refused(levels: int, size: int) -> None:
    packed = pack(np.arange(8, dtype=np.uint8) % levels, levels)
    for wrong in (packed[:-1], np.append(packed, np.uint8(0))):
        with pytest.raises(
            ValueError, match=f"8 codes of {levels} levels take {size} bytes, found {wrong.size}"
        ):
            unpack(wrong, levels, 8)


# --- masks


@given(arrays(np.bool_, st.integers(0, 600), elements=st.booleans()))
def test_any_mask_survives(kept: np.ndarray) -> None:
    encoded, width = encode_mask(kept)
    assert np.array_equal(decode_mask(encoded, width, int(kept.sum()), kept.size), kept)


@pytest.mark.parametrize("density", [0.0, 0.001, 0.01, 0.05, 0.2, 0.5, 1.0])
def test_masks_of_every_density_survive_and_never_exceed_a_bitmap(density: float) -> None:
    kept = np.random.default_rng(0).random(50_000) < density
    encoded, width = encode_mask(kept)
    assert encoded.size <= -(-kept.size // 8)
    assert np.array_equal(decode_mask(encoded, width, int(kept.sum()), kept.size), kept)


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1])
def test_sparse_masks_come_near_their_entropy(density: float) -> None:
    kept = np.random.default_rng(1).random(200_000) < density
    p = kept.mean()
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) * kept.size / 8
    encoded, _ = encode_mask(kept)
    # A fixed width per gap cannot reach the entropy; a geometric gap at the best width stays within a half.
    assert entropy < encoded.size < 1.5 * entropy


@pytest.mark.parametrize("gap", [2, 3, 6, 7, 14, 15, 254, 255, 256, 510, 511])
def test_gaps_around_every_escape_survive(gap: int) -> None:
    kept = np.zeros(20 * (gap + 1) + 3, bool)
    kept[gap :: gap + 1] = True
    encoded, width = encode_mask(kept)
    assert np.array_equal(decode_mask(encoded, width, int(kept.sum()), kept.size), kept)


def test_a_damaged_mask_is_refused() -> None:
    kept = np.random.default_rng(2).random(1000) < 0.05
    encoded, width = encode_mask(kept)
    assert width > 0
    with pytest.raises(ValueError, match=r"The mask (holds|points)"):
        decode_mask(encoded[:-4], width, int(kept.sum()), kept.size)
    with pytest.raises(ValueError, match="points at weight"):
        decode_mask(encoded, width, int(kept.sum()), 500)


@pytest.mark.parametrize("width", [-1, 1, 9])
def test_impossible_gaps_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"2 to 8 bits, or 0 for a bitmap, got {width}"):
        decode_mask(np.zeros(9, np.uint8), width, 1, 8)


# --- the two streams of a model


def filled() -> Parts:
    parts = Parts()
    parts.add_floats(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    parts.add_packed(np.array([7, 8, 9], np.uint8))
    parts.add_floats(torch.tensor(5.0))
    return parts


def test_streams_are_read_in_the_order_in_which_they_were_written() -> None:
    tensors = filled().tensors()
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "floats": [1, 2, 3, 4, 5],
        "packed": [7, 8, 9],
    }
    parts = Parts.of(tensors)
    assert parts.floats([2, 2]).tolist() == [[1, 2], [3, 4]]
    assert parts.packed(2).tolist() == [7, 8]
    assert parts.floats([]).item() == 5
    assert parts.packed(1).tolist() == [9]
    parts.check_empty()


def test_a_stream_without_numbers_is_left_out() -> None:
    parts = Parts()
    assert parts.tensors() == {}
    parts.add_floats(torch.tensor([1.0]))
    assert list(parts.tensors()) == ["floats"]
    assert Parts.of({}).packed(0).size == 0


def test_what_is_missing_and_what_is_left_is_told() -> None:
    parts = Parts.of(filled().tensors())
    with pytest.raises(ValueError, match="6 numbers expected, 5 are left"):
        parts.floats([3, 2])
    with pytest.raises(ValueError, match="4 bytes expected, 3 are left"):
        parts.packed(4)
    with pytest.raises(ValueError, match="-1 bytes expected, 3 are left"):
        parts.packed(-1)
    parts.packed(1)
    with pytest.raises(ValueError, match="5 numbers and 2 bytes are too many"):
        parts.check_empty()


@pytest.mark.parametrize(
    "tensors", [{"more": torch.zeros(1)}, {"floats": torch.zeros(1, dtype=torch.double)}]
)
def test_other_streams_are_refused(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="expected streams of"):
        Parts.of(tensors)


@pytest.mark.parametrize("places", [[], [0], [5, 99], [299_999]])
def test_a_long_run_of_zeros_at_the_end_takes_bytes_and_comes_back(places: list[int]) -> None:
    kept = np.zeros(300_000, bool)
    kept[places] = True
    encoded, width = encode_mask(kept)
    assert (300_000 - TAIL) // 255 <= encoded.size < 300_000 // 255 + 8
    assert np.array_equal(decode_mask(encoded, width, len(places), 300_000), kept)
    short = kept[: TAIL // 2]
    encoded, width = encode_mask(short)
    assert encoded.size <= len(places)
    assert np.array_equal(decode_mask(encoded, width, int(short.sum()), short.size), short)


@pytest.mark.parametrize("width", [2, 8])
def test_few_bytes_make_no_large_mask(width: int) -> None:
    empty = np.zeros(0, np.uint8)
    assert not decode_mask(empty, width, 0, TAIL).any()
    for count in (TAIL + 1, 10**12):
        with pytest.raises(ValueError, match=f"The mask ends at weight 0 of {count}"):
            decode_mask(empty, width, 0, count)


@pytest.mark.parametrize("size", [0, 12, 14])
def test_a_bitmap_has_a_bit_for_each_weight(size: int) -> None:
    with pytest.raises(ValueError, match=f"A bitmap of 100 weights takes 13 bytes, found {size}"):
        decode_mask(np.zeros(size, np.uint8), 0, 0, 100)
