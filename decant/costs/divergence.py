"""The Kullback-Leibler divergence between the class probabilities of two networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


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
