"""Means and deviations of the training examples as part of a network, so that no user has to know them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decant.errors import DecantError
from decant.examples import Examples, Rows, arguments
from decant.networks.layers import fit_normalization_

TARGET = "target"


def fit_statistics_(module: nn.Module, examples: Examples) -> None:
    """Set, in place, what a fresh network knows of its training examples before it has learned anything.

    Of our own networks these are the mean and deviation of each channel. A network of other people that has
    buffers `<input>_mean` and `<input>_deviation`, of the shape of a row, gets those of that input, and in
    `target_mean` and `target_deviation` those of the numbers that it is to answer; missing values (NaN)
    are left out. What has no such buffer stays as it is.

    Raises:
        DecantError: A buffer has another shape than a row.
    """
    fit_normalization_(module, arguments(examples.images)[0])
    tensors = dict(examples.images.tensors) if isinstance(examples.images, Rows) else {}
    if examples.labels is not None and examples.labels.is_floating_point():
        tensors[TARGET] = examples.labels
    buffers = dict(module.named_buffers(recurse=False))
    for name, tensor in tensors.items():
        for word, values in (("mean", means), ("deviation", deviations)):
            if tensor.is_floating_point() and (buffer := buffers.get(f"{name}_{word}")) is not None:
                _copy_(buffer, values(tensor), f"{name}_{word}")


def means(rows: Tensor) -> Tensor:
    """Return the mean of each place of rows [N, ...], float64; 0 where all values are missing."""
    return rows.double().nanmean(0).nan_to_num(0.0)


def deviations(rows: Tensor) -> Tensor:
    """Return the deviation of each place of rows [N, ...], float64; 1 where nothing varies."""
    found = (rows.double() - means(rows)).square().nanmean(0).nan_to_num(0.0).sqrt()
    return torch.where(found > 1e-12 * means(rows).abs(), found, 1.0)


def _copy_(buffer: Tensor, values: Tensor, name: str) -> None:
    if buffer.shape != values.shape:
        raise DecantError(
            f"The network's buffer {name} has the shape {[*buffer.shape]}, and a row of the data "
            f"{[*values.shape]}; give it the shape of a row"
        )
    buffer.copy_(values)
