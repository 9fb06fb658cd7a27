"""The source `sound`: files of sound in folders by class, or with a table beside them."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from decant.errors import DecantError
from tasks.prepare import own_files
from tasks.prepare.of_files import SoundParams
from tasks.prepare.own_files import Stream
from tasks.prepare.own_tables import Drawn

ENDINGS = (".wav", ".flac", ".ogg")
ERRORS = (OSError, ValueError, RuntimeError)  # soundfile's own error is a RuntimeError

MOST_SAMPLES = 1 << 28
"""Of one file, all channels: 2 GB while it is read."""

STREAMED = 0xFFFFFFFF
"""What a WAV file says of its size that was written before that was known."""


def stream(params: SoundParams, seed: int) -> tuple[Stream, Reader]:
    """Return the splits of sounds in folders by class, which are read when they are written; and by what.

    Raises:
        DecantError: As `own_files.stream`; or soundfile is missing.
    """
    reader = Reader(params)
    return own_files.stream(params, seed, _kind(params), reader), reader


def draw(params: SoundParams, seed: int) -> Drawn:
    """Return the splits of sounds that a table names, the first two shuffled; and what to tell of them.

    The sounds are the input `sound`, float32 [N, C, L], full scale from -1 to 1.

    Raises:
        DecantError: As `own_files.draw`; or soundfile is missing.
    """
    reader = Reader(params)
    drawn = own_files.draw(params, seed, _kind(params), reader)
    return drawn._replace(notes=[*reader.notes, *drawn.notes])


def _kind(params: SoundParams) -> own_files.Kind:
    if importlib.util.find_spec("soundfile") is None:
        raise DecantError("data.source: sound needs the package soundfile: `pip install soundfile`")
    return own_files.Kind("sound", ENDINGS, ERRORS, (params.channels, params.length), np.float32)


class Reader:
    """Reads sounds at one rate and length, in any number of threads, and counts what it had to do for that.

    Args:
        params: The rate, the length and the number of channels.
    """

    def __init__(self, params: SoundParams) -> None:
        self._params = params
        self._counts = Counter[str]()
        self._counting = Lock()

    @property
    def notes(self) -> list[str]:
        """A line for each thing that was done to some of them."""
        return [f"sounds {what}: {count:,}" for what, count in sorted(self._counts.items())]

    def __call__(self, path: Path) -> NDArray[np.float32]:
        """Return one sound [C, L], float32.

        Raises:
            RuntimeError: It is none.
            ValueError: It is cut off, empty, holds NaN or infinite samples, has other channels, is of another
                length or rate where that cannot be helped.
        """
        samples, rate = whole(path)
        if np.abs(samples).max() > 1:
            self._count("louder than full scale, as whole numbers written as fractions are")
        samples = self._resampled(self._mixed(samples), rate)
        with np.errstate(over="ignore"):
            found = self._sized(samples).astype(np.float32)
        if not np.isfinite(found).all():
            raise ValueError("it has samples beyond float32")
        return found

    def _count(self, what: str) -> None:
        with self._counting:
            self._counts[what] += 1

    def _mixed(self, samples: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return as many channels as are asked for, of samples [C, T]."""
        there, asked = len(samples), self._params.channels
        if asked == 1 and there > 1:
            self._count("mixed to one channel")
            return samples.mean(0, keepdims=True)
        if there != asked:
            raise ValueError(f"it has {there} channels, expected {asked}")
        return samples

    def _resampled(self, samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
        """Return samples [C, T] at the rate that is asked for.

        They go through a polyphase filter: a low pass at the lower of the two rates' halves, so that nothing
        above it comes back as another tone.

        References:
            Crochiere and Rabiner, Interpolation and Decimation of Digital Signals, 1981.
            https://doi.org/10.1109/PROC.1981.11969
        """
        asked = self._params.rate
        if rate == asked:
            return samples
        if importlib.util.find_spec("scipy") is None:
            raise ValueError(
                f"it has {rate:,} samples a second, and what makes {asked:,} of them is not there: "
                "`pip install scipy`"
            )
        from scipy.signal import resample_poly

        self._count(f"resampled to {asked:,} a second")
        common = math.gcd(asked, rate)
        return resample_poly(samples, asked // common, rate // common, axis=1)

    def _sized(self, samples: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return samples [C, T] at the length that is asked for."""
        params, there = self._params, samples.shape[1]
        more = params.length - there
        if (more < 0 and params.crop == "fail") or (more > 0 and params.pad == "fail"):
            raise ValueError(
                f"it has {there:,} samples at {params.rate:,} a second, expected {params.length:,}"
            )
        if more < 0:
            self._count(f"longer than {params.length:,} samples, cropped")
            start = -more // 2 if params.crop == "middle" else 0
            return samples[:, start : start + params.length]
        if more > 0:
            self._count(f"shorter than {params.length:,} samples, padded")
        before = more // 2 if params.pad == "both" else 0
        return np.pad(samples, ((0, 0), (before, more - before)))


def whole(path: Path) -> tuple[NDArray[np.float64], int]:
    """Return the samples of a file, [C, T] in full scale from -1 to 1, and how many there are in a second.

    Raises:
        RuntimeError: It is no sound that can be read.
        ValueError: It is cut off, empty or too large, or holds NaN or infinite samples.
    """
    import soundfile

    _check_end(path)
    described = soundfile.info(str(path))
    if (count := described.frames * described.channels) > MOST_SAMPLES:
        raise ValueError(f"it has {count:,} samples, at most {MOST_SAMPLES:,} can be read")
    samples, rate = soundfile.read(str(path), dtype="float64", always_2d=True)
    if len(samples) != described.frames:
        raise ValueError(f"it is cut off: {len(samples):,} of {described.frames:,} samples are there")
    if not len(samples):
        raise ValueError("it has no sample")
    if wrong := int((~np.isfinite(samples)).sum()):
        place = int(np.flatnonzero(~np.isfinite(samples).all(1))[0])
        raise ValueError(f"{wrong:,} samples are NaN or infinite, the first at {place:,}")
    return samples.T, int(rate)


def _check_end(path: Path) -> None:
    """Refuse what was cut off and can be read as a shorter sound: WAV by its size, Ogg by its last page.

    References:
        Pfeiffer, The Ogg Encapsulation Format, RFC 3533, 2003. https://www.rfc-editor.org/rfc/rfc3533
        EBU Tech 3306, RF64: An Extended File Format for Audio, 2009. https://tech.ebu.ch/docs/tech/tech3306.pdf
    """
    size = path.stat().st_size
    if not size:
        raise ValueError("it is empty")
    with path.open("rb") as file:
        head = file.read(28)
        file.seek(max(size - (1 << 17), 0))  # a page has at most 65,307 bytes
        tail = file.read()
    if (declared := _declared(head)) > size:
        raise ValueError(f"it is cut off: {size:,} of {declared:,} bytes are there")
    if head[:4] == b"OggS":
        flags = tail[(last := tail.rfind(b"OggS")) + 5 : last + 6]
        if not flags or not flags[0] & 4:
            raise ValueError("it is cut off: its last page is not the end of the stream")


def _declared(head: bytes) -> int:
    """Return how long a file says it is in its first 28 bytes; 0 where it says nothing.

    WAV says it in 32 bits, in the order that its name tells; beyond those, RF64 does in 64 of its own chunk.
    """
    kind, small = head[:4], head[4:8]
    if kind == b"RF64" and head[12:16] == b"ds64":
        return int.from_bytes(head[20:28], "little") + 8
    order: Literal["little", "big"] = "little" if kind == b"RIFF" else "big"
    declared = int.from_bytes(small, order)
    return declared + 8 if kind in (b"RIFF", b"RIFX", b"FORM") and declared != STREAMED else 0
