"""A checkpoint as an ONNX model: one file, the same bytes every time, and the same function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as status
from torch import Tensor

from tasks.checkpoints import Checkpoint
from tasks.errors import DecantError
from tasks.folding import folded
from tasks.integers import EXACT_SUMS
from tasks.models import predict
from tasks.onnx_layers import Form, Forms, fill_
from tasks.onnx_trace import INPUT, traced

TOLERANCE = 1e-4
"""Of float32 logits, absolute and as a share."""

STEPS = 255
"""The range of the logits over one step of 8 bits."""

ROUNDING = {"Round", "QuantizeLinear", "DynamicQuantizeLinear"}

APART, DIFFERING = 0.01, 0.0005
"""Shares of the images: with a logit off by more than a step, and with another prediction."""

CLOSE = 0.05
"""By how much of a step the logits of half of the images may be off."""

REFUSALS = (status.Fail, status.InvalidGraph, status.NotImplemented, status.RuntimeException)
"""What ONNX Runtime raises where it cannot run a model."""


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


def open_session(content: bytes, threads: int, exact: bool = True) -> onnxruntime.InferenceSession:
    """Return a session of ONNX Runtime on the processor that uses `threads` threads and says nothing.

    Where two products are added up in 16 bits, ONNX Runtime's option for exact sums is set: it multiplies
    weights as `uint8`. Every program that opens a model with `integers.risky` weights on such a processor
    needs it. Elsewhere the sums are exact without it, and with it they take 2.2 to 2.7 times as long.

    Args:
        content: The file.
        threads: Of this session alone.
        exact: False leaves the option out, as a program does that does not know of it.

    Raises:
        DecantError: ONNX Runtime has no kernel for something in the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; that an operator is not computed beforehand is no user's concern
    if exact and adds_in_16_bits(torch.cpu.get_capabilities()):
        options.add_session_config_entry(EXACT_SUMS, "1")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Waiting threads that spin would take the processor from whichever model is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except REFUSALS as error:
        raise DecantError(f"onnxruntime {onnxruntime.__version__} cannot run the model: {error}") from None


def adds_in_16_bits(processor: Mapping[str, Any]) -> bool:
    """Say whether a processor, as torch describes it, adds two products of 8-bit integers up in 16 bits.

    So do those of x86-64 without VNNI. It is too little for weights beyond `integers.SAFE`: their sums are
    cut without a word, and the logits wrong.
    """
    vnni = processor.get("avx512_vnni") or processor.get("avx_vnni")
    return processor["architecture"] == "x86_64" and not vnni


def check_same(name: str, checkpoint: Checkpoint, session: Any, images: Tensor) -> None:
    """Hold that ONNX Runtime computes what PyTorch does on uint8 images [N, C, H, W].

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
        near = (expected.max() - expected.min()) / STEPS
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
