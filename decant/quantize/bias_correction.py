"""Bias correction: what rounding adds to the mean of each output is taken off the bias again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.examples import pixels
from decant.networks.layer_inputs import received
from decant.networks.structure import compressible, followers
from decant.progress import progress_bar
from decant.reconstruction.hessians import BATCH


def corrected(child: Checkpoint, reference: nn.Module, images: Tensor) -> Checkpoint:
    """Return the child with biases for which each layer's mean outputs are the reference's.

    Layer by layer, in the order in which they run: bias += mean of the reference's output less that of this
    network's, as corrected so far, for each output channel over images and positions. Weights, and all that
    they satisfy, stay.

    Helps most where a channel has few or coarse weights, as in depthwise convolutions and below 4 bits. Does
    not help after `gptq` on many inputs per channel, whose errors hardly have a mean; and it moves only the
    mean: noise around it stays.

    Args:
        child: Weights, and maybe the inputs of layers, rounded; untouched.
        reference: The float network with the same layers, its batch norms folded as the child's are, in eval
            mode.
        images: Pixels [N, C, H, W], uint8, without labels.

    Raises:
        DecantError: There are no images; a layer has no bias, so nothing to correct; batch norms are not
            folded in one of the networks; or it does not run a layer. Names the layers.

    References:
        Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section
        4.2 and, for means over images, appendix D. https://arxiv.org/abs/1906.04721
    """
    names = list(compressible(child.module))
    _check(child.module, reference, names, images)
    after = child.narrowed({})
    # The order in which they run is that of the result.
    wanted = mean_outputs(reference, names, images)
    with torch.no_grad():
        for name, mean in progress_bar(wanted.items(), "correcting biases", "layers"):
            bias = after.module.get_parameter(_bias(name))
            bias.add_(mean - mean_outputs(after.module, [name], images)[name])
    return after


def mean_outputs(module: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Return the mean [O], float64, of each output channel over images and positions, by the layer's weight.

    Args:
        module: The network, in eval mode.
        names: Weights of linear layers and convolutions; the result has them in the order in which they run.
        images: Pixels [N, C, H, W], uint8, at least one.
    """
    sums: dict[str, Tensor] = {}
    count: dict[str, int] = dict.fromkeys(names, 0)
    for batch in images.split(BATCH):
        for name, inputs in received(module, names, pixels(batch)).items():
            layer: Any = module.get_submodule(name.removesuffix(".weight"))
            with torch.no_grad():
                # Past the hooks, which have clamped and rounded these inputs already.
                outputs = layer.forward(inputs)
            channels = outputs if isinstance(layer, nn.Linear) else outputs.movedim(1, -1)
            rows = channels.flatten(0, -2).double()
            count[name] += len(rows)
            sums[name] = sums[name] + rows.sum(0) if name in sums else rows.sum(0)
    return {name: total / count[name] for name, total in sums.items()}


def _check(module: nn.Module, reference: nn.Module, names: Sequence[str], images: Tensor) -> None:
    """Refuse what has no means to compare, or nowhere to put the difference."""
    if not len(images):
        raise DecantError(
            "Biases are corrected by mean outputs over images, and there are none; ask for some"
        )
    if unfolded := followers(module) or followers(reference):
        layer = next(iter(unfolded)).removesuffix(".weight")
        raise DecantError(
            f"A batch norm follows {layer}; fold both networks first, biases are corrected in folded ones"
        )
    parameters = dict(module.named_parameters())
    if missing := [name.removesuffix(".weight") for name in names if _bias(name) not in parameters]:
        raise DecantError(f"{', '.join(missing)}: no bias to correct; leave bias correction out")


def _bias(name: str) -> str:
    return f"{name.removesuffix('.weight')}.bias"
