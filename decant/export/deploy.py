"""A checkpoint as an ONNX model: one file, the same bytes every time, and the same function."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.examples import Batch, Rows
from decant.export.kernels import Form, Forms, fill_
from decant.export.runtime import REFUSALS, open_session, run
from decant.export.trace import traced
from decant.inputs import drawn
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

FARTHER = 1.5
"""How many times as far as PyTorch ONNX Runtime may be from float64 where edges decide all answers."""

CLOSE = 0.05
"""By how much of a step the logits of half of the images may be off."""


@dataclass(frozen=True)
class Deployed:
    """A checkpoint as it ships.

    Attributes:
        model: The function: of pictures, from `image` [N, C, H, W] in [0, 1] to `logits` [N, K], in float32.
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
        DecantError: ONNX has no operator for something in the network, or torch's exporter says it wrongly.
    """
    whole = folded(checkpoint)
    model = traced(whole)
    forms = fill_(model, whole)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise DecantError(
            f"torch {torch.__version__} exports a {type(whole.module).__name__} wrongly, the model itself is "
            f"whole: {' '.join(str(error).split())}"
        ) from None
    made = Deployed(model, forms)
    _check_lengths(made, whole)
    return made


def _check_lengths(made: Deployed, checkpoint: Checkpoint) -> None:
    """Check that lengths which may vary do so in the file: torch's exporter may write the example's down."""
    inputs = checkpoint.shape if isinstance(checkpoint.shape, Mapping) else {}
    shorter = {name: each.shorter() for name, each in inputs.items()}
    if all(each.row == inputs[name].row for name, each in shorter.items()):
        return
    rows = Rows(dict(zip(shorter, drawn(shorter, rows=2), strict=True)))
    session, shapes = open_session(made.content, 1), {name: [*each.row] for name, each in shorter.items()}
    try:
        found = predict(partial(run, session), rows)
        same = found.shape == predict(checkpoint.module, rows).shape
        if same and not made.rounds and bool(torch.isfinite(found).all()):
            check_same("a shorter example", checkpoint, session, rows)
    except (*REFUSALS, DecantError):
        same = False
    if not same:
        raise DecantError(
            f"torch {torch.__version__} exports a {type(checkpoint.module).__name__} with the lengths of the "
            f"example alone, the model itself is whole: the file fails, or computes something else, for rows "
            f"of {shapes}; give its inputs numbers in place of free lengths"
        )


def to_onnx(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return the model alone."""
    return deploy(checkpoint).model


def check_same(name: str, checkpoint: Checkpoint, session: Any, images: Batch) -> None:
    """Check that ONNX Runtime computes what PyTorch does on uint8 images [N, C, H, W].

    Where no inputs are rounded, the truth is the same network in float64. How far PyTorch is from it in
    float32 says how much the rounding of all that is summed comes to in this network, whatever is left of
    the sums in the logits; ONNX Runtime may be off by `ROUNDINGS` times as much. That is some millionths of
    the largest logit, so that a single wrong weight, scale or bias shows. A network that does not run in
    float64 is compared with PyTorch itself, `ROUNDINGS` times units in the last place.

    Where inputs are rounded, a difference in the last bit can take one of them over the edge of a step,
    and the layers behind work on another picture. So there at least 99 % of the images have all logits
    within one step, which is that of 8 bits over the range of all logits, half of them within a twentieth
    of it, and, where there are classes, at most 0.05 % (or one image) are predicted otherwise, all of which
    had two logits within two steps. With the default teacher's weights and inputs on 8 bits the largest gap
    is 0.4 of such a step, and that of half of the images 0.0000; a layer's scale that is wrong by 1 % makes
    these 1 to 7, and 0.5 to 1.8.

    In networks of dozens of such layers PyTorch in float32 is no nearer to itself in float64. There ONNX
    Runtime may be off by `FARTHER` as much as PyTorch: in half and in nine tenths of the images, in the mean
    over the images, where edges that fall to both sides cancel and a wrong number does not, and in how many
    predictions are other ones.

    Raises:
        DecantError: The two do not agree, or PyTorch's logits are NaN or infinite; names the model.
    """
    expected = predict(checkpoint.module, images)
    if not bool(torch.isfinite(expected).all()):
        raise DecantError(f"The logits of {name} are NaN or infinite in PyTorch; make the model anew")
    found = predict(partial(run, session), images)
    compared = _rounding_apart if checkpoint.grids else _apart
    if reason := compared(checkpoint, images, expected, found):
        raise DecantError(
            f"ONNX Runtime does not compute the same function as PyTorch for {name}: {reason}; a layer of "
            f"its architecture is exported wrongly by torch {torch.__version__} or run wrongly by "
            f"onnxruntime {onnxruntime.__version__}"
        )


