"""A checkpoint as an ONNX model: one file, the same bytes every time, and the same function."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.export.kernels import Form, Forms, fill_
from decant.export.trace import INPUT, traced
from decant.lowering.folding import folded
from decant.networks.execution import predict

ROUNDINGS = 8
"""How many times as far as PyTorch ONNX Runtime may be from float64: it adds in another order."""

FLOAT32 = 2.0**-20
"""And by which share of the largest logit, where PyTorch happens to be nearer: 8 units in the last place."""

LOGIT_STEPS = 255
"""The range of the logits over one step of 8 bits."""

ROUNDING = {"Round", "QuantizeLinear", "DynamicQuantizeLinear"}

APART, DIFFERING = 0.01, 0.0005
"""Shares of the images: with a logit off by more than a step, and with another prediction."""

CLOSE = 0.05
"""By how much of a step the logits of half of the images may be off."""


@dataclass(frozen=True)
class Deployed:
    """A checkpoint as it ships.

    Attributes:
        model: The function from `image` [N, C, H, W] in [0, 1] to `logits` [N, K], both float32.
        forms: How each layer is multiplied, by its name.
    """

    model: onnx.ModelProto
    forms: Forms

    @property
    def content(self) -> bytes:
        """The file, the same bytes for the same checkpoint."""
        return self.model.SerializeToString(deterministic=True)

    @property
    def rounds(self) -> bool:
        """Whether anything is computed on other numbers than float32, so that a bit can become a step."""
        kinds = {node.op_type for node in self.model.graph.node}
        return bool(kinds & ROUNDING) or any(form is not Form.FLOAT for form in self.forms.values())


def deploy(checkpoint: Checkpoint) -> Deployed:
    """Return the checkpoint's function as ONNX Runtime runs it best, its batch norms folded.

    Raises:
        DecantError: ONNX has no operator for something in the network.
    """
    whole = folded(checkpoint)
    model = traced(whole)
    forms = fill_(model, whole)
    onnx.checker.check_model(model)
    return Deployed(model, forms)


def to_onnx(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return the model alone."""
    return deploy(checkpoint).model


def check_same(name: str, checkpoint: Checkpoint, session: Any, images: Tensor) -> None:
    """Check that ONNX Runtime computes what PyTorch does on uint8 images [N, C, H, W].

    Where no inputs are rounded, the truth is the same network in float64. How far PyTorch is from it in
    float32 says how much the rounding of all that is summed comes to in this network, whatever is left of
    the sums in the logits; ONNX Runtime may be off by `ROUNDINGS` times as much. That is some millionths of
    the largest logit, so that a single wrong weight, scale or bias shows.

    Where inputs are rounded, a difference in the last bit can take one of them over the edge of a step,
    and the layers behind work on another picture. So there at least 99 % of the images have all logits
    within one step, which is that of 8 bits over the range of all logits, half of them within a twentieth
    of it, and at most 0.05 % (or one image) are predicted otherwise, all of which had two logits within two
    steps. With the default teacher's weights and inputs on 8 bits the largest gap is 0.4 of such a step,
    and that of half of the images 0.0000; a layer's scale that is wrong by 1 % makes these 1 to 7, and 0.5
    to 1.8.

    Raises:
        DecantError: The two do not agree, or PyTorch's logits are NaN or infinite; names the model.
    """
    expected = predict(checkpoint.module, images)
    if not bool(torch.isfinite(expected).all()):
        raise DecantError(f"The logits of {name} are NaN or infinite in PyTorch; make the model anew")
    found = predict(lambda inputs: torch.from_numpy(session.run(None, {INPUT: inputs.numpy()})[0]), images)
    compared = _rounding_apart if checkpoint.grids else _apart
    if reason := compared(checkpoint, images, expected, found):
        raise DecantError(
            f"ONNX Runtime does not compute the same function as PyTorch for {name}: {reason}; a layer of "
            f"its architecture is exported wrongly by torch {torch.__version__} or run wrongly by "
            f"onnxruntime {onnxruntime.__version__}"
        )


def _apart(checkpoint: Checkpoint, images: Tensor, expected: Tensor, found: Tensor) -> str:
    """Return how far logits are apart, beyond float32's rounding; empty where they are not."""
    exact = copy.deepcopy(checkpoint.module).double()
    truth = predict(lambda inputs: exact(inputs.double()), images).double()
    own, gap = ((each.double() - truth).abs().amax(1) for each in (expected, found))
    near = max(ROUNDINGS * own.max().item(), FLOAT32 * truth.abs().max().item())
    beyond = ~(gap <= near)  # what is NaN is beyond
    return _words(gap, near, beyond, found.argmax(1) != expected.argmax(1)) if bool(beyond.any()) else ""


def _rounding_apart(checkpoint: Checkpoint, images: Tensor, expected: Tensor, found: Tensor) -> str:
    """Return how far logits are apart, beyond what a few inputs over a step's edge do; empty likewise."""
    gap = (found - expected).abs().amax(1)
    floor = FLOAT32 * expected.abs().max().item()  # logits that hardly differ are still rounded
    step = (expected.max() - expected.min()).item() / LOGIT_STEPS
    near, usual = step + floor, CLOSE * step + floor
    first, second = expected.topk(2, dim=1).values.unbind(1)
    beyond, other = ~(gap <= near), found.argmax(1) != expected.argmax(1)
    same = beyond.double().mean().item() <= APART and bool(gap.median() <= usual)
    few = int(other.sum()) <= max(1, DIFFERING * len(images))
    same = same and few and not bool((other & ~(first - second <= 2 * near)).any())
    return "" if same else _words(gap, near, beyond, other)


def _words(gap: Tensor, near: float, beyond: Tensor, other: Tensor) -> str:
    largest, middle, share = gap.max().item(), gap.median().item(), beyond.double().mean().item()
    return (
        f"logits differ by up to {largest:.3g}, in half of the images by {middle:.3g} or more, in "
        f"{share:.2%} of {len(gap)} images by more than {near:.3g}, and {int(other.sum())} predictions are "
        f"other ones"
    )
