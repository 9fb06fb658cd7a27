"""How far two networks' outputs are from each other: as class probabilities, or as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Distance: TypeAlias = "Callable[[Tensor, Tensor], float]"
"""(found [N, M], expected [N, M]) -> how far they are apart, 0 where they are equal."""


def distance(classes: Sequence[str]) -> Distance:
    """Return how the outputs of a network of these classes are compared.

    As probabilities, by `divergence`; by `squared_error` where there are no classes, so that outputs are no
    logits. Both grow by the square of what the outputs move by.
    """
    return divergence if classes else lambda found, expected: squared_error(found, expected).item()


def squared_error(found: Tensor, expected: Tensor) -> Tensor:
    """Return the mean squared error over the variance of what is expected; shape [], 0 where both are equal.

    The variance is that of all numbers together, so that a step of the outputs' unit changes nothing and
    large outputs count more than small ones. Where they do not vary, their mean square takes its place, and 1
    where they are all zero. 0.0001 is an error of 1 % of the outputs' standard deviation.

    Args:
        found: [N, M]; gradients flow into it.
        expected: [N, M], as a teacher answers; none flow into it.

    Raises:
        ValueError: The shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(f"Outputs differ in shape: found {[*found.shape]}, expected {[*expected.shape]}")
    expected = expected.detach().double()
    square, variance = expected.square().mean(), expected.var(correction=0)
    scale = torch.where(variance > VARYING * square, variance, square)
    return (found.double() - expected).square().mean() / torch.where(scale > 0, scale, 1.0)


VARYING = 1e-12
"""A variance below this share of the mean square is the rounding of numbers that are all the same."""


def divergence(logits: Tensor, expected: Tensor) -> float:
    """Return KL(expected || found) of logits [N, C] in double precision, mean over examples, in nats.

    It is at least 0, which the rounding of its sums is not.
    """
    return softened_kl(logits.double(), expected.double(), 1.0).clamp(min=0.0).item()


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) at temperature T, mean over the batch.

    The factor T^2 keeps the gradient's size independent of T, so that one learning rate serves all
    temperatures.

    Args:
        student: Logits [N, C], float.
        teacher: Logits [N, C]; no gradient flows into them.
        temperature: T > 0. At 1 this is the plain KL divergence.

    Returns:
        Scalar tensor, shape [], in nats; 0 when both predict the same.

    Raises:
        ValueError: The shapes differ, or the temperature is not positive.

    References:
        Hinton et al., 2015, section 2. https://arxiv.org/abs/1503.02531
    """
    if student.shape != teacher.shape:
        raise ValueError(f"Logits differ in shape: student {[*student.shape]}, teacher {[*teacher.shape]}")
    if temperature <= 0:
        raise ValueError(f"Temperature must be positive, got {temperature}")
    log_p = torch.nn.functional.log_softmax(teacher.detach() / temperature, dim=1)
    log_q = torch.nn.functional.log_softmax(student / temperature, dim=1)
    return torch.nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2
