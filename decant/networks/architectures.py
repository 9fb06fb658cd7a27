"""Architectures: what params.yaml can name and how each is built. No files, no trained weights."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from decant.errors import DecantError
from decant.inputs import TensorInput, drawn
from decant.lazy import torch
from decant.networks.calls import Example
from decant.networks.packages import Timm, Transformers
from decant.networks.python import Python
from decant.networks.record import give_example_
from decant.schema import Section

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, int, int]

Takes: TypeAlias = "Shape | Mapping[str, TensorInput]"
"""One picture [C, H, W], or each of the tensors that a network is called with, by name."""

WeightShapes = dict[str, tuple[int, ...]]
"""The shapes of weights, by name."""

LARGEST = 1 << 26
"""Most weights of a network, 268 MB in float32: known from its description, before anything is built."""

WIDEST, MOST_CLASSES, LONGEST_SIDE = 1 << 16, 1 << 16, 1 << 12

Width = Annotated[int, Field(gt=0, le=WIDEST)]
Side = Annotated[int, Field(gt=0, le=LONGEST_SIDE)]
"""Channels, height or width of an image."""


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
    widths: tuple[Width, ...] = Field(min_length=1, max_length=16)
    blocks: tuple[Annotated[int, Field(ge=0, le=64)], ...] = Field(min_length=1, max_length=16)
    pool: Annotated[int, Field(gt=0, le=64)] = 1

    @model_validator(mode="after")
    def _paired(self) -> Resnet:
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"widths has {len(self.widths)} entries and blocks {len(self.blocks)}")
        if sum(self.blocks) > 256:
            raise ValueError(f"blocks are at most 256 in all, got {sum(self.blocks)}")
        return self

    def weights(self, shape: Shape, classes: int) -> WeightShapes:
        """Return the shape of each weight of a convolution or linear layer that `build` makes, in order."""
        found: WeightShapes = {"stem.0.weight": (self.widths[0], shape[0], 3, 3)}
        for index, block in enumerate(self._blocks()):
            for layer, size in _residual(*block).items():
                found[f"stages.{index}.{layer}.weight"] = size
        return found | {"head.weight": (classes, self._features(shape))}

    def fewest(self, shape: Shape, batch: int) -> int:
        """Return how many numbers of a channel a batch norm sees at least, in a batch of so many images."""
        return batch * math.prod(self._last(shape))

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network with fresh weights for images of `shape` [C, H, W]."""
        from decant.networks.layers import Normalize, ResidualBlock

        stem = torch.nn.Sequential(
            torch.nn.Conv2d(shape[0], self.widths[0], 3, stride=2, padding=1, bias=False),
            torch.nn.BatchNorm2d(self.widths[0]),
            torch.nn.ReLU(),
        )
        return torch.nn.Sequential(
            _named(
                normalize=Normalize(shape[0]),
                stem=stem,
                stages=torch.nn.Sequential(*(ResidualBlock(*block) for block in self._blocks())),
                pool=torch.nn.AdaptiveAvgPool2d(self._pooled(shape)),
                flatten=torch.nn.Flatten(),
                head=torch.nn.Linear(self._features(shape), classes),
            )
        )

    def _blocks(self) -> list[tuple[int, int, int]]:
        """Return the input channels, output channels and stride of each residual block."""
        found, channels = [], self.widths[0]
        for index, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for block in range(count):
                found.append((channels, width, 2 if index > 0 and block == 0 else 1))
                channels = width
        return found

    def _pooled(self, shape: Shape) -> tuple[int, int]:
        """Return height and width of what the last layer reads."""
        height, width = self._last(shape)
        return min(height, self.pool), min(width, self.pool)

    def _last(self, shape: Shape) -> tuple[int, int]:
        """Return height and width of what the last batch norm reads; no other one reads less."""
        height, width = (_half(side) for side in shape[1:])
        for _, _, stride in self._blocks():
            height, width = (height, width) if stride == 1 else (_half(height), _half(width))
        return height, width

    def _features(self, shape: Shape) -> int:
        """Return how many numbers the last layer reads."""
        outputs = [self.widths[0], *(outputs for _, outputs, _ in self._blocks())]
        return outputs[-1] * math.prod(self._pooled(shape))


class Mlp(Section):
    """Fully connected layers with rectified linear units between them."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Width, ...] = Field(min_length=1, max_length=64)

    def weights(self, shape: Shape, classes: int) -> WeightShapes:
        """Return the shape of each weight of a convolution or linear layer that `build` makes, in order."""
        sizes = enumerate(self._sizes(shape, classes))
        return {f"layers.{2 * index}.weight": (outputs, inputs) for index, (inputs, outputs) in sizes}

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network with fresh weights for images of `shape` [C, H, W]."""
        from decant.networks.layers import Normalize

        layers: list[nn.Module] = []
        for inputs, outputs in self._sizes(shape, classes):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        return torch.nn.Sequential(
            _named(
                normalize=Normalize(shape[0]),
                flatten=torch.nn.Flatten(),
                layers=torch.nn.Sequential(*layers[:-1]),
            )
        )

    def _sizes(self, shape: Shape, classes: int) -> Iterable[tuple[int, int]]:
        """Return how many numbers each layer reads and makes."""
        return pairwise([math.prod(shape), *self.hidden, classes])


