"""What a model is measured by, as pure functions of logits, labels and modules."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.models import Shape, compressible


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction in [0, 1] of examples [N] whose largest logit of [N, C] is the label's."""
    return (logits.argmax(1) == labels).double().mean().item()


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share observed in `count` independent trials.

    Unlike share +- 1.96 sigma it stays inside [0, 1] and does not vanish at 0 and 1. Two models measured on
    the same images differ more surely than two such intervals suggest: their errors are paired.

    References:
        Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927, J. Am. Stat.
        Assoc. 22.
    """
    z = 1.959963984540054
    middle = share + z**2 / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return (middle - reach) / (1 + z**2 / count), (middle + reach) / (1 + z**2 / count)


def nll(logits: Tensor, labels: Tensor) -> float:
    """Return the mean negative log likelihood of the labels, in nats."""
    return F.cross_entropy(logits.double(), labels).item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error in [0, 1]: how far confidence is from accuracy.

    Examples are sorted into `bins` equal intervals of confidence; the gaps between mean confidence and
    accuracy are averaged, weighted by the examples in each.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017. https://arxiv.org/abs/1706.04599
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    gap = (predicted == labels).double() - confidence
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return torch.zeros(bins, dtype=torch.double).index_add_(0, bin_of, gap).abs().sum().item() / len(labels)


def agreement(logits: Tensor, classes: Tensor) -> float:
    """Return the fraction in [0, 1] of logits [N, C] whose largest is the class [N] of another model."""
    return (logits.argmax(1) == classes).double().mean().item()


def parameters(module: nn.Module) -> int:
    """Return the number of parameters, zeros included."""
    return sum(parameter.numel() for parameter in module.parameters())


def nonzeros(module: nn.Module) -> int:
    """Return the number of parameters that are not zero."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in module.parameters())


def sparsity(module: nn.Module) -> float:
    """Return the fraction in [0, 1] of zeros among the weights of convolutions and linear layers."""
    weights = compressible(module).values()
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def macs(module: nn.Module, shape: Shape) -> int:
    """Return the multiplications of convolutions and linear layers for one input of `shape` [C, H, W].

    Zeros count as much as any other weight: a kernel that skips single zeros is the exception.
    """
    return sum(layer_macs(module, shape).values())


def layer_macs(module: nn.Module, shape: Shape) -> dict[str, int]:
    """Return the multiplications of each convolution and linear layer, by the name of its weight."""
    weights = compressible(module)
    counts = dict.fromkeys(weights, 0)

    def count(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        counts[name] += output.numel() // weights[name].shape[0] * weights[name].numel()

    handles = [
        module.get_submodule(name.removesuffix(".weight")).register_forward_hook(partial(count, name))
        for name in weights
    ]
    with torch.no_grad():
        module(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return counts
