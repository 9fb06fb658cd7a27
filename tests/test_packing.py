"""Packed integers and masks come back exactly, at exactly the bytes that they should take."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tasks.packing import decode_mask, encode_mask, pack, unpack

WIDTHS = range(1, 9)


@given(st.data(), st.integers(1, 8), st.integers(0, 200))
def test_codes_survive_at_their_real_width(data: st.DataObject, bits: int, count: int) -> None:
    codes = data.draw(arrays(np.uint8, count, elements=st.integers(0, 2**bits - 1)))
    packed = pack(codes, bits)
    assert packed.size == -(-count * bits // 8)
    assert np.array_equal(unpack(packed, bits, count), codes)


def test_bit_order_by_hand() -> None:
    # Lowest bit first: 0b001, 0b010, 0b111 -> bits 1 0 0, 0 1 0, 1 1 -> 0b11_010_001; then 1 -> 0b1.
    assert pack(np.array([1, 2, 7], np.uint8), 3).tolist() == [0b11010001, 0b1]


def test_too_large_a_code_is_refused() -> None:
    with pytest.raises(ValueError, match="Code 16 does not fit into 4 bits"):
        pack(np.array([3, 16], np.uint8), 4)


@pytest.mark.parametrize("bits", [0, 9])
def test_impossible_width_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 bits"):
        pack(np.zeros(3, np.uint8), bits)


def test_truncated_codes_are_refused() -> None:
    packed = pack(np.arange(8, dtype=np.uint8), 4)
    with pytest.raises(ValueError, match="take 4 bytes, found 3"):
        unpack(packed[:-1], 4, 8)


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