class Lenet300100(Section):
    """The network of two hidden layers on which pruning papers report; 266,610 parameters on 28 x 28 images.

    References:
        LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998, section III.
    """

    kind: Literal["lenet-300-100"] = "lenet-300-100"

    def weights(self, shape: Shape, classes: int) -> WeightShapes:
        """Return the shape of each weight of a convolution or linear layer that `build` makes, in order."""
        return Mlp(hidden=(300, 100)).weights(shape, classes)

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network with fresh weights for images of `shape` [C, H, W]."""
        return Mlp(hidden=(300, 100)).build(shape, classes)


class Lenet5(Section):
    """Caffe's LeNet-5, the one that compression papers mean; 431,080 parameters on 28 x 28 images.

    The original of 1998 has about 60,000: compare ratios only within one of the two.
    """

    kind: Literal["lenet-5"] = "lenet-5"

    def weights(self, shape: Shape, classes: int) -> WeightShapes:
        """Return the shape of each weight of a convolution or linear layer that `build` makes, in order.

        Raises:
            DecantError: The images are too small for two 5 x 5 convolutions with pooling.
        """
        return {
            "conv1.weight": (20, shape[0], 5, 5),
            "conv2.weight": (50, 20, 5, 5),
            "fc1.weight": (500, 50 * self._places(shape)),
            "fc2.weight": (classes, 500),
        }

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network with fresh weights for images of `shape` [C, H, W].

        Raises:
            DecantError: As `weights`.
        """
        from decant.networks.layers import Normalize

        places = self._places(shape)
        return torch.nn.Sequential(
            _named(
                normalize=Normalize(shape[0]),
                conv1=torch.nn.Conv2d(shape[0], 20, 5),
                pool1=torch.nn.MaxPool2d(2),
                conv2=torch.nn.Conv2d(20, 50, 5),
                pool2=torch.nn.MaxPool2d(2),
                flatten=torch.nn.Flatten(),
                fc1=torch.nn.Linear(50 * places, 500),
                relu=torch.nn.ReLU(),
                fc2=torch.nn.Linear(500, classes),
            )
        )

    def _places(self, shape: Shape) -> int:
        """Return how many pixels the second pooling leaves.

        Raises:
            DecantError: None.
        """
        height, width = (((side - 4) // 2 - 4) // 2 for side in shape[1:])
        if min(height, width) < 1:
            raise DecantError(f"lenet-5 needs images of at least 16 x 16, these are {shape[1]} x {shape[2]}")
        return height * width


OWN = (Resnet, Mlp, Lenet300100, Lenet5)
"""Architectures of this package: all that is known of one of their networks is known of each."""

OwnArchitecture = Resnet | Mlp | Lenet300100 | Lenet5

FOREIGN = (Python, Transformers, Timm)
"""Architectures of other people: what one of their networks is like is known once it is built."""

ForeignArchitecture = Python | Transformers | Timm

Architecture = Annotated[
    Resnet | Mlp | Lenet300100 | Lenet5 | Python | Transformers | Timm, Field(discriminator="kind")
]


def build(architecture: Architecture, shape: Takes, classes: int, seed: int) -> nn.Module:
    """Return a network whose fresh weights are a function of `seed`; the global generator is untouched.

    One of other people lies on the processor, wherever torch puts tensors now: it may hold numbers that no
    file has. Weights that it computes anew in each pass are plain parameters.

    Raises:
        DecantError: As `check_size`; or the images are too small for the network; or what other people wrote
            does not build one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(architecture, FOREIGN):
            from decant.networks.parametrizations import without_parametrizations_

            with torch.device("cpu"):
                without_parametrizations_(module := architecture.build(shape, classes))
        else:
            check_size(architecture, pictures := picture(shape), classes)
            module = architecture.build(pictures, classes)
    give_example_(module, example(shape))
    return module


def example(shape: Takes) -> Example:
    """Return arguments of one row: zeros for what takes pictures, others drawn."""
    return (torch.zeros(1, *shape, device="cpu"),) if isinstance(shape, tuple) else drawn(shape)


def picture(shape: Takes) -> Shape:
    """Return the shape of a picture.

    Raises:
        DecantError: It is none.
    """
    if not isinstance(shape, tuple):
        raise DecantError(
            f"This network is one of pictures [C, H, W], and the inputs are {', '.join(shape)}; take an "
            "architecture of your own (kind: python)"
        )
    return shape


def check_size(architecture: OwnArchitecture, shape: Shape, classes: int) -> None:
    """Check, by arithmetic alone, that a network has at most `LARGEST` weights, and can be kept.

    Raises:
        DecantError: It has more, images are too large or too small for it, or classes are too many.
    """
    if max(shape) > LONGEST_SIDE or classes > MOST_CLASSES:
        raise DecantError(
            f"images of {' x '.join(map(str, shape))} and {classes:,} classes, expected sides of at most "
            f"{LONGEST_SIDE:,} and at most {MOST_CLASSES:,} classes"
        )
    found = sum(math.prod(weight) for weight in architecture.weights(shape, classes).values())
    if found > LARGEST:
        raise DecantError(
            f"this {architecture.kind} has {found:,} weights on images of {' x '.join(map(str, shape))} and "
            f"{classes:,} classes, expected at most {LARGEST:,}; take smaller widths"
        )


def _residual(inputs: int, outputs: int, stride: int) -> WeightShapes:
    """Return the shapes of a residual block's weights by layer, in order."""
    convolutions = {"conv1": (outputs, inputs, 3, 3), "conv2": (outputs, outputs, 3, 3)}
    shortcut = {} if (stride, inputs) == (1, outputs) else {"shortcut.0": (outputs, inputs, 1, 1)}
    return {**convolutions, **shortcut}


def _half(side: int) -> int:
    """Return the side of a picture after a 3 x 3 convolution of stride 2 with padding."""
    return (side + 1) // 2


def _named(**layers: nn.Module) -> OrderedDict[str, nn.Module]:
    """Return the layers in order, for nn.Sequential with names."""
    return OrderedDict(layers)
