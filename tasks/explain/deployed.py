"""The function that ships: the model as ONNX Runtime runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.export.deploy import deploy
from decant.export.runtime import open_session, run


@dataclass(frozen=True)
class DeployedFunction:
    """What perturbation methods ask.

    Attributes:
        function: Of as many tensors as the network takes.
        runtime: `onnxruntime`, or `pytorch` where the model has no ONNX file.
    """

    function: Callable[..., Any]
    runtime: str


def function_of(model: Checkpoint, threads: int) -> DeployedFunction:
    """Return a model's function in ONNX Runtime; in PyTorch, with a sentence, where ONNX has no form for it.

    The file is made here as the stage `benchmark` makes it, to the byte, so that one model can be explained
    without the export of all others.
    """
    try:
        session = open_session(deploy(model).content, threads)
    except DecantError as error:
        print(f"explained as PyTorch computes it, as it has no ONNX file: {error}")
        return DeployedFunction(model.module, "pytorch")
    return DeployedFunction(partial(run, session), "onnxruntime")
