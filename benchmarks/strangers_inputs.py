"""What trained networks of other people are calibrated with, and what they are measured on.

crepe   calibrated with synthetic voices: harmonics of a gliding pitch below an envelope, in noise. Measured
        on the spoken sounds of Debian's alsa-utils where they are installed or DECANT_STRANGERS lists a
        folder with them, else on other synthetic voices.
face    calibrated with crops of scikit-image's astronaut (public domain), measured on its `lfw_subset`: 100
        faces and 100 others.
craft   calibrated with crops of scikit-image's page and astronaut, measured on the whole page and on a photo
        of a face without letters (page and astronaut: public domain).
voice, reader: measured on `expected/NAME.safetensors` of a folder that DECANT_STRANGERS lists: mel spectra of
        the spoken sounds, and lines of the page.
"""

from __future__ import annotations

import sys
import wave
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
import torch
from matplotlib.image import imread
from torch import Tensor
from torch.nn import functional as F

from tests.strangers.models import folders

RATE, FRAME, HOP = 16_000, 1024, 160
SOUNDS = Path("/usr/share/sounds/alsa")
MEAN, DEVIATION = (
    torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)
"""Of ImageNet's colours, which craft takes."""


def voices(count: int, seed: int) -> Tensor:
    """Return frames [N, 1024] of mean 0 and deviation 1 of synthetic voices."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=generator)

    time = torch.arange(FRAME) / RATE
    pitch = 2 ** draw(5.8, 9.3) * (1 + draw(-1.0, 1.0) * time)  # 55 to 630 Hz, gliding
    phase = 2 * torch.pi * pitch.cumsum(1) / RATE
    resonance, slope = draw(300, 1800), draw(0.5, 1.8)
    sound = torch.zeros(count, FRAME)
    for harmonic in range(1, 25):
        frequency = harmonic * pitch
        peak = 1 + 4 * torch.exp(-(((frequency - resonance) / 200) ** 2))
        heard = peak * harmonic**-slope * (frequency < RATE / 2)
        sound += heard * torch.sin(harmonic * phase + 2 * torch.pi * draw(0, 1))
    noise = torch.randn(count, FRAME, generator=generator)
    return _normalized(sound / sound.std(1, keepdim=True) + 10 ** draw(-3, 0.3) * noise)


def speech() -> Tensor | None:
    """Return frames [N, 1024] of the spoken sounds, each 10 ms; None where they are not there."""
    found = [SOUNDS, *folders(), *(each / "usr/share/sounds/alsa" for each in folders())]
    files = next((sorted(each.glob("*_*.wav")) for each in found if any(each.glob("*_*.wav"))), [])
    return torch.cat([_frames(_wave(file)) for file in files]) if files else None


def _wave(file: Path) -> Tensor:
    """Return a sound of 48 kHz and one channel [T] at 16 kHz: low-pass, and each third sample."""
    with wave.open(str(file)) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (3 * RATE, 1, 2), file
        samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16).astype(np.float32) / 2**15
    taps = torch.arange(-48, 49)
    kernel = torch.special.sinc(taps / 3) / 3 * torch.hann_window(97, periodic=False)
    return F.conv1d(torch.from_numpy(samples)[None, None], kernel[None, None], padding=48, stride=3)[0, 0]


def _frames(sound: Tensor) -> Tensor:
    frames = F.pad(sound, (FRAME // 2, FRAME // 2)).unfold(0, FRAME, HOP)
    return _normalized(frames[frames.std(1) > 1e-3])


def _normalized(frames: Tensor) -> Tensor:
    return (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True).clamp(min=1e-10)


def _skimage(name: str) -> Path:
    spec = PathFinder.find_spec("skimage", [*map(str, folders()), *sys.path])
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package scikit-image is nowhere")
    return Path(spec.submodule_search_locations[0], "data", name)


def picture(name: str) -> Tensor:
    """Return one of scikit-image's pictures in three colours, float32 in [0, 1], [3, H, W].

    Raises:
        FileNotFoundError: The package is nowhere.
    """
    values = np.array(imread(_skimage(name)), np.float32)
    return torch.from_numpy(values.reshape(*values.shape[:2], -1)).movedim(-1, 0)[:3].expand(3, -1, -1)


def crops(count: int, seed: int) -> Tensor:
    """Return crops of the astronaut [N, 3, 48, 48] in [-1, 1]: half of them around the face."""
    generator, photo = torch.Generator().manual_seed(seed), picture("astronaut.png")

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    found = []
    for at in range(count):
        size = draw(60, 200)
        top, left = draw(0, 512 - size), draw(0, 512 - size)
        if at % 2:  # the middle of the face lies at row 120 and column 225
            top, left = (max(0, middle - size // 2 + draw(-20, 20)) for middle in (120, 225))
        part = photo[None, :, top : top + size, left : left + size]
        found.append(F.interpolate(part, (48, 48), mode="bilinear", antialias=True))
    return 2 * torch.cat(found) - 1


def faces() -> tuple[Tensor, Tensor]:
    """Return crops [200, 3, 48, 48] in [-1, 1], and which are faces [200]."""
    grey = torch.from_numpy(np.load(_skimage("lfw_subset.npy"))).float()
    large = F.interpolate(grey[:, None], (48, 48), mode="bilinear")
    return 2 * large.expand(-1, 3, -1, -1).contiguous() - 1, torch.arange(200) < 100


def photos(count: int, seed: int) -> Tensor:
    """Return crops of a page and of a photo [N, 3, 96, 96], as craft takes them."""
    generator, found = torch.Generator().manual_seed(seed), []
    both = [picture(name) for name in ("astronaut.png", "page.png")]
    for at in range(count):
        whole = both[at % 2]
        top, left = (
            int(torch.randint(0, length - 96, (), generator=generator)) for length in whole.shape[1:]
        )
        found.append((whole[:, top : top + 96, left : left + 96] - MEAN) / DEVIATION)
    return torch.stack(found)


def page() -> Tensor:
    """Return a page with letters [1, 3, 160, 384], as craft takes it."""
    return ((picture("page.png")[:, :160] - MEAN) / DEVIATION)[None].contiguous()
