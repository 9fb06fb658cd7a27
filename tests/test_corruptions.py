"""Corruptions of inputs against loops in double precision, and what all of them promise."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm, poisson
from torch import Tensor

from decant.evidence import draws
from decant.evidence.corruptions import Corruption, fitting
from decant.evidence.pictures import (
    OF_PICTURES,
    Blur,
    Brightness,
    Contrast,
    GaussianNoise,
    Occlusion,
    Rotation,
    Shift,
    ShotNoise,
)
from decant.evidence.tables import FeatureNoise, MissingValues, SignalNoise
from decant.examples import Rows

KINDS = [each.kind for each in OF_PICTURES]


def pictures(count: int = 3, shape: tuple[int, int, int] = (1, 7, 9), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator).to(torch.uint8)


def indices(*places: int) -> Tensor:
    return torch.tensor(places)


# --- draws


def split_mix(state: int, count: int) -> list[int]:
    """Return what SplitMix64 yields from a state on, in whole numbers of Python."""
    mask, found = (1 << 64) - 1, []
    for step in range(1, count + 1):
        found.append(mixed((state + step * 0x9E3779B97F4A7C15) & mask))
    return found


def mixed(z: int) -> int:
    mask = (1 << 64) - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_stream_is_split_mix() -> None:
    assert split_mix(1234567, 2) == [6457827717110365317, 3203168211198807973]  # published values
    ours = draws._mixed(np.array([1234567 + 0x9E3779B97F4A7C15], np.uint64))
    assert int(ours[0]) == 6457827717110365317


def test_what_an_example_draws_depends_on_its_index_and_the_purpose_alone() -> None:
    every = draws.uniforms(torch.arange(50), 6, "noise")
    assert torch.equal(draws.uniforms(indices(31, 7), 6, "noise"), every[[31, 7]])
    assert torch.equal(draws.uniforms(indices(7), 3, "noise"), every[7:8, :3])
    assert not bool((draws.uniforms(torch.arange(50), 6, "other") == every).any())
    assert len(every.unique()) == every.numel()


def test_draws_are_uniform_and_normal_along_rows_and_columns() -> None:
    every = draws.uniforms(torch.arange(200), 100, "test").numpy()
    assert 0 < every.min() < every.max() < 1
    for sample in (every.ravel(), every[0], every[:, 0], every[:, 99]):
        assert kstest(sample, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(every[:-1].ravel(), every[1:].ravel())[0, 1]) < 0.03
    drawn = draws.normals(torch.arange(200), 100, "test").numpy()
    assert np.allclose(drawn, norm.ppf(every))


# --- pictures: what all promise


@pytest.mark.parametrize("corruption", OF_PICTURES, ids=KINDS)
@pytest.mark.parametrize("shape", [(1, 7, 9), (3, 8, 5), (1, 1, 1)])
def test_exam(corruption: Corruption, shape: tuple[int, int, int]) -> None:
    given = pictures(4, shape)
    before, places = given.clone(), indices(0, 5, 11, 4000)
    for strength in (0.0, *corruption.strengths):
        found = corruption.apply(given, places, strength)
        assert found.shape == given.shape
        assert found.dtype == torch.uint8
        assert torch.equal(found, corruption.apply(given, places, strength))
        alone = corruption.apply(given[[2]], indices(11), strength)
        assert torch.equal(alone, found[[2]]), "another batch, another picture"
        assert strength or torch.equal(found, given)
    assert torch.equal(given, before)
    assert len(corruption.strengths) == 5
    assert list(corruption.strengths) == sorted({*corruption.strengths})


@pytest.mark.parametrize("corruption", OF_PICTURES, ids=KINDS)
def test_a_higher_strength_changes_more(corruption: Corruption) -> None:
    given = smooth(20)
    changes = [
        (corruption.apply(given, torch.arange(20), strength).double() - given.double()).square().mean().item()
        for strength in (0.0, *corruption.strengths)
    ]
    assert changes[0] == 0
    assert changes == sorted({*changes})


def smooth(count: int) -> Tensor:
    """Return pictures [N, 1, 28, 28] in which neighbours are alike, and the middle is bright."""
    place = torch.arange(28).double() - 13.5
    hill = torch.exp(-(place[:, None].square() + 1.7 * place.square()) / 90)
    scale = 0.5 + 0.5 * torch.arange(count).double() / count
    wave = 0.2 * torch.sin(place[:, None] / 3 + torch.arange(count)[:, None, None])
    return ((hill * scale[:, None, None] + wave).clamp(0, 1) * 255).round().to(torch.uint8)[:, None]


# --- pictures: each by a loop


def byte(value: float) -> int:
    return round(min(max(value, 0.0), 1.0) * 255)


def looped(given: Tensor, value: Callable[[int, int, int, int], float]) -> Tensor:
    """Return pictures of the values in [0, 1] that a function gives for each place."""
    found = torch.empty_like(given)
    for place in np.ndindex(*given.shape):
        found[place] = byte(value(*place))
    return found


def test_gaussian_noise_is_the_deviation_times_what_is_drawn() -> None:
    given, places = pictures(2), indices(3, 9)
    drawn = draws.normals(places, 63, "gaussian-noise").reshape(given.shape)
    expected = looped(given, lambda *at: int(given[at]) / 255 + 0.18 * float(drawn[at]))
    assert torch.equal(GaussianNoise().apply(given, places, 0.18), expected)


def test_shot_noise_is_the_quantile_of_poisson_s_distribution() -> None:
    given, places = pictures(3, (2, 16, 16)), indices(3, 9, 0)
    given[0, 0] = torch.arange(256).reshape(16, 16).to(torch.uint8)
    drawn = draws.uniforms(places, 512, "shot-noise").reshape(given.shape).numpy()
    for photons in (3, 15, 51):  # so that a photon is a whole number of bytes
        counts = poisson.ppf(drawn, given.numpy() / 255 * photons)
        expected = np.rint(np.minimum(counts / photons, 1) * 255)
        assert np.array_equal(ShotNoise().apply(given, places, 1 / photons).numpy(), expected)


def test_blur_is_the_mean_weighted_by_a_normal_distribution() -> None:
    given, strength = pictures(2, (2, 6, 8)), 0.2
    sigma = strength * 6
    reach = math.ceil(3 * sigma)
    near = range(-reach, reach + 1)

    def value(n: int, c: int, y: int, x: int) -> float:
        total = weight = 0.0
        for dy in near:
            for dx in near:
                share = math.exp(-(dy * dy + dx * dx) / (2 * sigma**2))
                source = given[n, c, min(max(y + dy, 0), 5), min(max(x + dx, 0), 7)]
                total, weight = total + share * int(source) / 255, weight + share
        return total / weight

    found = Blur().apply(given, indices(0, 1), strength).int()
    assert (found - looped(given, value).int()).abs().max() <= 1  # float32, at the edge of two bytes


def test_brightness_and_contrast_by_hand() -> None:
    given = torch.tensor([[[[0, 52], [104, 252]]]], dtype=torch.uint8)  # mean 102
    assert Brightness().apply(given, indices(0), 0.2).flatten().tolist() == [51, 103, 155, 255]
    assert Contrast().apply(given, indices(0), 0.5).flatten().tolist() == [51, 77, 103, 177]


def test_a_shift_moves_whole_pixels_and_repeats_the_edge() -> None:
    given, places, strength = pictures(6, (2, 10, 12)), torch.arange(6), 0.3
    found = Shift().apply(given, places, strength)
    for n, turn in enumerate(draws.uniforms(places, 1, "shift")[:, 0].tolist()):
        down = round(3 * math.sin(2 * math.pi * turn))
        across = round(3 * math.cos(2 * math.pi * turn))
        for c, y, x in np.ndindex(2, 10, 12):
            assert found[n, c, y, x] == given[n, c, min(max(y - down, 0), 9), min(max(x - across, 0), 11)]


def test_a_rotation_turns_pixels_around_the_middle_whatever_the_sides() -> None:
    given, places = pictures(4, (1, 8, 5)), torch.arange(4)
    found = Rotation().apply(given, places, 22.0).int()

    def value(n: int, c: int, y: int, x: int) -> float:
        sign = -1 if draws.uniforms(places, 1, "rotation")[n, 0] < 0.5 else 1
        angle = sign * math.radians(22)
        dy, dx = y - 3.5, x - 2.0
        above = min(max(math.sin(angle) * dx + math.cos(angle) * dy + 3.5, 0.0), 7.0)
        left = min(max(math.cos(angle) * dx - math.sin(angle) * dy + 2.0, 0.0), 4.0)
        top, first = min(int(above), 6), min(int(left), 3)
        v, h = above - top, left - first
        corners = given[n, c, top : top + 2, first : first + 2].double() / 255
        rows = corners[0] * (1 - v) + corners[1] * v
        return float(rows[0] * (1 - h) + rows[1] * h)

    assert (found - looped(given, value).int()).abs().max() <= 1
    both = [bool((draws.uniforms(torch.arange(40), 1, "rotation") < 0.5).any()), bool((found != given).any())]
    assert both == [True, True]


def test_a_quarter_turn_is_exact() -> None:
    given = pictures(1, (1, 6, 6))
    sign = -1 if draws.uniforms(indices(0), 1, "rotation")[0, 0] < 0.5 else 1
    turned = torch.rot90(given, sign, (2, 3))
    assert torch.equal(Rotation().apply(given, indices(0), 90.0), turned)


def test_an_occlusion_is_one_square_within_the_picture() -> None:
    given = pictures(40, (2, 20, 30))
    found = Occlusion().apply(given, torch.arange(40), 0.3)
    corners = set()
    for before, after in zip(given, found, strict=True):
        means = (before.double().mean((1, 2))).round()
        rows, columns = (before[0] != after[0]).nonzero(as_tuple=True)
        top, left = int(rows.min()), int(columns.min())
        assert rows.max() - top < 6
        assert columns.max() - left < 6
        hidden = (after.double() == means[:, None, None]).all(0)
        assert int(hidden[top : top + 6, left : left + 6].sum()) >= 25  # a corner may have had the mean
        corners.add((top, left))
    assert len(corners) > 20


# --- rows


def table() -> Rows:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(400, 3, generator=generator) * torch.tensor([1.0, 10.0, 100.0]) + 5
    numbers[::10, 1] = float("nan")
    codes = torch.randint(0, 4, (400,), generator=generator)
    return Rows({"numbers": numbers, "colour": codes, "flag": torch.ones(400, dtype=torch.bool)})


def test_the_type_of_the_inputs_decides() -> None:
    assert fitting(pictures()).corruptions == OF_PICTURES
    fit = fitting(table())
    assert [each.kind for each in fit.corruptions] == ["noise", "missing-values"]
    assert fit.why == "flag: none of the corruptions fits"
    sounds = fitting(Rows({"sound": torch.zeros(3, 1, 5000)}))
    assert [each.kind for each in sounds.corruptions] == ["signal-noise"]
    words = {"input_ids": torch.ones(3, 4).long(), "attention_mask": torch.ones(3, 4).long()}
    assert fitting(Rows(words)).corruptions == ()
    assert "tokens: another word may be another truth" in fitting(Rows(words)).why


def test_rows_are_corrupted_alike_in_any_batch() -> None:
    rows, places = table(), torch.arange(400)
    for corruption in fitting(rows).corruptions:
        every = corruption.apply(rows, places, 0.4)
        some = corruption.apply(rows[indices(7, 300)], indices(7, 300), 0.4)
        for name, tensor in some.tensors.items():
            assert torch.equal(tensor[:].nan_to_num(-1), every.tensors[name][indices(7, 300)].nan_to_num(-1))
        assert every.tensors["flag"] is rows.tensors["flag"]
        for name, tensor in corruption.apply(rows, places, 0.0).tensors.items():
            assert torch.equal(tensor[:].nan_to_num(-1), rows.tensors[name][:].nan_to_num(-1))


def test_noise_is_of_the_features_own_deviations_and_leaves_gaps() -> None:
    rows = table()
    noise = fitting(rows).corruptions[0]
    assert isinstance(noise, FeatureNoise)
    given, found = rows.tensors["numbers"][:], noise.apply(rows, torch.arange(400), 0.5).tensors["numbers"][:]
    assert torch.equal(torch.isnan(found), torch.isnan(given))
    deviations = np.nanstd(given.double().numpy(), axis=0)
    assert np.allclose(noise.deviations["numbers"], deviations)
    moved = np.nanstd((found - given).double().numpy(), axis=0)
    assert moved / deviations == pytest.approx([0.5] * 3, rel=0.15)


def test_missing_values_are_nan_where_the_network_knows_them_and_grow_by_more_of_them() -> None:
    rows, places = table(), torch.arange(400)
    missing = fitting(rows).corruptions[1]
    assert isinstance(missing, MissingValues)
    gone = torch.zeros(400, 3, dtype=torch.bool)
    for share in missing.strengths:
        found = missing.apply(rows, places, share)
        lost = torch.isnan(found.tensors["numbers"][:]) & ~torch.isnan(rows.tensors["numbers"][:])
        assert bool((lost | ~gone).all()), "a larger share has to contain the smaller one"
        assert lost[:, 0].double().mean().item() == pytest.approx(share, abs=0.06)
        codes = rows.tensors["colour"][:]
        assert set(found.tensors["colour"][:][codes != found.tensors["colour"][:]].tolist()) == {0}
        gone = lost
    whole = Rows({"numbers": torch.arange(12.0).reshape(4, 3)})
    found = fitting(whole).corruptions[1].apply(whole, torch.arange(4), 1.0)
    assert found.tensors["numbers"][:].tolist() == [[4.5, 5.5, 6.5]] * 4


def test_noise_of_a_signal_is_of_the_deviation_within_each_row() -> None:
    sound = torch.stack([torch.sin(torch.arange(5000.0)), 100 * torch.sin(torch.arange(5000.0))])[:, None]
    found = SignalNoise(("sound",)).apply(Rows({"sound": sound}), indices(0, 1), 0.1).tensors["sound"][:]
    moved = (found - sound).double().flatten(1).std(1) / sound.double().flatten(1).std(1)
    assert moved.tolist() == pytest.approx([0.1, 0.1], rel=0.03)
