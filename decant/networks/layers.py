"""Layers of our architectures that torch does not have: normalization, additions, residual blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Subtract the mean and divide by the deviation of the training pixels, per channel.

    Part of the model, so that no user of a deployed file has to know the numbers.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs [N, C, H, W] with mean 0 and deviation 1 over the training images."""
        return (inputs - self.mean) / self.deviation


class Summand(nn.Identity):
    """A place where what goes into an addition has a name, so that it can be rounded there."""


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes.

    What is added has a name on either side: `branch` and `carried`. Each rectifier is a module that is called
    once, as tools that explain by hooks need it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.branch, self.carried = Summand(), Summand()
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return [N, outputs, H / stride, W / stride] of inputs [N, inputs, H, W]."""
        hidden = self.relu1(self.norm1(self.conv1(inputs)))
        branch = self.branch(self.norm2(self.conv2(hidden)))
        relu: Tensor = self.relu2(branch + self.carried(self.shortcut(inputs)))
        return relu


def fit_normalization_(module: nn.Module, inputs: Tensor) -> None:
    """Set the network's mean and deviation, in place, to those of `inputs` [N, C, H, W] per channel.

    A network of someone else, which knows its inputs by itself, stays as it is.
    """
    if isinstance(getattr(module, "normalize", None), Normalize):
        set_normalization_(module, inputs.mean((0, 2, 3)), inputs.std((0, 2, 3)))


def set_normalization_(module: nn.Module, mean: Tensor, deviation: Tensor) -> None:
    """Set the mean and deviation [C] of each channel that the network knows, in place, where it does."""
    normalize = getattr(module, "normalize", None)
    if isinstance(normalize, Normalize):
        normalize.mean.copy_(mean.reshape(-1, 1, 1))
        # A constant channel has deviation 0; dividing by it would make every logit NaN.
        normalize.deviation.copy_(deviation.clamp(min=1e-6).reshape(-1, 1, 1))
