"""What a network is made of, as its record says: the weights to compress, and the batch norms behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from decant.errors import DecantError
from decant.lazy import torch
from decant.networks.calls import Kind
from decant.networks.record import record_of

if TYPE_CHECKING:
    from torch import Tensor, nn


def compressible(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights that a network multiplies by, by name, in the order in which they run.

    A tensor of several names stands under the first. Tables (embeddings) are looked up, so they are none of
    these. Biases and batch norms are under 2 % of most networks' parameters and much more sensitive.
    """
    weights = record_of(module).weights
    return {
        name: module.get_parameter(name)
        for name, weight in weights.items()
        if weight.kind is not Kind.EMBEDDING
    }


def tables(module: nn.Module) -> dict[str, Tensor]:
    """Return the embeddings that a network looks up and does not multiply by, by name, in order."""
    weights = record_of(module).weights
    return {n: module.get_parameter(n) for n, each in weights.items() if each.kind is Kind.EMBEDDING}


def unordered(module: nn.Module) -> dict[str, str]:
    """Return why a weight is no matrix of outputs and inputs, among which patterns mean something."""
    found: dict[str, str] = {}
    for name, weight in record_of(module).weights.items():
        if weight.kind is Kind.LINEAR and module.get_parameter(name).dim() > 2:
            found[name] = "it is a stack of matrices"
        elif weight.kind is Kind.TRANSPOSED:
            layer: Any = module.get_submodule(weight.layer) if weight.layer else None
            if layer is None or layer.groups > 1:
                found[name] = "a transposed convolution may have groups, each of which has other outputs"
    return found


def unobservable(module: nn.Module) -> dict[str, str]:
    """Return why it cannot be seen what a weight is multiplied with, place by place, by its name.

    Recipes that look at inputs leave these alone, or treat them as if they had not looked.
    """
    return {
        name: weight.why or f"inputs of a {weight.kind} are not looked at"
        for name, weight in record_of(module).weights.items()
        if not weight.layer or weight.kind not in (Kind.LINEAR, Kind.CONVOLUTION)
    }


def observable(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of linear layers and convolutions of torch, whose inputs can be seen, in order."""
    hidden = unobservable(module)
    return {name: weight for name, weight in compressible(module).items() if name not in hidden}


def followers(module: nn.Module) -> dict[str, tuple[str, Any]]:
    """Return the batch norm that may be folded into a layer, and its name, by the weight of the layer."""
    return {name: (norm, module.get_submodule(norm)) for name, norm in record_of(module).folds.items()}


def drop_norms_(module: nn.Module, folds: Mapping[str, str] | None = None) -> None:
    """Take out each batch norm that may be folded into a layer, and give that one a bias, in place.

    The biases are zeros: whoever folds the batch norms in sets them.

    Args:
        module: The network.
        folds: The name of each batch norm to take out, by the weight of the layer; all where None.

    Raises:
        ValueError: There is no such layer, or no batch norm of its size.
    """
    for weight, after in (record_of(module).folds if folds is None else folds).items():
        layer, norm = _pair(module, weight, after)
        if layer.bias is None:
            layer.bias = torch.nn.Parameter(layer.weight.new_zeros(norm.num_features))
        places = [(p, name) for p in module.modules() for name, each in p._modules.items() if each is norm]
        for parent, name in places:
            setattr(parent, name, torch.nn.Identity())


def _pair(module: nn.Module, weight: str, after: str) -> tuple[Any, Any]:
    """Return the layer of a weight and the batch norm of a name."""
    try:
        layer: Any = module.get_submodule(weight.rpartition(".")[0])
        norm: Any = module.get_submodule(after)
    except AttributeError as error:
        raise ValueError(f"{after} cannot be part of {weight}: {error}") from None
    kinds = torch.nn.Linear, torch.nn.modules.conv._ConvNd
    if not isinstance(norm, torch.nn.modules.batchnorm._BatchNorm) or not isinstance(layer, kinds):
        raise ValueError(f"{after} cannot be part of {weight}: they are no batch norm and no layer before it")
    if norm.num_features != getattr(layer, "out_channels", None) and norm.num_features != getattr(
        layer, "out_features", None
    ):
        raise ValueError(f"{after} has other channels than {weight}")
    return layer, norm


def filters(module: nn.Module) -> dict[str, Tensor]:
    """Return what sets the size of each layer's channels, by name, with the channels in front.

    It is the scale [C] of the batch norm that may be folded into the layer, or the weight [C, ...].
    """
    followed = followers(module)
    found: dict[str, Tensor] = {}
    for name, weight in compressible(module).items():
        after, norm = followed.get(name, ("", None))
        if norm is not None and norm.weight is not None:
            found[f"{after}.weight"] = norm.weight
        else:
            found[name] = weight.movedim(axis_of(module, name), 0)
    return found


def weight_of(module: nn.Module, layer: str) -> str:
    """Return the first name of the weight that a layer has; empty where a pass multiplies by none."""
    own = f"{layer}.weight".removeprefix(".")
    return next((name for name, each in record_of(module).weights.items() if own in each.names), "")


def axis_of(module: nn.Module, name: str) -> int:
    """Return which dimension of a weight its output channels are; 0 for what is no weight of a pass."""
    weight = record_of(module).weights.get(name)
    return 0 if weight is None else weight.axis


def normalized_by(module: nn.Module) -> dict[str, Tensor]:
    """Return the factor by which the batch norm after each layer multiplies its weight, by the weight's name.

    Its shape broadcasts over the weight's: [O, 1, ...], or of a transposed convolution [1, O, 1, ...], or
    [I, O / groups, 1, ...] where it has groups.
    """
    return {
        name: along(record_of(module).weights[name].axis, module.get_parameter(name), _factor(norm))
        for name, (_, norm) in followers(module).items()
    }


def _factor(norm: Any) -> Tensor:
    """Return what a batch norm with statistics multiplies each channel by [C]."""
    deviation: Tensor = (norm.running_var + norm.eps).sqrt()
    return 1 / deviation if norm.weight is None else norm.weight.detach() / deviation


def along(axis: int, weight: Tensor, factor: Tensor) -> Tensor:
    """Return a number for each output channel [C] so that it broadcasts over a weight."""
    ones = [1] * (weight.dim() - 2)
    if axis == 0:
        return factor.reshape(-1, 1, *ones)
    groups = len(factor) // weight.shape[1]
    by_group = factor.reshape(groups, -1).repeat_interleave(
        1 if groups == 1 else len(weight) // groups, dim=0
    )
    return by_group.reshape(*by_group.shape, *ones)


def check_called(module: nn.Module, layers: Iterable[str]) -> None:
    """Check that a pass calls each of the named layers: what is attached to others would do nothing.

    Raises:
        DecantError: Names those that it does not call.
    """
    called = {module.get_submodule(name) for name in record_of(module).called}
    if others := [name for name in layers if module.get_submodule(name) not in called]:
        raise DecantError(
            f"{', '.join(others)}: the network never calls this, so its inputs can be neither cut nor "
            "rounded; name other layers"
        )
