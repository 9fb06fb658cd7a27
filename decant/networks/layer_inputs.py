"""What the layers of a network receive in one pass, and the patches that a convolution multiplies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.errors import DecantError


def patches(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return what each output of a layer is a product with: [G, P, d], P positions of all images.

    `torch.einsum("gpd,god->gpo", patches, weight.reshape(G, O / G, d))` is then the layer's output without
    its bias.

    Args:
        layer: A linear layer or a convolution of any number of dimensions.
        inputs: What it receives: [..., d], or [N, C, ...].

    Raises:
        DecantError: It is another kind of layer.
    """
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, layer.in_features)
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise DecantError(f"A {type(layer).__name__} has no patches; only convolutions and linear layers do")
    # The module's own list, as it is also right for `padding: same` and for the modes of padding.
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    windows = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    sizes = list(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True))
    for axis, (kernel, stride, dilation) in enumerate(sizes, start=2):
        windows = windows.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    places = range(2, 2 + len(sizes))
    kernels = range(2 + len(sizes), 2 + 2 * len(sizes))
    split = windows.unflatten(1, (layer.groups, -1))
    order = (1, 0, *(axis + 1 for axis in places), 2, *(axis + 1 for axis in kernels))
    depth = split.shape[2] * math.prod(layer.kernel_size)
    return split.permute(order).reshape(layer.groups, -1, depth)


class _SeenError(Exception):
    """All watched layers have their inputs; the rest of the forward pass is not needed."""


def received(module: nn.Module, names: Iterable[str], inputs: Tensor) -> dict[str, Tensor]:
    """Return what the layers of the named weights receive in one pass, in the order in which they run.

    What a layer does to its inputs (a clamp, a grid) is done already. The pass ends at the last of them. Of
    a layer that runs more than once the first input counts.

    Raises:
        DecantError: The network does not run one of the layers.
    """
    wanted, seen = list(names), dict[str, Tensor]()

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            seen.setdefault(name, arguments[0].detach())
            if len(seen) == len(wanted):
                raise _SeenError

        return record

    handles = [_layer(module, name).register_forward_pre_hook(watch(name)) for name in wanted]
    try:
        with torch.no_grad():
            module(inputs)
    except _SeenError:
        return seen
    finally:
        for handle in handles:
            handle.remove()
    missing = ", ".join(name.removesuffix(".weight") for name in wanted if name not in seen)
    raise DecantError(f"The network does not run {missing}, so nothing is known of what it receives")


def _layer(module: nn.Module, name: str) -> Any:
    return module.get_submodule(name.removesuffix(".weight"))
