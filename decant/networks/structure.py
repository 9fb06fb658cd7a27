"""What a network is made of: the weights to compress, and which batch norm follows which convolution."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


def compressible(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights that compression works on, by name: those of convolutions and linear layers.

    Biases and batch norms are under 2 % of such networks' parameters and much more sensitive.
    """
    return {
        f"{name}.weight": layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d | torch.nn.Linear)
    }


def followers(module: nn.Module) -> dict[str, tuple[str, nn.BatchNorm2d]]:
    """Return, by the weight of a convolution, the name of the batch norm that follows it and the batch norm.

    What follows is what is registered next, as in every architecture here.
    """
    layers = [
        (n, m)
        for n, m in module.named_modules()
        if isinstance(m, torch.nn.Conv2d | torch.nn.Linear | torch.nn.BatchNorm2d)
    ]
    return {
        f"{name}.weight": (after, norm)
        for (name, layer), (after, norm) in pairwise(layers)
        if isinstance(layer, torch.nn.Conv2d)
        and isinstance(norm, torch.nn.BatchNorm2d)
        and norm.num_features == layer.out_channels  # else it is that of several layers, joined
    }


def drop_norms_(module: nn.Module) -> None:
    """Take out each batch norm that follows a convolution, and give that one a bias, in place.

    The biases are zeros: whoever folds the batch norms in sets them.
    """
    for name, (after, _) in followers(module).items():
        layer = module.get_submodule(name.removesuffix(".weight"))
        assert isinstance(layer, torch.nn.Conv2d)
        if layer.bias is None:
            layer.bias = torch.nn.Parameter(torch.zeros(layer.out_channels))
        path, _, last = after.rpartition(".")
        setattr(module.get_submodule(path), last, torch.nn.Identity())


def filters(module: nn.Module) -> dict[str, Tensor]:
    """Return what sets the size of each layer's channels, by name: its batch norm's scale, or its weight."""
    followed = followers(module)
    return {
        (f"{followed[name][0]}.weight" if name in followed else name): (
            followed[name][1].weight if name in followed else weight
        )
        for name, weight in compressible(module).items()
    }


def normalized_by(module: nn.Module) -> dict[str, Tensor]:
    """Return the factor [O, 1, 1, 1] by which the batch norm after each convolution multiplies its weight."""
    return {
        name: (norm.weight.detach() / (norm.running_var + norm.eps).sqrt()).reshape(-1, 1, 1, 1)
        for name, (_, norm) in followers(module).items()
        if norm.running_var is not None
    }
