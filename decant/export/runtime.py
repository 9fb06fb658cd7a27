"""Sessions of ONNX Runtime, with its option for exact integer sums where the processor needs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as status
from torch import Tensor

from decant.errors import DecantError
from decant.lowering.integers import EXACT_SUMS

REFUSALS = (status.Fail, status.InvalidGraph, status.NotImplemented, status.RuntimeException)
"""What ONNX Runtime raises where it cannot run a model."""


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


def feed(session: Any, arguments: Iterable[Tensor]) -> dict[str, np.ndarray]:
    """Return tensors as a session takes them, by the names of its inputs, in order."""
    names = [each.name for each in session.get_inputs()]
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in zip(names, arguments, strict=True)}


def run(session: Any, *arguments: Tensor) -> tuple[Tensor, ...]:
    """Return what a session answers to tensors, in order."""
    return tuple(torch.from_numpy(each) for each in session.run(None, feed(session, arguments)))


def adds_in_16_bits(processor: Mapping[str, Any]) -> bool:
    """Say whether a processor, as torch describes it, adds two products of 8-bit integers up in 16 bits.

    So do those of x86-64 without VNNI. It is too little for weights beyond `integers.SAFE`: their sums are
    cut silently, and the logits wrong.
    """
    vnni = processor.get("avx512_vnni") or processor.get("avx_vnni")
    return processor["architecture"] == "x86_64" and not vnni