def _apart(checkpoint: Checkpoint, images: Batch, expected: Tensor, found: Tensor) -> str:
    """Return how far logits are apart, beyond float32's rounding; empty where they are not."""
    truth = _truth(checkpoint, images)
    own, gap = (
        (each.double() - (expected if truth is None else truth)).abs().amax(1) for each in (expected, found)
    )
    least = FLOAT32 if truth is not None else ROUNDINGS * FLOAT32
    near = max(ROUNDINGS * own.max().item(), least * expected.abs().max().item())
    beyond = ~(gap <= near)  # what is NaN is beyond
    return _words(gap, near, beyond, _other(checkpoint, expected, found)) if bool(beyond.any()) else ""


def _truth(checkpoint: Checkpoint, images: Batch) -> Tensor | None:
    """Return what the network answers in float64; None where its forward mixes that with types of its own."""
    exact = copy.deepcopy(checkpoint.module).double()
    try:
        return predict(exact, images, dtype=torch.float64).double()
    except RuntimeError:
        return None


def _rounding_apart(checkpoint: Checkpoint, images: Batch, expected: Tensor, found: Tensor) -> str:
    """Return how far logits are apart, beyond what inputs over a step's edge do; empty likewise."""
    if not (reason := _beyond_edges(checkpoint, expected, found)):
        return ""
    truth = _truth(checkpoint, images)
    if truth is None or not _beyond_edges(checkpoint, truth, expected):
        return reason
    return reason if _farther(checkpoint, truth, expected, found) else ""


def _farther(checkpoint: Checkpoint, truth: Tensor, expected: Tensor, found: Tensor) -> bool:
    """Say whether ONNX Runtime is farther than PyTorch from float64, one by one and in the mean."""
    own, gap = ((each.double() - truth).abs().amax(1) for each in (expected, found))
    mean, other_mean = ((each.double() - truth).mean(0).norm() for each in (expected, found))
    few, many = (_other(checkpoint, truth, each) for each in (expected, found))
    quantiles = torch.tensor([0.5, 0.9], dtype=torch.float64)
    near = bool((gap.quantile(quantiles) <= FARTHER * own.quantile(quantiles)).all())
    near = near and bool(other_mean <= FARTHER * mean)
    if few is None or many is None:
        return not near
    return not near or int(many.sum()) > FARTHER * int(few.sum()) + 1


def _beyond_edges(checkpoint: Checkpoint, expected: Tensor, found: Tensor) -> str:
    """Return how far logits are apart, beyond what a few inputs over a step's edge do; empty likewise."""
    gap = (found - expected).abs().amax(1)
    floor = FLOAT32 * expected.abs().max().item()  # logits that hardly differ are still rounded
    step = (expected.max() - expected.min()).item() / LOGIT_STEPS
    near, usual = step + floor, CLOSE * step + floor
    beyond, other = ~(gap <= near), _other(checkpoint, expected, found)
    same = beyond.double().mean().item() <= APART and bool(gap.median() <= usual)
    if other is not None:
        few = int(other.sum()) <= max(1, DIFFERING * len(expected))
        first, second = expected.topk(2, dim=1).values.unbind(1)
        same = same and few and not bool((other & ~(first - second <= 2 * near)).any())
    return "" if same else _words(gap, near, beyond, other)


def _other(checkpoint: Checkpoint, expected: Tensor, found: Tensor) -> Tensor | None:
    """Say of which rows [N] another class is predicted; None where there is nothing to predict."""
    return found.argmax(1) != expected.argmax(1) if len(checkpoint.classes) > 1 else None


def _words(gap: Tensor, near: float, beyond: Tensor, other: Tensor | None) -> str:
    largest, middle, share = gap.max().item(), gap.median().item(), beyond.double().mean().item()
    of_classes = "" if other is None else f", and {int(other.sum())} predictions are other ones"
    return (
        f"{'outputs' if other is None else 'logits'} differ by up to {largest:.3g}, in half of the images by "
        f"{middle:.3g} or more, in {share:.2%} of {len(gap)} images by more than {near:.3g}{of_classes}"
    )
