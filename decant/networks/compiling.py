"""torch's compiler: what it is asked, and what is told where it cannot.

A network is compiled whole or not at all: what runs is what the recipe says, never the slow way unseen.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar

from decant.errors import DecantError, Message
from decant.lazy import torch
from decant.networks.devices import CPU

T = TypeVar("T")


def missing_compiler(device: str) -> Message:
    """Return what is missing to compile for a device; empty where nothing is.

    Kernels are C++ on processors, and Triton's on GPUs.
    """
    if device != CPU:
        if importlib.util.find_spec("triton") is not None:
            return ""
        return (
            "training.compile: GPUs need the package triton, and it is not there: install it, or leave "
            "compile out"
        )
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return (
            "training.compile: processors need a C++ compiler, and there is no g++ or clang++: install one, "
            "name it in the variable CXX, or leave compile out"
        )
    return ""


def compiled(function: Callable[..., T], *, graphs: bool, any_length: bool) -> Callable[..., T]:
    """Return a function of tensors as torch's compiler makes it, once it is called.

    Its bits are those of its kernels, of which the same code, shapes and threads have the same.

    Args:
        function: What is compiled; the same each time.
        graphs: Whether kernels are recorded as CUDA graphs, and replayed. What is returned then lies where
            the next call writes: it has to be copied before.
        any_length: Whether shapes change from call to call, so that one kernel serves all; else each shape
            has its own. It is no matter of which came first: a training that was interrupted has the same.

    Raises:
        DecantError: A call cannot be compiled whole; says what is in the way.
    """
    made = torch.compile(
        function, fullgraph=True, dynamic=any_length, mode="reduce-overhead" if graphs else None
    )

    def called(*arguments: Any) -> T:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return made(*arguments)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            raise DecantError(
                f"training.compile: the network cannot be compiled whole ({_reason(error)}); leave compile "
                "out"
            ) from None

    return called


def _reason(error: Exception) -> str:
    """Return the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
