"""How important each channel is: by its weights, by what its readers lose, by how the logits move."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from decant.checkpoints.constraints import FREE, Constraints
from decant.compression.coupling import ChannelGroup, zeroed
from decant.costs.divergence import Distance
from decant.examples import Batch
from decant.networks.devices import (
    A_PASS,
    CPU,
    ONE_LAYER,
    computing_on,
    fed,
    find,
    moved,
    place_,
    placed,
)
from decant.networks.execution import predict
from decant.networks.structure import compressible
from decant.progress import progress_bar
from decant.reconstruction.elementwise import per_element
from decant.reconstruction.hessians import all_moments
from decant.reconstruction.in_turn import MomentsInTurn
from decant.reconstruction.obs import channel_order, naming, refit, running_order

ChannelScores = dict[str, Tensor]
"""Importance of each channel [count], float64, by group; what scores least is removed first."""

Costs = Callable[[nn.Module, Sequence[str]], Mapping[str, Tensor]]
"""(network, names of weights) -> what the squared error of each output of their layers costs [O], above 0."""


def by_weights(groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor]) -> ChannelScores:
    """Return the sum of the scores of the weights that make and read each channel."""
    return {group.name: group.pool(scores) for group in groups}


def by_drift(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    images: Batch,
    apart: Distance,
    device: str = CPU,
) -> ChannelScores:
    """Return how far the outputs move without each channel.

    Args:
        module: The network, in eval mode.
        groups: Its channels.
        images: Pixels [N, C, H, W], uint8, without labels; each channel costs one pass over them.
        apart: How outputs are compared.
        device: Where the network runs.
    """
    there, total = find(device), sum(group.count for group in groups)
    scores: ChannelScores = {}
    with (
        computing_on(there, A_PASS),
        progress_bar(None, "measuring", "channels", total=total) as progress,
    ):
        module, groups = placed(module, there), moved(list(groups), there)
        expected = predict(fed(module, there), images).double()
        for group in groups:
            drifts = []
            for channel in range(group.count):
                gone = {group.name: moved(torch.arange(group.count) == channel, there)}
                drifts.append(apart(predict(fed(zeroed(module, groups, gone), there), images), expected))
                progress.update()
            scores[group.name] = torch.tensor(drifts, dtype=torch.double)
    return scores


def by_reconstruction(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    images: Batch,
    damping: float,
    masks: Mapping[str, Tensor] | None = None,
    device: str = CPU,
    costs: Costs | None = None,
) -> ChannelScores:
    """Return what the outputs of the layers that read a channel lose when it goes and they are solved anew.

    Channels go one by one, always the one that costs least; the score is the squared error of the outputs
    when it goes, over that of having no inputs, summed over the layers that read it. With costs it is what
    the errors of the outputs cost, over nothing: layers compete in its unit.

    Args:
        module: The network, in eval mode.
        groups: Its channels.
        images: Pixels [N, C, H, W], uint8, without labels.
        damping: Share of a Hessian's mean diagonal, at least 0.
        masks: What survives of weights that are pruned already: only this is solved for.
        device: Where the network runs and layers are solved.
        costs: Of the errors of each output; where None all are equal within a layer, and layers are too.

    Raises:
        DecantError: A Hessian is singular and damping too small, or the network does not run a layer.
    """
    weights = {name: weight.detach() for name, weight in compressible(module).items()}
    readers = sorted({name for group in groups for name, _ in _reads(group, weights)})
    scores: ChannelScores = {}
    with computing_on(there := find(device), ONE_LAYER):
        work = placed(module, there)
        found = all_moments(work, readers, images)
        each = {} if costs is None else moved(dict(costs(work, readers)), CPU)
        for group in groups:
            score = torch.zeros(group.count, dtype=torch.double)
            for name, indices in _reads(group, weights):
                columns = _columns(weights[name], indices)
                mask = masks.get(name) if masks else None
                score += _losses(
                    weights[name], mask, found[name].hessian, columns, damping, name, there, each.get(name)
                )
            scores[group.name] = score
    return scores


def _losses(
    weight: Tensor,
    mask: Tensor | None,
    hessians: Tensor,
    columns: Tensor,
    damping: float,
    name: str,
    device: torch.device,
    costs: Tensor | None,
) -> Tensor:
    """Return what a weight's outputs lose with each channel [C], of the columns [C, n] of its rows.

    It is in the unit of the costs of its outputs, and a share of all where there are none.
    """
    losses, chosen = torch.zeros(len(columns), dtype=torch.double), columns.flatten()
    if costs is not None:  # an error is squared
        weight = weight.flatten(1) * costs.sqrt().to(weight.dtype)[:, None]
    kept = None if mask is None else mask.flatten(1)[:, chosen].chunk(len(hessians))
    for number, rows in enumerate(weight.flatten(1)[:, chosen].chunk(len(hessians))):
        part = hessians[number][chosen][:, chosen]
        given = moved((rows, part, None if kept is None else kept[number]), device)
        with naming(name):
            order, errors = channel_order(*given[:2], columns.shape[1], mask=given[2], damping=damping)
        losses[order] += errors if costs is not None else errors / errors[-1].clamp(min=1e-30)
    return losses


def refitted(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    gone: Mapping[str, Tensor],
    images: Batch,
    damping: float,
    held: Mapping[str, Constraints] | None = None,
    device: str = CPU,
) -> dict[str, Tensor]:
    """Return weights with which the layers that read removed channels come nearest to their old outputs.

    Layer by layer in the order in which they run: each on what the changed ones before send it.

    Args:
        module: The whole network, in eval mode; it is untouched.
        groups: Its channels.
        gone: By group, True [count] for each channel that goes.
        images: Pixels [N, C, H, W], uint8.
        damping: Share of a Hessian's mean diagonal, at least 0.
        held: What each weight has to satisfy, masks, ranges and levels: solved within, not projected onto.
        device: Where the networks run and layers are solved.

    Returns:
        By weight, on the processor, in its shape; zero where a removed channel was read.

    Raises:
        DecantError: A Hessian is singular and damping too small, or the network does not run a layer.
    """
    masks: dict[str, Tensor] = {}
    for group in groups:
        for name, indices in _reads(group, compressible(module)):
            weight = module.get_parameter(name)
            mask = masks.setdefault(name, torch.ones_like(weight, dtype=torch.bool))
            mask.index_fill_(1, indices[gone[group.name]].flatten(), False)
    solved, there, order = dict[str, Tensor](), find(device), running_order(module, masks)
    with torch.no_grad(), computing_on(there, ONE_LAYER):
        reference, work = placed(module, there), place_(copy.deepcopy(module), there)
        seen = MomentsInTurn(work, order, images, reference)
        for name in progress_bar(order, "solving", "layers"):
            old, found = reference.get_parameter(name), seen.at(name)
            satisfied = moved((held or {}).get(name, FREE).narrow(mask=masks[name]), there)
            with naming(name):
                new = refit(
                    old.detach().flatten(1),
                    per_element(satisfied, old.shape, there),
                    found.hessian,
                    found.cross,
                    damping=damping,
                )
            work.get_parameter(name).copy_(new.reshape(old.shape))
            solved[name] = moved(new.reshape(old.shape), CPU)
    return solved


def _reads(group: ChannelGroup, weights: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return the weights that read the group's channels, and the inputs [count, n] that are each one's."""
    return [(name, indices) for name, dim, indices in group.members if dim == 1 and name in weights]


def _columns(weight: Tensor, indices: Tensor) -> Tensor:
    """Return the columns of `weight.flatten(1)` that each channel owns [count, n * kernel]."""
    places = weight[0, 0].numel()
    return (indices[:, :, None] * places + torch.arange(places)).flatten(1)
