"""Which channels belong together: what has to go from every layer when one channel goes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from decant.checkpoints.activations import detach_
from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.selection import unskipped
from decant.compression.surgery import Kept, cut_
from decant.errors import DecantError
from decant.networks.calls import Example, Kind
from decant.networks.execution import as_rows, tensors_of
from decant.networks.record import example_of, record_of
from decant.networks.shapes import depthwise
from decant.networks.tracing import every_layer_called
from decant.sealed import one_line

Place = tuple[str, str, int]
"""One channel at one layer: the layer, `out` or `in`, and the index."""

Element = tuple[str, int, int]
"""One index of a tensor: its name, the dimension, and the index."""

OUTPUT: Place = ("", "out", 0)
"""What is not ours to remove: logits, and layers of kinds that are not known here."""

ROUNDS = 8
"""How often each edge between two layers is gone along for one channel, at most, on average."""

CHANCES = 2
"""How many sets of channels are drawn whose removal is tried."""

UNFIT = (RuntimeError, ValueError, IndexError, AssertionError)
"""What a network raises whose shapes no longer fit."""

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

    Neither the inputs' channels nor the outputs' are among them, nor what a skipped layer makes, nor what is
    coupled in a way that is not seen: without it the network would compute something else.

    Args:
        checkpoint: The model.
        skip: Layers that keep all their outputs.

    Raises:
        DecantError: There are none; names those that cannot be removed.
    """
    groups, unproven = proven(checkpoint, skip)
    if groups:
        return groups
    if unproven:
        raise DecantError(
            f"The channels of {', '.join(unproven)} cannot be removed: the network would compute something "
            "else, as what they are coupled with was not found; and there are no others that can. Take "
            "another structure"
        )
    if not (layers := ", ".join(_roots(checkpoint.module))):
        raise DecantError(
            "No channels can be removed: no convolution or linear layer of torch with a weight of its own "
            "makes any; take another structure"
        )
    raise DecantError(
        f"No channels can be removed: the outputs of {layers} are logits, skipped, or bound to what cannot "
        "be cut; take another structure, or skip fewer layers"
    )


def proven(checkpoint: Checkpoint, skip: Sequence[str] = ()) -> tuple[list[ChannelGroup], list[str]]:
    """Return the groups whose removal leaves what zeros in their place leave, and the names of all others."""
    groups = find_groups(checkpoint.module, skip)
    if not groups or _removable(checkpoint.module, groups):
        return groups, []
    alone = [group for group in groups if _removable(checkpoint.module, [group])]
    sound = alone if alone and _removable(checkpoint.module, alone) else []
    return sound, [group.name for group in groups if group not in sound]


def find_groups(module: nn.Module, skip: Sequence[str] = ()) -> list[ChannelGroup]:
    """Return the groups of coupled channels, untried; see `groups_of`."""
    bare = _bare(module)
    joined, roots = _Joined(), _roots(bare)
    kept = {*roots} - {name.removesuffix(".weight") for name in _unskipped(roots, skip)}
    for places in _coupled(bare, roots):
        joined.join(places)
    for name, layer in roots.items():
        if isinstance(layer, Conv):
            for places in _within(name, layer):
                joined.join(places)
    fixed = {OUTPUT, *((name, "out", i) for name in kept for i in range(_outputs(roots[name])))}
    layers = dict(bare.named_modules())
    units = [
        sorted({element for place in unit for element in _elements(layers[place[0]], place)})
        for unit in joined.sets(roots)
        if not fixed & set(unit)
    ]
    return _grouped(units, list(roots))


