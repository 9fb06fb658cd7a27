"""Sounds of one's own: what is read, how it is resampled and sized, every mistake; and log-mel."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import decant
from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.networks.sound import LogMel
from tasks.pipeline.params import validate
from tasks.prepare import own_sounds
from tasks.prepare.of_files import SoundParams
from tasks.prepare.own_tables import Drawn
from tasks.prepare.params import DataParams
from tests.homes import home

soundfile = pytest.importorskip("soundfile", reason="the extra `sound` is not installed")

FOLDER = "data/own/calls"
SPLITS = ("train", "validation", "test")
TABLE = {"file": "data/own/a.csv", "path": "a"}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path) -> Iterator[None]:
    with home(tmp_path, params={"seed": 3}):
        Path("data/own").mkdir(parents=True)
        yield


def params(**more: Any) -> SoundParams:
    shares = {"kind": "shares", "validation": 0.2, "test": 0.3}
    found = {"source": "sound", "folder": FOLDER, "rate": 8000, "length": 400, "split": shares} | more
    read: SoundParams = validate(found, DataParams, "data")
    return read


def tone(hertz: float, samples: int, rate: int = 8000) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)


def write(path: str, samples: NDArray[Any], rate: int = 8000, **more: Any) -> Path:
    place = Path(FOLDER, path)
    place.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(place, samples, rate, **more)
    return place


def calls(count: int = 10) -> None:
    """Write low and high tones, each louder than the one before it."""
    for name, hertz in (("high", 2000), ("low", 500)):
        for number in range(count):
            write(f"{name}/{number:02}.wav", tone(hertz, 400) * (1 + number) / count, subtype="FLOAT")


def read(path: Path, **more: Any) -> NDArray[np.float32]:
    return own_sounds.Reader(params(**more))(path)


def sounds(examples: Examples) -> Tensor:
    assert isinstance(examples.images, Rows)
    return examples.images.tensors["sound"]


def drawn(params: SoundParams, seed: int) -> Drawn:
    """Return the splits of sounds in folders, read as a whole, and what is told of them."""
    stream, reader = own_sounds.stream(params, seed)
    parts = {name: [*each.parts(len(each))] for name, each in stream.rows.items()}
    notes = stream.check()
    return Drawn({name: part for name, (part,) in parts.items()}, [*reader.notes, *notes], {})


# --- what is read


def test_sounds_in_folders_are_read_by_class() -> None:
    calls()
    found = drawn(params(), 1)
    assert [len(found.splits[name]) for name in SPLITS] == [10, 4, 6]
    loudest = set()
    for each in found.splits.values():
        assert each.classes == ("high", "low") and sounds(each).shape[1:] == (1, 400)
        for sound, label in zip(sounds(each), each.known_labels.tolist(), strict=True):
            crossings = int((sound[0, 1:].sign() != sound[0, :-1].sign()).sum())
            assert (crossings > 150) == (label == 0)  # a tone crosses zero twice a period
            loudest.add((label, round(float(sound.max()) / 0.5, 1)))
    assert len(loudest) == 20
    assert [line.partition(" (")[0] for line in found.notes] == [
        "train: 10 sounds",
        "validation: 4 sounds",
        "test: 6 sounds",
    ]


@pytest.mark.parametrize(
    ("ending", "subtype", "apart"),
    [("wav", "PCM_16", 4e-5), ("flac", "PCM_24", 2e-7), ("ogg", "VORBIS", 0.05)],
)
def test_each_format_gives_the_samples_that_were_written(ending: str, subtype: str, apart: float) -> None:
    path = write(f"a.{ending}", tone(440, 400), subtype=subtype)
    assert np.abs(read(path)[0] - tone(440, 400)).max() < apart


def test_another_rate_goes_through_a_filter() -> None:
    below, above = (
        write(f"{hertz}.wav", tone(hertz, 44_100, 44_100), 44_100, subtype="DOUBLE") for hertz in (1000, 5000)
    )
    found = read(below, length=8000)[0]
    # By the formula of the tone, away from the ends, where the filter sees the silence before and after.
    assert np.abs(found - tone(1000, 8000))[100:-100].max() < 2e-3
    # 5 kHz is above half of the new rate: without a filter it would come back as 3 kHz, as loud as before.
    assert np.abs(read(above, length=8000)[0][100:-100]).max() < 2e-3


def test_the_filter_is_that_of_a_naive_sum() -> None:
    from scipy.signal import firwin

    samples = np.random.default_rng(0).uniform(-1, 1, 300)
    up, down = 2, 3  # 12,000 to 8,000
    taps = up * firwin(2 * 10 * down + 1, 1 / down, window=("kaiser", 5.0))
    middle = len(taps) // 2
    naive = [
        sum(
            taps[middle + at * down - up * place] * samples[place]
            for place in range(300)
            if abs(at * down - up * place) <= middle
        )
        for at in range(200)
    ]
    path = write("a.wav", samples, 12_000, subtype="DOUBLE")
    assert np.abs(read(path, length=200)[0] - naive).max() < 1e-6


def test_without_what_resamples_another_rate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.wav", tone(440, 400), 16_000)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(
        ValueError, match=r"has 16,000 samples a second, and what makes 8,000 .*`pip install scipy`"
    ):
        read(path)


def test_without_soundfile_the_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DecantError, match=r"needs the package soundfile: `pip install soundfile`"):
        drawn(params(), 1)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"length": 6}, [1, 2, 3, 4, 0, 0]),
        ({"length": 7, "pad": "both"}, [0, 1, 2, 3, 4, 0, 0]),
        ({"length": 2}, [2, 3]),
        ({"length": 3}, [1, 2, 3]),
        ({"length": 2, "crop": "start"}, [1, 2]),
        ({"length": 4, "crop": "fail", "pad": "fail"}, [1, 2, 3, 4]),
    ],
)
def test_sounds_are_cropped_and_padded(more: dict[str, Any], expected: list[int]) -> None:
    path = write("a.wav", np.array([1, 2, 3, 4]) / 8, subtype="FLOAT")
    assert (read(path, **more)[0] * 8).tolist() == expected


def test_what_was_done_to_sounds_is_counted() -> None:
    calls()
    write("low/long.wav", tone(500, 900), 8000)
    write("low/stereo.wav", np.stack([tone(500, 200), 0 * tone(500, 200)], 1), 16_000)
    notes = drawn(params(), 1).notes
    assert notes[:4] == [
        "sounds longer than 400 samples, cropped: 1",
        "sounds mixed to one channel: 1",
        "sounds resampled to 8,000 a second: 1",
        "sounds shorter than 400 samples, padded: 1",
    ]


def test_channels_are_mixed_or_kept() -> None:
    left, right = tone(440, 400), tone(880, 400)
    path = write("a.wav", np.stack([left, right], 1), subtype="FLOAT")
    assert np.allclose(read(path), (left + right)[None] / 2, atol=1e-7)
    assert np.allclose(read(path, channels=2), [left, right], atol=1e-7)
    with pytest.raises(ValueError, match="it has 2 channels, expected 3"):
        read(path, channels=3)


def test_a_table_beside_sounds_names_file_target_and_split() -> None:
    calls()
    rows = [f"high/{number:02}.wav,{number / 10},{SPLITS[min(number // 5, 2)]}" for number in range(10)]
    rows += [f"low/{number:02}.wav,{number / 10},test" for number in range(10)]
    Path("data/own/calls.csv").write_text("\n".join(["name,loud,part", *rows]))
    more = {
        "table": {"file": "data/own/calls.csv", "path": "name"},
        "target": {"kind": "numbers", "columns": ["loud"]},
        "split": {"kind": "column", "column": "part"},
    }
    found = own_sounds.draw(params(**more), 1).splits
    assert [len(found[name]) for name in SPLITS] == [5, 5, 10]
    for each in found.values():
        # The louder, the higher: sample by sample what the table says.
        peaks = sounds(each).amax((1, 2)) / 0.5
        assert torch.allclose(peaks, each.known_labels[:, 0] + 0.1, atol=0.02)


def test_sounds_beyond_full_scale_are_told() -> None:
    calls()
    write("low/loud.wav", 32_767 * tone(500, 400), subtype="FLOAT")
    assert (
        "sounds louder than full scale, as whole numbers written as fractions are: 1"
        in drawn(params(), 1).notes
    )


# --- what is refused


def broken() -> dict[str, str]:
    """Write one sound of each way to be broken; return what is said of it."""
    write("low/nan.wav", np.array([0.0, np.nan, 0.5, np.inf]), subtype="FLOAT")
    write("low/huge.wav", np.array([1e300, 0.0]), subtype="DOUBLE")
    write("low/none.wav", np.zeros(0))
    Path(FOLDER, "low", "empty.flac").write_bytes(b"")
    Path(FOLDER, "low", "text.wav").write_text("no sound at all")
    kinds = {"half.wav": {}, "half.flac": {}, "half.ogg": {}, "big.wav": {"endian": "BIG"}}
    for name, form in {**kinds, "long.wav": {"format": "RF64"}}.items():
        path = write(f"low/{name}", np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), **form)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    return {
        "nan.wav": "2 samples are NaN or infinite, the first at 1",
        "huge.wav": "it has samples beyond float32",
        "none.wav": "it has no sample",
        "empty.flac": "it is empty",
        "text.wav": "Format not recognised",
        "half.wav": "it is cut off: ",
        "big.wav": "it is cut off: ",
        "long.wav": "it is cut off: ",
        "half.flac": "flac decoder lost sync",
        "half.ogg": "it is cut off: its last page is not the end",
    }


def test_broken_sounds_are_listed_and_refused_or_skipped() -> None:
    calls()
    said = broken()
    with pytest.raises(DecantError) as error:
        drawn(params(), 1)
    lines = {line.split(": ")[0].rpartition("/")[2]: line for line in str(error.value).splitlines()[1:-1]}
    assert {*lines} == {*said} and all(said[name] in line for name, line in lines.items())
    assert str(error.value).startswith("10 of 30 sounds cannot be read:") and "`bad: skip`" in str(
        error.value
    )
    found = drawn(params(bad="skip"), 1)
    assert sum(map(len, found.splits.values())) == 20
    assert "10 of 30 sounds cannot be read: they are skipped" in found.notes
    assert all(bool(sounds(each).isfinite().all()) for each in found.splits.values())


def test_mistakes_in_a_folder_are_told() -> None:
    with pytest.raises(DecantError, match="No folder data/own/calls here; put the sounds there"):
        drawn(params(), 1)
    write("low/a.wav", tone(500, 400))
    with pytest.raises(DecantError, match="has 1 class, expected two or more folders with sounds"):
        drawn(params(), 1)
    Path(FOLDER, "high").mkdir()
    with pytest.raises(DecantError, match=r"no sounds \(.wav, .flac, .ogg\) of high; give the class some"):
        drawn(params(), 1)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"rate": 0}, "data.rate: "),
        ({"length": 0}, "data.length: "),
        ({"crop": "end"}, "data.crop: must be 'middle', 'start' or 'fail'"),
        ({"folder": "calls"}, "data.folder: must lie in data/own/"),
        ({"target": {"kind": "numbers", "columns": ["x"]}}, "target is of a table, and none is named"),
        ({"split": {"kind": "column", "column": "part"}}, "split: column is of a table, and none is named"),
        ({"table": TABLE, "balanced": True}, "they stand in target"),
        ({"table": TABLE, "split": {"kind": "folders"}}, "take shares or column"),
        ({"table": TABLE | {"numbers": ["a"]}}, "a is named twice"),
        ({"table": TABLE | {"categories": ["sound"]}}, "cannot be called sound"),
        ({"table": {"file": "a.csv", "path": "a"}}, "data.table.file: must lie in data/own/"),
    ],
)  # fmt: skip
def test_mistakes_in_params_are_told_before_anything_is_read(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DecantError, match=sentence):
        params(**more)


# --- log-mel


def naive(samples: list[float], rate: int, bands: int, window: int, hop: int) -> list[list[float]]:
    """Return log-mel [F][T] by loops in double precision, from the definition alone."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = [700 * (10 ** (mel(rate / 2) * step / (bands + 1) / 2595) - 1) for step in range(bands + 2)]
    found: list[list[float]] = [[] for _ in range(bands)]
    for start in range(0, len(samples) - window + 1, hop):
        frame = [
            samples[start + at] * math.sin(math.pi * at / window) ** 2 for at in range(window)
        ]  # Hann, written the other way
        power = []
        for bin_ in range(window // 2 + 1):
            total = sum(
                value
                * complex(
                    math.cos(2 * math.pi * bin_ * at / window), -math.sin(2 * math.pi * bin_ * at / window)
                )
                for at, value in enumerate(frame)
            )
            power.append(abs(total) ** 2)
        for band in range(bands):
            low, middle, high = edges[band : band + 3]
            total = 0.0
            for bin_, value in enumerate(power):
                hertz = bin_ * rate / window
                if low < hertz <= middle:
                    total += value * (hertz - low) / (middle - low)
                elif middle < hertz < high:
                    total += value * (high - hertz) / (high - middle)
            found[band].append(math.log(max(total, 1e-6)))
    return found


def test_log_mel_is_that_of_naive_loops() -> None:
    samples = np.random.default_rng(1).uniform(-1, 1, 150).astype(np.float32)
    samples[90:] = 0  # where the floor holds
    found = LogMel(4000, 6, 40, 30)(torch.from_numpy(samples)[None, None])
    expected = torch.tensor(naive(samples.tolist(), 4000, 6, 40, 30))
    assert found.shape == (1, 1, 6, 4)
    assert torch.allclose(found[0, 0], expected, atol=2e-5)
    assert found[0, 0, :, -1].tolist() == pytest.approx([math.log(1e-6)] * 6)


def test_a_tone_is_in_its_band_with_the_power_by_hand() -> None:
    # A cosine of amplitude 1 at a frequency of the transform: a Hann window makes W / 4 of it, and half of
    # that at both sides; only the band's own triangle weighs them.
    rate, window = 8000, 200
    sound = torch.cos(2 * math.pi * 1000 * torch.arange(window) / rate)
    found = LogMel(rate, 10, window, window)(sound.expand(2, 3, window))
    assert found.shape == (2, 3, 10, 1)
    from decant.networks.sound import mel_bands

    weights = mel_bands(rate, window, 10, 0, 4000)[:, 24:27]  # 960, 1000 and 1040 Hz
    by_hand = (weights * torch.tensor([0.25, 1, 0.25], dtype=torch.float64) * (window / 4) ** 2).sum(1)
    assert torch.allclose(found[1, 2, :, 0].double(), by_hand.clamp(min=1e-6).log(), atol=1e-3)
    assert int(found[0, 0, :, 0].argmax()) == int(by_hand.argmax())


def test_bands_are_triangles_that_meet_halfway() -> None:
    from decant.networks.sound import mel_bands

    found = mel_bands(16_000, 512, 20, 100, 7000)
    frequencies = torch.arange(257) * 16_000 / 512
    assert found.min() == 0 and found.max() <= 1
    assert found[:, (frequencies <= 100) | (frequencies >= 7000)].sum() == 0
    middles = [float(frequencies[row.argmax()]) for row in found]
    assert middles == sorted(middles)
    inside = (frequencies > middles[0] + 40) & (frequencies < middles[-1] - 40)
    assert torch.allclose(found[:, inside].sum(0), torch.ones(int(inside.sum()), dtype=torch.float64))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"high": 5000}, "Bands from 0 to 5000 Hz do not lie within 0 and half of 8000"),
        ({"bands": 200}, r"Band 1 of 200, .* has none of the transform's frequencies, which are 20 Hz apart"),
        ({"hop": 0}, "bands, window, hop and floor must be above 0"),
    ],
)
def test_bands_that_cannot_be_are_refused(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DecantError, match=sentence):
        LogMel(**{"rate": 8000, "bands": 10} | more)


def test_log_mel_stores_and_trains_nothing() -> None:
    layer = decant.LogMel(8000)
    assert isinstance(layer, nn.Module)
    assert not layer.state_dict() and not [*layer.parameters()]
    with torch.device("meta"):  # where nothing has values, its numbers are there all the same
        assert torch.equal(decant.LogMel(8000).basis, layer.basis)
