"""What the layers of a network receive in one pass, and the patches that a convolution multiplies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from decant.errors import DecantError
from decant.networks.record import give_example_, has_example, record_of
from decant.networks.tracing import every_layer_called

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer is called with: by position, and by name."""


def first_of(given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Return the first argument of a call, whether it came by its position or by its name."""
    return given[0] if given else next(iter(named.values()))


def with_first(first: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
    """Return the arguments of a call with another first one."""
    return ((first, *given[1:]), named) if given else ((), {**named, next(iter(named)): first})


def channel_axis(layer: nn.Module) -> int:
    """Return which dimension of a layer's inputs and outputs the channels are, counted from the end.

    The last one for linear, recurrent and unknown layers, the one before all places for convolutions.
    """
    return -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else -1


def patches(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return what each output of a layer is a product with: [G, P, d], P positions of all images.

    `torch.einsum("gpd,god->gpo", patches, weight.reshape(G, O / G, d))` is then the layer's output without
    its bias.

    Args:
        layer: A linear layer or a convolution of any number of dimensions.
        inputs: What it receives: [..., d], or [N, C, ...], or [C, ...] of one row.

    Raises:
        DecantError: It is another kind of layer.
    """
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, layer.in_features)
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise DecantError(f"A {type(layer).__name__} has no patches; only convolutions and linear layers do")
    # The module's own list, as it is also right for `padding: same` and for the modes of padding.
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    inputs = inputs if inputs.dim() == layer.weight.dim() else inputs[None]
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


def layer_of(module: nn.Module, name: str) -> Any:
    """Return the layer of torch that multiplies by a weight and does nothing else with it.

    Raises:
        DecantError: There is none; says why.
    """
    weight = record_of(module).weights.get(name)
    if weight is None:
        raise DecantError(
            f"The network does not run {name.rpartition('.')[0] or name}, so nothing is known of what it "
            "receives"
        )
    if not weight.layer:
        raise DecantError(f"Nothing can be known of what {name} is multiplied with: {weight.why}")
    return module.get_submodule(weight.layer)


def received(
    module: nn.Module, names: Iterable[str], inputs: tuple[Tensor, ...]
) -> dict[str, tuple[Tensor, ...]]:
    """Return what the layers of the named weights receive in one pass, in the order in which they run.

    What a layer does to its inputs (a clamp, a grid) is done already. A layer that runs several times has
    as many inputs, in order. `inputs` is what the network is called with.

    Raises:
        DecantError: The network does not run one of the layers, or a weight has none.
    """
    if not has_example(module):
        give_example_(module, tuple(each[:1] for each in inputs))
    layers = {name: layer_of(module, name) for name in names}
    weights = record_of(module).weights
    seen = passed_through(module, layers, inputs, once=all(weights[name].calls == 1 for name in layers))
    if missing := [weights[name].layer for name in layers if name not in seen]:
        raise DecantError(
            f"The network does not run {', '.join(missing)}, so nothing is known of what it receives"
        )
    return {name: tuple(calls) for name, calls in seen.items()}


def passed_through(
    module: nn.Module, layers: Mapping[str, nn.Module], inputs: tuple[Tensor, ...], *, once: bool
) -> dict[str, list[Tensor]]:
    """Return what each layer receives in one pass, in order, by the key of the layer; none for no call.

    Args:
        module: The network, in eval mode.
        layers: Parts of it.
        inputs: What it is called with.
        once: Whether each layer runs once only, so that the pass may end at the last of them.
    """
    seen = dict[str, list[Tensor]]()

    def watch(key: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def record(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            tensor = first_of(given, named).detach()
            # A copy where the pass goes on: what comes later may change its inputs in place.
            ends = once and len(seen) == len(layers) - (key not in seen)
            seen.setdefault(key, []).append(tensor if ends else tensor.clone())
            if ends:
                raise _SeenError

        return record

    handles = [layer.register_forward_pre_hook(watch(key), with_kwargs=True) for key, layer in layers.items()]
    try:
        with torch.no_grad(), every_layer_called():
            module(*inputs)
    except _SeenError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen
