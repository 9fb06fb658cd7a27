"""What each parameter of a network is, in the words of the field: its record and its layer say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from decant.lazy import torch
from decant.networks.calls import Kind, Record
from decant.networks.record import record_of

if TYPE_CHECKING:
    from torch import nn

NORMS: Mapping[str, tuple[str, ...]] = {
    "batch norm": ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"),
    "instance norm": ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
    "group norm": ("GroupNorm",),
    "layer norm": ("LayerNorm",),
    "RMS norm": ("RMSNorm",),
}
"""Layers of torch.nn that normalize, by what they are called."""

USUAL = ("weight", "bias", "batch norm")
"""What a ledger does not spell out."""


def roles(module: nn.Module) -> dict[str, str]:
    """Return what each parameter is, under the first of its names, such as `weight`, `bias` or `embedding`.

    A parameter of two and more dimensions that no pass reads is `never called`; one that a weight is computed
    from says whose. What remains scales or is added, and multiplies no inputs.
    """
    record = record_of(module)
    return {name: _role(module, record, name, parameter) for name, parameter in module.named_parameters()}


def _role(module: nn.Module, record: Record, name: str, parameter: nn.Parameter) -> str:
    path, _, last = name.rpartition(".")
    if (weight := record.weights.get(name)) is not None:
        return _of_weight(weight.kind)
    if name in record.computed:
        layer = record.computed[name] or "the network itself"
        return f"what {layer} multiplies by is computed from it"
    if name in record.unused:
        return "never called in a pass over the example"
    if norm := _norm(module.get_submodule(path)):
        return norm
    if "bias" in last:
        return "bias"
    return "scale or offset" if parameter.dim() < 2 else "added or read, multiplies no inputs"


def _norm(layer: nn.Module) -> str:
    found = (w for w, kinds in NORMS.items() if isinstance(layer, tuple(getattr(torch.nn, k) for k in kinds)))
    return next(found, "")


def _of_weight(kind: Kind) -> str:
    if kind is Kind.EMBEDDING:
        return "embedding"
    return "recurrent weight" if kind is Kind.RECURRENT else "weight"


def unusual(every: Mapping[str, str], name: str) -> str:
    """Return what a parameter is where that is neither a layer's weight, nor a bias, nor a batch norm's."""
    role = every.get(name, "")
    return "" if role in USUAL else role
