"""How a network is trained, as params.yaml says it: optimizers, schedules, augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from decant.errors import Message
from decant.lazy import torch
from decant.networks.augmentation import Augmentation
from decant.networks.devices import CPU, in_one_kernel, untrue
from decant.schema import Count, Fraction, NotNegative, Positive, Section, TrainImages
from decant.targets import CLASSES, Target

if TYPE_CHECKING:
    from torch import Tensor

Loss: TypeAlias = "Callable[[tuple[Tensor, ...], Tensor, Tensor | None], Tensor]"
"""(inputs, outputs [N, M], labels [N] or None) -> scalar; of labels and classes in nats."""


class Sgd(Section):
    """Stochastic gradient descent with Nesterov momentum."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: Positive = 0.1
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer over parameter groups."""
        more: Any = {"momentum": self.momentum, "nesterov": True, "fused": _fused(groups)}
        return torch.optim.SGD(groups, self.learning_rate, **more)


class Adamw(Section):
    """Adam with decoupled weight decay.

    References:
        Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2017. https://arxiv.org/abs/1711.05101
    """

    kind: Literal["adamw"] = "adamw"
    learning_rate: Positive = 0.001

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer over parameter groups."""
        return torch.optim.AdamW(groups, self.learning_rate, fused=_fused(groups))


class OneCycle(Section):
    """Rise linearly over the first `warmup` of all steps, then fall to zero by a cosine.

    References:
        Smith and Topin, Super-Convergence, 2017. https://arxiv.org/abs/1708.07120
    """

    kind: Literal["one-cycle"] = "one-cycle"
    warmup: Fraction = 0.2

    def factor(self, progress: float) -> float:
        """Return the share of the full learning rate at `progress` in [0, 1] of all steps."""
        if progress < self.warmup:
            return progress / self.warmup
        return _half_cosine((progress - self.warmup) / max(1 - self.warmup, 1e-9))


class Cosine(Section):
    """Fall from the full learning rate to zero by a cosine.

    References:
        Loshchilov and Hutter, SGDR, 2016. https://arxiv.org/abs/1608.03983
    """

    kind: Literal["cosine"] = "cosine"

    def factor(self, progress: float) -> float:
        """Return the share of the full learning rate at `progress` in [0, 1] of all steps."""
        return _half_cosine(progress)


class Training(Section):
    """How a network is trained; part of the block of every model that trains.

    Attributes:
        weight_decay: L2: half of it times the sum of squared weights; pulls all of them towards zero.
        l1: Times the sum of |w|; pulls weights to zero one by one, for single weights to be pruned.
        group_lasso: Times the sum of the channels' norms; pulls whole channels to zero, for channels to be
            pruned. None of the three helps a model that is not pruned after it.
        precision: Of products: `float32`, `tf32` (of GPUs alone), `bfloat16`, or `float16` with a scaler.
            Weights, sums of gradients, the loss and all that is measured are float32 in each.
        accumulate: Batches whose gradients make one step of the optimizer, in the memory of one. It is a step
            on one batch of so many times the images, but for batch norms, whose statistics are each batch's.
            Does not help where the larger batch fits: it is no faster.
        clip_gradients: The largest L2 norm of all gradients together; longer ones are shortened to it. Helps
            where the loss jumps, as in recurrent networks (Pascanu et al., On the difficulty of training
            recurrent neural networks, 2012. https://arxiv.org/abs/1211.5063); where it never does, it is only
            a smaller learning rate.
        processes: That have a share of each batch; the same steps as of one but for rounding. Helps where a
            batch keeps several GPUs busy; on one processor, threads do the same for less.
        compile: Whether forward and backward are compiled; other kernels, so other last bits. Compiling takes
            up to a minute: helps long trainings alone. A network that cannot be compiled whole is refused.
        graphs: Whether the compiled kernels are recorded as CUDA graphs, and replayed: on GPUs alone, for
            small networks, where the GPU waits for Python. Does not help batches that keep it busy.
    """

    epochs: Count
    batch_size: TrainImages = 128
    optimizer: Annotated[Sgd | Adamw, Field(discriminator="kind")] = Sgd()
    schedule: Annotated[OneCycle | Cosine, Field(discriminator="kind")] = OneCycle()
    weight_decay: NotNegative = 0.0005
    l1: NotNegative = 0.0
    group_lasso: NotNegative = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augmentation: Augmentation = Augmentation()
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    patience: Count | None = None
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    accumulate: Annotated[int, Field(gt=0, le=10_000, exclude_if=lambda count: count == 1)] = 1
    clip_gradients: Annotated[Positive | None, Field(exclude_if=lambda norm: norm is None)] = None
    processes: Annotated[int, Field(gt=0, le=1024, exclude_if=lambda count: count == 1)] = 1
    compile: Annotated[bool, Field(exclude_if=lambda on: not on)] = False
    graphs: Annotated[bool, Field(exclude_if=lambda on: not on)] = False

    @model_validator(mode="after")
    def _together(self) -> Training:
        if self.graphs and not self.compile:
            raise ValueError("graphs: true records what was compiled: add compile: true")
        if self.compile and self.processes > 1:
            raise ValueError(
                "compile: true and several processes do not go together, as batch norms wait for the others "
                "in the middle of a pass: leave one out"
            )
        if self.batch_size < self.processes:
            raise ValueError(
                f"batch_size: {self.batch_size} images have no share for each of {self.processes} processes: "
                "take fewer, or larger batches"
            )
        return self

    def unsuited(self, device: str) -> Message:
        """Return why the recipe does not suit a device, or several of its kind; empty where it does."""
        if self.graphs and device == CPU:
            return (
                f"training.graphs: CUDA graphs are for GPUs, and this runs on {CPU}: leave it out, or take a "
                "device"
            )
        if self.processes > 1 and ":" in device:
            return (
                f"training.processes: {self.processes} need a GPU each, and {device} is one: take cuda, the "
                "first for the first of them"
            )
        return untrue(device, self.precision)

    def hard_loss(self, target: Target = CLASSES) -> Loss:
        """Return the target's loss against labels, smoothed as the recipe says; there have to be some."""

        def against_labels(_: tuple[Tensor, ...], outputs: Tensor, labels: Tensor | None) -> Tensor:
            assert labels is not None
            return target.loss(outputs, labels, smoothing=self.label_smoothing)

        return against_labels


def _fused(groups: list[dict[str, Any]]) -> bool | None:
    return in_one_kernel(parameter for group in groups for parameter in group["params"])


def _half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2
