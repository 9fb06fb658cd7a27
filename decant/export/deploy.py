"""A checkpoint as an ONNX model: one file, the same bytes every time, and the same function."""

from __future__ import annotations

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

TOLERANCE = 1e-4
"""Of float32 logits, absolute and as a share."""

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

    Where no inputs are rounded, logits agree within float32's rounding, and so do all predictions but those
    between two classes that are as near to each other.

    Where inputs are rounded, a difference in the last bit can take one of them over the edge of a step,
    and the layers behind work on another picture. So there at least 99 % of the images have all logits
    within one step, which is that of 8 bits over the range of all logits, half of them within a twentieth
    of it, and at most 0.05 % (or one image) are predicted otherwise, all of which had two logits within two
    steps. With the default teacher's weights and inputs on 8 bits the largest gap is 0.4 of such a step,
    and that of half of the images 0.0000; a layer's scale that is wrong by 1 % makes these 1 to 7, and 0.5
    to 1.8.

    Raises:
        DecantError: The two do not agree; names the model.
    """
    expected = predict(checkpoint.module, images)
    found = predict(lambda inputs: torch.from_numpy(session.run(None, {INPUT: inputs.numpy()})[0]), images)
    gap = (found - expected).abs().amax(1)
    if checkpoint.grids:
        near = (expected.max() - expected.min()) / LOGIT_STEPS
        beyond, allowed, usual = ~(gap <= near), APART, CLOSE * near  # what is NaN is beyond
    else:
        near = TOLERANCE * (1 + expected.abs().max())
        beyond = ~torch.isclose(found, expected, TOLERANCE, TOLERANCE).all(1)
        allowed, usual = 0.0, near
    first, second = expected.topk(2, dim=1).values.unbind(1)
    other = found.argmax(1) != expected.argmax(1)
    tied = first - second <= 2 * near
    share, middle = beyond.double().mean().item(), gap.median()
    same = share <= allowed and bool(middle <= usual) and not bool((other & ~tied).any())
    if not same or int(other.sum()) > max(1, DIFFERING * len(images)):
        raise DecantError(
            f"ONNX Runtime does not compute the same function as PyTorch for {name}: logits differ by up to "
            f"{gap.max().item():.3g}, in half of the images by {middle.item():.3g} or more, in "
            f"{share:.2%} of {len(images)} images by more than {near.item():.3g}, and {int(other.sum())} "
            f"predictions are other ones; a layer of its architecture is exported wrongly by torch "
            f"{torch.__version__} or run wrongly by onnxruntime {onnxruntime.__version__}"
        )
