"""Small networks with every coupling of channels, as architectures that params.yaml cannot name."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from decant.checkpoints import files as checkpoints
from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.coupling import groups_of
from decant.examples import Examples
from decant.networks.architectures import Architecture, Resnet, Shape, WeightShapes, build
from decant.prune.channels.ladder import ChannelPlan
from decant.quantize.schemes import Binary, Codebook, Integer, PowerOfTwo, Quantizer, Ternary
from decant.schema import Section

SHAPE: Shape = (2, 12, 12)
CLASSES = tuple("abcd")
SCHEMES: dict[str, Quantizer] = {
    "integer": Integer(bits=3),
    "tensor": Integer(bits=8, per_channel=False),
    "affine": Integer(bits=4, symmetric=False),
    "affine tensor": Integer(bits=8, symmetric=False, per_channel=False),
    "group": Integer(bits=5, group=16),
    "affine group": Integer(bits=2, group=16, symmetric=False),
    "ternary": Ternary(),
    "ternary tensor": Ternary(per_channel=False),
    "binary": Binary(),
    "codebook": Codebook(entries=11),
    "power of two": PowerOfTwo(bits=3),
    "power of two tensor": PowerOfTwo(bits=8, per_channel=False),
}
"""One of each form that levels have."""


class Own(Section):
    """An architecture of the tests' own: its weights are those of what it builds."""

    def build(self, shape: Shape, classes: int) -> nn.Module:
        raise NotImplementedError

    def weights(self, shape: Shape, classes: int) -> WeightShapes:
        with torch.device("meta"):
            return {n: tuple(p.shape) for n, p in self.build(shape, classes).named_parameters()}


class Grouped(Own):
    """Convolutions of four and of two groups, one after the other."""

    kind: Literal["grouped"] = "grouped"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(shape[0], 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, groups=4, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 6, 3, groups=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, classes),
        )


class Depthwise(Own):
    """A depthwise convolution between two others, as in phones' networks."""

    kind: Literal["depthwise"] = "depthwise"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(shape[0], 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 10, 1),
            nn.Hardtanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(10, classes),
        )


class Flattened(Own):
    """Where zero does not stay zero: a batch norm without scale, sigmoids; and pixels behind a flattening."""

    kind: Literal["flattened"] = "flattened"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(shape[0], 6, 3),
            nn.BatchNorm2d(6, affine=False),
            nn.Sigmoid(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(6 * 25, 7),
            nn.Sigmoid(),
            nn.Linear(7, classes),
        )


class Joined(Own):
    """Two branches side by side, read as one."""

    kind: Literal["joined"] = "joined"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        return _Joined(shape[0], classes)


class _Joined(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(channels, 5, 3)
        self.right = nn.Conv2d(channels, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(9)
        self.both = nn.Conv2d(9, 6, 3)
        self.head = nn.Linear(6, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        joined = torch.cat([self.left(inputs), self.right(inputs)], 1)
        return self.head(self.both(torch.relu(self.norm(joined))).relu().mean((2, 3)))


class Looped(Own):
    """A residual addition of the picture itself, which no graph of weights shows."""

    kind: Literal["looped"] = "looped"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        return _Looped(shape[0], classes)


class _Looped(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.after = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(4, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.after(self.conv(inputs) + inputs).relu().mean((2, 3)))


Net = Resnet | Grouped | Depthwise | Flattened | Joined | Looped

NETS: dict[str, Net] = {
    "residual": Resnet(widths=(6, 8), blocks=(2, 1), pool=2),
    "grouped": Grouped(),
    "depthwise": Depthwise(),
    "flattened": Flattened(),
    "joined": Joined(),
}


class _EveryOther(nn.Module):
    """Two layers read every other channel of one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(SHAPE[0], 8, 3)
        self.even, self.odd = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images).relu()
        both = self.even(x[:, ::2]) + self.odd(x[:, 1::2])
        logits: Tensor = self.head(both.relu().mean((2, 3)))
        return logits


class EveryOther(Own):
    """Which no graph of whole channels knows."""

    kind: Literal["every-other"] = "every-other"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        return _EveryOther()


def net(architecture: Net, seed: int = 0) -> Checkpoint:
    """Return a network of drawn weights, whose batch norms do something."""
    module = build(architecture, SHAPE, len(CLASSES), seed).eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_mean"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
        elif name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.dim() == 1 and "mean" not in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5 + 0.2)
    return Checkpoint(architecture, SHAPE, CLASSES, module)  # type: ignore[arg-type]


def images(count: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, *SHAPE), generator=generator).to(torch.uint8)


@contextmanager
def known() -> Iterator[None]:
    """Make files able to name these networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "Description", _Description)
        yield


class _Description(checkpoints.Description):
    architecture: Architecture | Grouped | Depthwise | Flattened | Joined | Looped


def drawn(parent: Checkpoint, seed: int) -> ChannelPlan:
    """Return a plan that removes some channels of each group, which ones is drawn."""
    draw, gone = random.Random(seed), {}
    groups = groups_of(parent)
    for group in groups:
        which = draw.sample(range(group.count), draw.randrange(1, group.count))
        gone[group.name] = torch.tensor([index in which for index in range(group.count)])
    return ChannelPlan(parent, groups, gone)


def striped(seed: int, count: int = 96) -> Examples:
    """Three classes, told apart by where the bright stripe is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, 8, 8), generator=generator)
    for index, label in enumerate(labels.tolist()):
        images[index, 0, 1 + 2 * label] += 150
    return Examples(images.to(torch.uint8), labels, ("low", "middle", "high"))
