"""Bias correction: what rounding adds to the mean of each output is taken off the bias again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.examples import Batch, arguments
from decant.networks.calls import Kind
from decant.networks.devices import A_PASS, CPU, computing_on, device_of, find, moved, place_, placed
from decant.networks.layer_inputs import channel_axis, layer_of, received
from decant.networks.record import record_of
from decant.networks.structure import compressible, followers
from decant.progress import progress_bar
from decant.reconstruction.hessians import BATCH


def corrected(child: Checkpoint, reference: nn.Module, images: Batch, device: str = CPU) -> Checkpoint:
    """Return the child with biases for which each layer's mean outputs are the reference's.

    Layer by layer, in the order in which they run: bias += mean of the reference's output less that of this
    network's, as corrected so far, for each output channel over images and positions. Weights, and all that
    they satisfy, stay. A layer that runs several times has one mean over all calls. Layers without a bias,
    and weights that are no layer's, are left alone: `uncorrected` says why.

    Helps most where a channel has few or coarse weights, as in depthwise convolutions and below 4 bits. Does
    not help after `gptq` on many inputs per channel, whose errors hardly have a mean; and it moves only the
    mean: noise around it stays.

    Args:
        child: Weights, and maybe the inputs of layers, rounded; untouched.
        reference: The float network with the same layers, its batch norms folded as the child's are, in eval
            mode.
        images: Pixels [N, C, H, W], uint8, without labels.
        device: Where both networks run.

    Raises:
        DecantError: There are no images; no layer has a bias; or batch norms that can be folded are not in
            one of the networks. Names the layers. Or the device is not there, or too small.

    References:
        Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section
        4.2 and, for means over images, appendix D. https://arxiv.org/abs/1906.04721
    """
    left = uncorrected(child.module)
    names = [name for name in compressible(child.module) if name not in left]
    _check(child.module, reference, names, images)
    after = child.narrowed({})
    with torch.no_grad(), computing_on(there := find(device), A_PASS):
        # The order in which they run is that of the result.
        wanted = mean_outputs(placed(reference, there), names, images)
        place_(after.module, there)
        for name, mean in progress_bar(wanted.items(), "correcting biases", "layers"):
            bias = layer_of(after.module, name).bias
            bias.add_(mean - mean_outputs(after.module, [name], images)[name])
        place_(after.module, CPU)
    return after


def uncorrected(module: nn.Module) -> dict[str, str]:
    """Return why there is no bias to correct for a weight, by its name."""
    return {
        name: weight.why or "its layer has no bias"
        for name, weight in record_of(module).weights.items()
        if weight.kind is not Kind.EMBEDDING
        and (not weight.layer or getattr(module.get_submodule(weight.layer), "bias", None) is None)
    }


def mean_outputs(module: nn.Module, names: Sequence[str], images: Batch) -> dict[str, Tensor]:
    """Return the mean [O], float64, of each output channel over images, positions and calls, by the weight.

    Args:
        module: The network, in eval mode.
        names: Weights of linear layers and convolutions; the result has them in the order in which they run.
        images: Pixels [N, C, H, W], uint8, at least one.
    """
    sums: dict[str, Tensor] = {}
    count: dict[str, int] = dict.fromkeys(names, 0)
    for batch in images.split(BATCH):
        for name, calls in received(module, names, moved(arguments(batch), device_of(module))).items():
            for inputs in calls:
                rows = _outputs(layer_of(module, name), inputs)
                count[name] += len(rows)
                sums[name] = sums[name] + rows.sum(0) if name in sums else rows.sum(0)
    return {name: total / count[name] for name, total in sums.items()}


def _outputs(layer: Any, inputs: Tensor) -> Tensor:
    """Return what a layer makes of inputs that its hooks have clamped and rounded already, as rows [N, O]."""
    with torch.no_grad():
        return layer.forward(inputs).movedim(channel_axis(layer), -1).flatten(0, -2).double()


def _check(module: nn.Module, reference: nn.Module, names: Sequence[str], images: Batch) -> None:
    """Refuse what has no means to compare, or nowhere to put the difference."""
    if not len(images):
        raise DecantError(
            "Biases are corrected by mean outputs over images, and there are none; ask for some"
        )
    if unfolded := followers(module) or followers(reference):
        layer = record_of(module).weights[next(iter(unfolded))].layer
        raise DecantError(
            f"A batch norm follows {layer}; fold both networks first, biases are corrected in folded ones"
        )
    if not names:
        raise DecantError("No layer has a bias to correct; leave bias correction out")