def _roots(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that make channels, in the order in which they run: those with weights of their own.

    A weight of several names, or one that is computed or read by a function, is none of a layer alone.
    """
    weights = record_of(module).weights.values()
    own = [
        w.layer for w in weights if w.layer and w.kind in (Kind.CONVOLUTION, Kind.LINEAR) and not w.names[1:]
    ]
    return {name: module.get_submodule(name) for name in own}


def _unskipped(roots: Mapping[str, nn.Module], skip: Sequence[str]) -> list[str]:
    """Return the weights of the layers that are not skipped; all may be."""
    weights = [f"{name}.weight" for name in roots]
    if all(any(_is_in(name, place) for place in skip) for name in roots):
        return []
    return unskipped(weights, skip)


def _is_in(layer: str, place: str) -> bool:
    return layer == place or layer.startswith(f"{place}.")


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


def _coupled(bare: nn.Module, roots: Mapping[str, nn.Module]) -> Iterator[list[Place]]:
    """Yield the places that each output channel of each layer reaches."""
    graph = _graph(bare)
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
            try:
                with _bounded(graph):
                    dependencies = list(graph.get_pruning_group(layer, prune, [index]))
            except _Endless:
                yield [OUTPUT, *((name, "out", i) for i in range(_outputs(layer)))]
                break
            except Exception:  # whatever torch-pruning runs into where it does not know an operation
                dependencies, reached = [], [OUTPUT, (name, "out", index)]
            for dependency, indices in dependencies:
                side = "out" if graph.is_out_channel_pruning_fn(dependency.handler) else "in"
                reached += _places(names, roots, dependency.target.module, side, indices)
                if side == "out" and not dependency.target.outputs:  # what comes last makes the logits
                    reached.append(OUTPUT)
            seen.update(reached)
            yield reached


def _places(
    names: Mapping[nn.Module, str],
    roots: Mapping[str, nn.Module],
    layer: Any,
    side: str,
    indices: Sequence[int],
) -> list[Place]:
    """Return where a dependency arrives: at a layer of ours, at nothing with weights, or at what is fixed."""
    if names.get(layer) in roots or isinstance(layer, Norm):
        # torch-pruning takes any convolution of one group for each output to be depthwise.
        odd = isinstance(layer, Conv) and 1 < layer.groups == layer.out_channels != layer.in_channels
        size = len(_sized(layer, side))
        odd = odd or any(index >= size for index in indices)  # of an operation that it does not know
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


class _Endless(Exception):
    """A walk through the graph does not end."""


@contextmanager
def _bounded(graph: Any) -> Iterator[None]:
    """Have torch-pruning give up where it goes round and round, as it does behind circular padding.

    It counts each edge once for each set of indices, and where padding is a join of slices they never repeat.

    Raises:
        _Endless: It has gone along `ROUNDS` times as many edges as there are.
    """
    from torch_pruning.dependency import graph as walking

    most = ROUNDS * sum(1 + len(node.dependencies) for node in graph.module2node.values())
    plain: Any = walking.Group

    class Bounded(plain):  # type: ignore[misc]
        def add_dep(self, dep: Any, idxs: Any) -> None:
            if len(self) > most:
                raise _Endless
            super().add_dep(dep, idxs)

    walking.Group = Bounded
    try:
        yield
    finally:
        walking.Group = plain


class _Halving(TorchFunctionMode):
    """Writes gated linear units out: torch-pruning knows what halves are, and not what glu is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.glu:
            return _glu(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _glu(inputs: Tensor, dim: int = -1) -> Tensor:
    one, other = inputs.chunk(2, dim)
    return one * other.sigmoid()


def _graph(bare: nn.Module) -> Any:
    """Return torch-pruning's dependency graph of a network that may be changed.

    Raises:
        DecantError: It cannot follow the network.
    """
    import torch_pruning

    example = _example(bare)
    try:
        with warnings.catch_warnings(), torch.enable_grad(), _Halving():
            warnings.simplefilter("ignore")
            return torch_pruning.DependencyGraph().build_dependency(
                bare,
                example,
                forward_fn=lambda network, given: list(tensors_of(network(*given))),
                verbose=False,
            )
    except Exception as error:  # whatever it runs into
        raise DecantError(
            f"Which channels of a {type(bare).__name__} go together cannot be found ({type(error).__name__}: "
            f"{one_line(error)}); take structure weights, blocks or n-of-m"
        ) from error


def _example(module: nn.Module) -> Example:
    """Return what the network can be called with, with numbers by chance where all are equal."""
    generator = torch.Generator().manual_seed(0)
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    dtype = next(iter(kinds), torch.float32)

    def drawn(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone()
        constant = bool((tensor == tensor.flatten()[:1]).all())
        values = torch.rand(tensor.shape, generator=generator, dtype=torch.double) if constant else tensor
        return values.to(dtype)

    example: Example = tree_map_only(Tensor, drawn, example_of(module))
    return example


def _bare(module: nn.Module) -> nn.Module:
    """Return a copy without what layers do to their inputs, of which the graph knows nothing."""
    bare = copy.deepcopy(module).eval()
    for parameter in bare.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    detach_(bare, [name for name, _ in bare.named_modules()])
    return bare


def _sized(layer: Any, side: str) -> range:
    """Return the indices that a layer has on a side."""
    if isinstance(layer, Norm):
        return range(layer.num_features)
    return range(_outputs(layer) if side == "out" else layer.weight.shape[1] * getattr(layer, "groups", 1))


def _outputs(layer: nn.Module) -> int:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.shape[0]


def _removable(module: nn.Module, groups: Sequence[ChannelGroup]) -> bool:
    """Say whether the network without some channels of each group computes what it does with zeros there.

    It does not where a coupling is not seen, such as x + f(x) at the picture.
    """
    bare = _precise(_bare(module))
    return all(_same(bare, groups, gone) for gone in _tried(groups))


def _tried(groups: Sequence[ChannelGroup]) -> Iterator[dict[str, Tensor]]:
    """Yield which channels of each group go: the last, the first, every other one, and some by chance.

    What reads every other channel, as x[:, ::2] does, is seen by chance alone: where the even ones are gone,
    what is left of it may be right.
    """
    places = {group.name: torch.arange(group.count) for group in groups}
    yield {name: where == len(where) - 1 for name, where in places.items()}
    yield {name: where == 0 for name, where in places.items()}
    yield {name: where % 2 == 0 for name, where in places.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(CHANCES):
        drawn = {name: torch.rand(len(where), generator=generator) for name, where in places.items()}
        yield {name: (each < 0.5) & (each < each.max()) for name, each in drawn.items()}


def _precise(bare: nn.Module) -> nn.Module:
    """Return the network in double precision, or as it is where it mixes types on its own."""
    double = copy.deepcopy(bare).double()
    try:
        with torch.no_grad():
            double(*_example(double))
    except RuntimeError:
        return bare
    return double


def _same(bare: nn.Module, groups: Sequence[ChannelGroup], gone: Mapping[str, Tensor]) -> bool:
    """Say whether a network without some channels computes what it does with zeros in their place."""
    example, cut = _example(bare), copy.deepcopy(bare)
    rows = len(next(each for each in tree_leaves(example) if isinstance(each, Tensor)))
    with torch.no_grad(), every_layer_called():
        expected = as_rows(zeroed(bare, groups, gone)(*example), rows)
        try:
            cut_(cut, kept_of(bare, groups, gone))
            close = (1e-6, 1e-9) if expected.dtype == torch.double else (1e-4, 1e-5)
            return torch.allclose(as_rows(cut(*example), rows), expected, *close)
        except UNFIT:
            return False
