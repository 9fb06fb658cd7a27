"""Which channels belong together: what has to go from every layer when one channel goes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.surgery import Kept, cut_
from decant.errors import DecantError
from decant.networks.architectures import Shape
from decant.networks.shapes import depthwise

Place = tuple[str, str, int]
"""One channel at one layer: the layer, `out` or `in`, and the index."""

Element = tuple[str, int, int]
"""One index of a tensor: its name, the dimension, and the index."""

OUTPUT: Place = ("", "out", 0)
"""What is not ours to remove: logits, and layers of kinds that are not known here."""

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are made, normalized and read by the same layers; each can go without the others.

    Attributes:
        name: The layer that makes them, the first where several do.
        count: How many there are.
        members: By tensor and dimension, the indices [count, n] that each channel owns of it. Behind a
            flattening n is the number of pixels; where a grouped convolution keeps its groups equal, a
            channel is one of each group.
    """

    name: str
    count: int
    members: tuple[tuple[str, int, Tensor], ...]

    @property
    def layer(self) -> str:
        """The layer of the name, which other groups may share: the parts of what it makes then go apart."""
        return self.name.partition("#")[0]

    def pool(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Return the sum [count], in double precision, of the scores of all elements that a channel owns.

        Args:
            scores: By tensor, in its shape; tensors without scores count nothing. Minus infinity, for what
                is removed already, counts nothing either: only a channel of nothing else has that score.
        """
        total, alive = torch.zeros(self.count, dtype=torch.double), torch.zeros(self.count, dtype=torch.bool)
        for name, dim, indices in self.members:
            if name in scores:
                rows = scores[name].detach().double().movedim(dim, 0).flatten(1)
                finite = torch.isfinite(rows)
                total += torch.where(finite, rows, 0.0).sum(1)[indices].sum(1)
                alive |= finite.any(1)[indices].any(1)
        return torch.where(alive, total, -torch.inf)


def kept_of(module: nn.Module, groups: Sequence[ChannelGroup], removed: Mapping[str, Tensor]) -> Kept:
    """Return what is left of each tensor.

    Args:
        module: The network.
        groups: Its groups.
        removed: By group, True [count] for each channel that goes; groups without an entry keep all.
    """
    gone: dict[tuple[str, int], list[Tensor]] = {}
    for group in groups:
        if group.name in removed and bool(removed[group.name].any()):
            for name, dim, indices in group.members:
                gone.setdefault((name, dim), []).append(indices[removed[group.name]].flatten())
    tensors = module.state_dict()
    kept: dict[str, dict[int, Tensor]] = {}
    for (name, dim), parts in sorted(gone.items()):
        left = torch.ones(tensors[name].shape[dim], dtype=torch.bool)
        left[torch.cat(parts)] = False
        kept.setdefault(name, {})[dim] = left.nonzero().flatten()
    return kept


def zeroed(module: nn.Module, groups: Sequence[ChannelGroup], removed: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy with all that the channels own set to zero: the function that removing them leaves.

    Zero weights and biases alone do not do it: a batch norm adds its own bias, and without a scale it
    subtracts its mean; so both are zero too. And where zero does not stay zero, as behind a sigmoid, what
    reads the channel multiplies by zero.
    """
    masked = copy.deepcopy(module)
    tensors = masked.state_dict()
    for group in groups:
        if group.name in removed:
            for name, dim, indices in group.members:
                if not name.endswith("running_var"):
                    tensors[name].index_fill_(dim, indices[removed[group.name]].flatten(), 0.0)
    return masked


def groups_of(checkpoint: Checkpoint, skip: Sequence[str] = ()) -> list[ChannelGroup]:
    """Return the groups of channels that can be removed, in the order of the layers that make them.

    Neither the picture's channels nor the logits are among them, nor what a skipped layer makes.

    Args:
        checkpoint: The model.
        skip: Layers that keep all their outputs.

    Raises:
        DecantError: There are none; or one cannot be removed without the network computing something else.
    """
    groups = find_groups(checkpoint.module, checkpoint.shape, skip)
    if not groups:
        raise DecantError(
            "No channels can be removed: every layer's outputs are logits, skipped, or bound to what "
            "cannot be cut; take another structure, or skip fewer layers"
        )
    if not _removable(checkpoint.module, checkpoint.shape, groups):
        wrong = [g.name for g in groups if not _removable(checkpoint.module, checkpoint.shape, [g])]
        raise DecantError(
            f"The channels of {', '.join(wrong or [g.name for g in groups])} cannot be removed: the network "
            "would compute something else, as what they are coupled with was not found; put these layers "
            "into skip"
        )
    return groups


def find_groups(module: nn.Module, shape: Shape, skip: Sequence[str] = ()) -> list[ChannelGroup]:
    """Return the groups of coupled channels, untried; see `groups_of`."""
    bare = _bare(module)
    joined, roots = _Joined(), {n: m for n, m in bare.named_modules() if isinstance(m, Conv | nn.Linear)}
    for places in _coupled(bare, shape, roots):
        joined.join(places)
    for name, layer in roots.items():
        if isinstance(layer, Conv):
            for places in _within(name, layer):
                joined.join(places)
    fixed = {OUTPUT, *((name, "out", i) for name in skip for i in range(_outputs(roots[name])))}
    layers = dict(bare.named_modules())
    units = [
        sorted({element for place in unit for element in _elements(layers[place[0]], place)})
        for unit in joined.sets(roots)
        if not fixed & set(unit)
    ]
    return _grouped(units, list(roots))


def _grouped(units: list[list[Element]], order: list[str]) -> list[ChannelGroup]:
    """Put together the units that own as much of the same tensors."""
    alike: dict[tuple[tuple[str, int, int], ...], list[dict[tuple[str, int], list[int]]]] = {}
    for unit in units:
        owned: dict[tuple[str, int], list[int]] = {}
        for name, dim, index in unit:
            owned.setdefault((name, dim), []).append(index)
        alike.setdefault(tuple((*key, len(places)) for key, places in owned.items()), []).append(owned)
    groups: list[ChannelGroup] = []
    for owners in alike.values():
        made = {name.removesuffix(".weight") for name, dim in owners[0] if dim == 0}
        name = next((layer for layer in order if layer in made), "")
        if not name or len(owners) < 2:  # made by nobody here; or the only one
            continue
        same = sum(group.layer == name for group in groups)
        members = tuple((*key, torch.tensor([owned[key] for owned in owners])) for key in owners[0])
        groups.append(ChannelGroup(f"{name}#{same + 1}" if same else name, len(owners), members))
    return sorted(groups, key=lambda group: order.index(group.layer))


def _coupled(bare: nn.Module, shape: Shape, roots: Mapping[str, nn.Module]) -> Iterator[list[Place]]:
    """Yield the places that each output channel of each layer reaches."""
    graph = _graph(bare, shape)
    names = {layer: name for name, layer in bare.named_modules()}
    seen: set[Place] = set()
    for name, layer in roots.items():
        if layer not in graph.module2node:
            yield [OUTPUT, *((name, "out", i) for i in range(_outputs(layer)))]
            continue
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        for index in range(_outputs(layer)):
            if (name, "out", index) in seen:
                continue
            reached = [(name, "out", index)]
            for dependency, indices in graph.get_pruning_group(layer, prune, [index]):
                side = "out" if graph.is_out_channel_pruning_fn(dependency.handler) else "in"
                reached += _places(names, dependency.target.module, side, indices)
                if side == "out" and not dependency.target.outputs:  # what comes last makes the logits
                    reached.append(OUTPUT)
            seen.update(reached)
            yield reached


def _places(names: Mapping[nn.Module, str], layer: Any, side: str, indices: Sequence[int]) -> list[Place]:
    """Return where a dependency arrives: at a layer of ours, at nothing with weights, or at what is fixed."""
    if isinstance(layer, Conv | nn.Linear | Norm):
        # torch-pruning takes any convolution of one group for each output to be depthwise.
        odd = isinstance(layer, Conv) and 1 < layer.groups == layer.out_channels != layer.in_channels
        return [OUTPUT] if odd else [(names[layer], side, index) for index in indices]
    if type(layer).__name__ == "_OutputOp" or isinstance(layer, nn.Parameter):
        return [OUTPUT]
    return [OUTPUT] if isinstance(layer, nn.Module) and any(True for _ in layer.parameters()) else []


def _within(name: str, layer: Conv) -> Iterator[list[Place]]:
    """Yield what a convolution's groups bind together: its input and output, or one channel of each group.

    Groups stay equal, and at the same places, so that what is left is again one block of weights.
    """
    if depthwise(layer):
        yield from ([(name, "in", index), (name, "out", index)] for index in range(layer.out_channels))
    elif layer.groups > 1:
        for side, count in (("in", layer.in_channels), ("out", layer.out_channels)):
            each = count // layer.groups
            for place in range(each):
                yield [(name, side, group * each + place) for group in range(layer.groups)]


def _elements(layer: nn.Module, place: Place) -> Iterator[Element]:
    """Yield what a channel owns of a layer's tensors."""
    name, side, index = place
    if isinstance(layer, Norm) or side == "out":
        for attribute in ("weight", "bias", "running_mean", "running_var"):
            if getattr(layer, attribute, None) is not None:
                yield f"{name}.{attribute}", 0, index
    elif not depthwise(layer):
        assert isinstance(layer.weight, Tensor)
        yield f"{name}.weight", 1, index % layer.weight.shape[1]


class _Joined:
    """Disjoint sets of places, merged as couplings are found."""

    def __init__(self) -> None:
        self.above: dict[Place, Place] = {}

    def join(self, places: Sequence[Place]) -> None:
        first = self._top(places[0])
        for place in places[1:]:
            self.above[self._top(place)] = first

    def sets(self, roots: Mapping[str, nn.Module]) -> list[list[Place]]:
        """Return the sets, in the order of the output channels of the layers."""
        sets: dict[Place, list[Place]] = {}
        for place in list(self.above):
            sets.setdefault(self._top(place), []).append(place)
        tops = [self._top((n, "out", i)) for n, layer in roots.items() for i in range(_outputs(layer))]
        return [sets[top] for top in dict.fromkeys(tops)]

    def _top(self, place: Place) -> Place:
        self.above.setdefault(place, place)
        while (above := self.above[place]) != place:
            self.above[place] = self.above[above]
            place = above
        return place


def _graph(bare: nn.Module, shape: Shape) -> Any:
    """Return torch-pruning's dependency graph of a network that may be changed."""
    import torch_pruning

    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        return torch_pruning.DependencyGraph().build_dependency(bare, torch.zeros(1, *shape), verbose=False)


def _bare(module: nn.Module) -> nn.Module:
    """Return a copy without what layers do to their inputs, of which the graph knows nothing."""
    bare = copy.deepcopy(module).eval().requires_grad_(True)
    for layer in bare.modules():
        layer._forward_pre_hooks.clear()
    return bare


def _outputs(layer: nn.Module) -> int:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.shape[0]


def _removable(module: nn.Module, shape: Shape, groups: Sequence[ChannelGroup]) -> bool:
    """Say whether the network without the last channel of each group computes what it does with zeros there.

    It does not where a coupling is not seen, such as x + f(x) at the picture.
    """
    bare = _bare(module).double()
    gone = {group.name: torch.arange(group.count) == group.count - 1 for group in groups}
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, *shape, generator=generator, dtype=torch.double)
    with torch.no_grad():
        expected = zeroed(bare, groups, gone)(images)
        cut_(bare, kept_of(bare, groups, gone))
        try:
            return torch.allclose(bare(images), expected, rtol=1e-6, atol=1e-9)
        except RuntimeError:  # shapes that no longer fit
            return False
