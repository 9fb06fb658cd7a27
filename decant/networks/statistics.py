"""Means and deviations of the training examples as part of a network, so that no user has to know them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from decant.errors import DecantError
from decant.examples import Examples, Rows, arguments
from decant.networks.layers import fit_normalization_, set_normalization_
from decant.progress import progress_bar
from decant.row_groups import RowGroups, group_rows, in_groups, is_large

TARGET = "target"


def fit_statistics_(module: nn.Module, examples: Examples) -> None:
    """Set, in place, what a fresh network knows of its training examples before it has learned anything.

    Of our own networks these are the mean and deviation of each channel. A network of other people that has
    buffers `<input>_mean` and `<input>_deviation`, of the shape of a row, gets those of that input, and in
    `target_mean` and `target_deviation` those of the numbers that it is to answer; missing values (NaN)
    are left out. What has no such buffer stays as it is. Examples that are larger than a window of row groups
    are read once, group by group, and summed up in float64; pictures as whole numbers, without rounding.

    Raises:
        DecantError: A buffer has another shape than a row.
    """
    if not is_large(len(examples), examples.width):
        fit_normalization_(module, arguments(examples.images)[0])
    elif not isinstance(examples.images, Rows) and hasattr(module, "normalize"):
        set_normalization_(module, *channels(examples.images))
    tensors = dict(examples.images.tensors) if isinstance(examples.images, Rows) else {}
    if examples.labels is not None and examples.labels.is_floating_point():
        tensors[TARGET] = examples.labels
    buffers = dict(module.named_buffers(recurse=False))
    for name, tensor in tensors.items():
        for word, values in (("mean", means), ("deviation", deviations)):
            if tensor.is_floating_point() and (buffer := buffers.get(f"{name}_{word}")) is not None:
                _copy_(buffer, values(tensor), f"{name}_{word}")


def channels(images: Tensor | RowGroups) -> tuple[Tensor, Tensor]:
    """Return the mean and the deviation of each channel of pixels [N, C, H, W], uint8, as of [0, 1].

    Returns:
        Both [C], float64; the deviation is that of a sample (N H W - 1). Sums are whole numbers: the size of
        a group plays no part.
    """
    count, pixels = len(images), images.shape[2] * images.shape[3]
    levels = torch.arange(256, dtype=torch.int64)
    total = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for group in _groups(images):
        for place, plane in enumerate(group.unbind(1)):
            total[place] += torch.bincount(plane.reshape(-1), minlength=256)
    number = count * pixels
    sums = [(int(each @ levels), int(each @ levels.square())) for each in total]
    mean = torch.tensor([first / number / 255 for first, _ in sums], dtype=torch.float64)
    spread = [(number * second - first**2) / (number * (number - 1)) / 255**2 for first, second in sums]
    return mean, torch.tensor(spread, dtype=torch.float64).sqrt()


def _groups(rows: Tensor | RowGroups) -> Iterator[Tensor]:
    """Yield rows group by group, and show how far that is."""
    count = -(-len(rows) // group_rows(rows.nbytes // max(len(rows), 1)))
    return iter(progress_bar(in_groups(rows), "statistics", "row groups", total=count))


def means(rows: Tensor | RowGroups) -> Tensor:
    """Return the mean of each place of rows [N, ...], float64; 0 where all values are missing."""
    return _moments(rows)[0]


def deviations(rows: Tensor | RowGroups) -> Tensor:
    """Return the deviation of each place of rows [N, ...], float64; 1 where nothing varies."""
    mean, variance = _moments(rows)
    found = variance.sqrt()
    return torch.where(found > 1e-12 * mean.abs(), found, 1.0)


def _moments(rows: Tensor | RowGroups) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of each place, NaN left out: of one group, then of more and more.

    References:
        Chan et al., Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979. Stanford
        University, STAN-CS-79-773.
    """
    groups = map(_of_group, _groups(rows))
    count, mean, variance = next(groups)
    for number, other, spread in groups:
        whole = (count + number).clamp(min=1)
        apart, share = other - mean, number / whole
        mean = mean + share * apart
        variance = (1 - share) * variance + share * spread + share * (1 - share) * apart.square()
        count = count + number
    return mean, variance


def _of_group(group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many values of each place are not missing, their mean, and their variance; 0 for none."""
    values = group.double()
    mean = values.nanmean(0).nan_to_num(0.0)
    return (~values.isnan()).sum(0).double(), mean, (values - mean).square().nanmean(0).nan_to_num(0.0)


def _copy_(buffer: Tensor, values: Tensor, name: str) -> None:
    if buffer.shape != values.shape:
        raise DecantError(
            f"The network's buffer {name} has the shape {[*buffer.shape]}, and a row of the data "
            f"{[*values.shape]}; give it the shape of a row"
        )
    buffer.copy_(values)
