"""Networks traced for ONNX: the exporter's preparations once in a process, a graph once in all processes."""

from __future__ import annotations

import copy
import functools
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest


def look_up_once() -> None:
    """Make the exporter keep what is the same at each export: two thirds of its time.

    That is what onnxscript reads out of its own source, the table of operators, and which ones torch opens.
    """
    from onnxscript._internal.values import TracedOnnxFunction
    from torch._export import utils
    from torch.export import decomp_utils, exported_program
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    parse: Any = TracedOnnxFunction.function_ir
    TracedOnnxFunction.function_ir = property(functools.cache(parse.fget))
    read: Any = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(**named: Any) -> ONNXRegistry:
        registry: ONNXRegistry = copy.copy(read(**named))
        registry.functions = {target: [*found] for target, found in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(from_torchlib)  # type: ignore[method-assign, assignment]
    collect: Any = functools.cache(utils._collect_all_valid_cia_ops)
    for module in (utils, decomp_utils, exported_program):
        module._collect_all_valid_cia_ops = collect  # type: ignore[attr-defined]


def look_up() -> None:
    """Do now what the first export does."""
    from torch._export import utils
    from torch.onnx._constants import ONNX_DEFAULT_OPSET
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    look_up_once()
    ONNXRegistry.from_torchlib(opset_version=ONNX_DEFAULT_OPSET)  # as torch.onnx.export does
    utils._collect_all_valid_cia_ops()


def share(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Have graphs of `decant.export.trace` kept in a folder, for other processes of the same tests."""
    from decant.export import trace

    original = trace._graph

    def kept(*arguments: Any) -> bytes:
        path = folder / sha256(repr((type(arguments[0]), arguments)).encode()).hexdigest()
        if not path.exists():
            new = path.with_suffix(f".{os.getpid()}")
            new.write_bytes(original(*arguments))
            new.replace(path)
        return path.read_bytes()

    cached: Any = functools.cache(kept)
    cached.__wrapped__ = original.__wrapped__  # what traces, whatever is kept
    patch.setattr(trace, "_graph", cached)
