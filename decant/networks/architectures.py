"""Architectures: what params.yaml can name and how each is built. No files, no trained weights."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from decant.errors import DecantError
from decant.networks.layers import Normalize, ResidualBlock
from decant.schema import Section

Shape = tuple[int, int, int]


class Resnet(Section):
    """A small residual network whose stem halves the picture, so that every later layer costs a quarter.

    Stage i has `blocks[i]` residual blocks of `widths[i]` channels; the first block of each stage but the
    first halves the picture again. A stage of 0 blocks is left out; the first width is still the stem's.
    The picture is averaged down to `pool` x `pool` before the last layer: 1 forgets where a feature was,
    which helps where objects move about; 2 keeps the corner, which helps where they are centred.

    References:
        He et al., Deep Residual Learning for Image Recognition, 2015. https://arxiv.org/abs/1512.03385
    """

    kind: Literal["resnet"] = "resnet"
    widths: tuple[PositiveInt, ...] = Field(min_length=1)
    blocks: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    pool: PositiveInt = 1

    @model_validator(mode="after")
    def _paired(self) -> Resnet:
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"widths has {len(self.widths)} entries and blocks {len(self.blocks)}")
        return self

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network with fresh weights for images of `shape` [C, H, W]."""
        stem = nn.Sequential(
            nn.Conv2d(shape[0], self.widths[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(self.widths[0]),
            nn.ReLU(),
        )
        stages: list[nn.Module] = []
        channels, sides = self.widths[0], [_half(side) for side in shape[1:]]
        for index, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for block in range(count):
                stride = 2 if index > 0 and block == 0 else 1
                sides = [_half(side) for side in sides] if stride == 2 else sides
                stages.append(ResidualBlock(channels, width, stride))
                channels = width
        height, width = (min(side, self.pool) for side in sides)
        return nn.Sequential(
            _named(
                normalize=Normalize(shape[0]),
                stem=stem,
                stages=nn.Sequential(*stages),
                pool=nn.AdaptiveAvgPool2d((height, width)),
                flatten=nn.Flatten(),
                head=nn.Linear(channels * height * width, classes),
            )
        )


class Mlp(Section):
    """Fully connected layers with rectified linear units between them."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = Field(min_length=1)

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network with fresh weights for images of `shape` [C, H, W]."""
        widths = [math.prod(shape), *self.hidden, classes]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(
            _named(normalize=Normalize(shape[0]), flatten=nn.Flatten(), layers=nn.Sequential(*layers[:-1]))
        )


class Lenet300100(Section):
    """The network of two hidden layers on which pruning papers report; 266,610 parameters on 28 x 28 images.

    References:
        LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998, section III.
    """

    kind: Literal["lenet-300-100"] = "lenet-300-100"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network with fresh weights for images of `shape` [C, H, W]."""
        return Mlp(hidden=(300, 100)).build(shape, classes)


class Lenet5(Section):
    """Caffe's LeNet-5, the one that compression papers mean; 431,080 parameters on 28 x 28 images.

    The original of 1998 has about 60,000: compare ratios only within one of the two.
    """

    kind: Literal["lenet-5"] = "lenet-5"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network with fresh weights for images of `shape` [C, H, W].

        Raises:
            DecantError: The images are too small for two 5 x 5 convolutions with pooling.
        """
        height, width = (((side - 4) // 2 - 4) // 2 for side in shape[1:])
        if min(height, width) < 1:
            raise DecantError(f"lenet-5 needs images of at least 16 x 16, these are {shape[1]} x {shape[2]}")
        return nn.Sequential(
            _named(
                normalize=Normalize(shape[0]),
                conv1=nn.Conv2d(shape[0], 20, 5),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(20, 50, 5),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(50 * height * width, 500),
                relu=nn.ReLU(),
                fc2=nn.Linear(500, classes),
            )
        )


Architecture = Annotated[Resnet | Mlp | Lenet300100 | Lenet5, Field(discriminator="kind")]


def build(architecture: Architecture, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Return a network whose fresh weights are a function of `seed`; the global generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architecture.build(shape, classes)


def fit_normalization_(module: nn.Module, inputs: Tensor) -> None:
    """Set the network's mean and deviation, in place, to those of `inputs` [N, C, H, W] per channel."""
    normalize = module.get_submodule("normalize")
    if isinstance(normalize, Normalize):
        normalize.mean.copy_(inputs.mean((0, 2, 3)).reshape(-1, 1, 1))
        # A constant channel has deviation 0; dividing by it would make every logit NaN.
        normalize.deviation.copy_(inputs.std((0, 2, 3)).clamp(min=1e-6).reshape(-1, 1, 1))


def _half(side: int) -> int:
    """Return the side of a picture after a 3 x 3 convolution of stride 2 with padding."""
    return (side + 1) // 2


def _named(**layers: nn.Module) -> OrderedDict[str, nn.Module]:
    """Return the layers in order, for nn.Sequential with names."""
    return OrderedDict(layers)
