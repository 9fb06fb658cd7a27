"""The statistics of batch norms, estimated anew for a network whose weights changed without a training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.examples import Batch, Examples, arguments
from decant.networks.devices import A_PASS, CPU, computing_on, device_of, find, moved, place_
from decant.networks.layer_inputs import passed_through
from decant.progress import progress_bar

IMAGES = 10_000
"""The first training images, or all where there are fewer, that statistics are estimated on."""

BATCH = 250

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def with_statistics(
    checkpoint: Checkpoint, train: Examples, device: str = CPU
) -> tuple[Checkpoint, dict[str, int]]:
    """Return the model with statistics of training images, as `reestimated`, and the fact for its lineage."""
    images = train.at_most(IMAGES).images
    return reestimated(checkpoint, images, device), {"statistics_images": len(images)}


def reestimated(checkpoint: Checkpoint, images: Batch, device: str = CPU) -> Checkpoint:
    """Return the model with the statistics that its batch norms would have, had it been trained as it is.

    Each batch norm gets the mean and the variance, over all images and positions, of what it receives in
    evaluation: one after another in the order in which they run, as what one receives depends on those before
    it. Then evaluation answers as training mode would with all images in one batch. One that runs several
    times in a pass gets the means, over its calls, of both, as a training gives it. No label is read, no
    weight is changed; the given checkpoint is untouched.

    It does not help a network whose weights are those that it was trained with, nor one that is trained
    afterwards.

    Args:
        checkpoint: The model.
        images: uint8 [N, C, H, W], N >= 1; a fair sample of what the network will see.
        device: Where the network runs.

    Raises:
        DecantError: No batch norm that runs has statistics; or the device is not there, or too small.

    References:
        Li et al., EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, 2020 (there called
        adaptive batch normalization). https://arxiv.org/abs/2007.02491
    """
    model = checkpoint.narrowed({})
    norms = _norms(model.module)
    calls = passed_through(model.module, norms, arguments(images[:1]), once=False)
    if not calls:
        raise DecantError(
            "statistics: the model has no batch norms whose statistics could be estimated anew (quantize "
            "folds them into the convolutions); leave it out"
        )
    with computing_on(there := find(device), A_PASS):
        place_(model.module, there)
        for name in progress_bar(list(calls), "statistics", "batch norms"):
            _estimate_(model.module, norms[name], images, len(calls[name]))
        place_(model.module, CPU)
    return model


def moments(batches: Iterable[Tensor], about: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance [C] of batches [N, C, ...] over all but the channels, float64.

    Args:
        batches: One or more values in all.
        about: Numbers [C] near the means, from which values are counted, so that no digits are lost.
    """
    count, first, second = 0, torch.zeros_like(about), torch.zeros_like(about)
    for batch in batches:
        values = batch.double().movedim(1, 0).flatten(1) - about[:, None]
        count += values.shape[1]
        first += values.sum(1)
        second += values.square().sum(1)
    mean = first / count
    return about + mean, (second / count - mean.square()).clamp(min=0)


def _norms(module: nn.Module) -> dict[str, Norm]:
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, Norm) and layer.running_mean is not None
    }


def _estimate_(module: nn.Module, norm: Norm, images: Batch, calls: int) -> None:
    """Give one batch norm the statistics of what it receives, in place: the means over its calls."""
    assert norm.running_mean is not None and norm.running_var is not None
    each = [_moments_of(module, norm, images, call, once=calls == 1) for call in range(calls)]
    norm.running_mean.copy_(torch.stack([mean for mean, _ in each]).mean(0))
    norm.running_var.copy_(torch.stack([variance for _, variance in each]).mean(0))


def _moments_of(
    module: nn.Module, norm: Norm, images: Batch, call: int, *, once: bool
) -> tuple[Tensor, Tensor]:
    """Return mean and variance [C] of what a batch norm receives in one of its calls."""
    assert norm.running_mean is not None
    batches = (moved(arguments(batch), device_of(module)) for batch in images.split(BATCH))
    passes = (passed_through(module, {"": norm}, given, once=once) for given in batches)
    return moments((seen[""][call] for seen in passes), norm.running_mean.double())
