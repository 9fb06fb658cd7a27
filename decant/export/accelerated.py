"""Sessions of ONNX Runtime on a GPU, where it is installed with CUDA."""

from __future__ import annotations

import onnxruntime
import torch

from decant.errors import DecantError, Message
from decant.export.runtime import REFUSALS

PROVIDER = "CUDAExecutionProvider"


def missing_provider() -> Message:
    """Return that this ONNX Runtime has no kernels of GPUs; empty where it has."""
    if PROVIDER in (known := onnxruntime.get_available_providers()):
        return ""
    return (
        f"device: onnxruntime {onnxruntime.__version__} has {', '.join(known)} and not {PROVIDER}: install "
        "onnxruntime-gpu in its place, or leave device out"
    )


def open_session_on(content: bytes, device: torch.device) -> onnxruntime.InferenceSession:
    """Return a session whose kernels are the GPU's, float32 without TF32; those that it lacks are the CPU's.

    A call of it copies the inputs there and the outputs back, and ends when they are here.

    Args:
        content: The ONNX file.
        device: The GPU.

    Raises:
        DecantError: This ONNX Runtime has no CUDA, or none that works here; or no kernel for the model.
    """
    if missing := missing_provider():
        raise DecantError(f"benchmark.{missing}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, as on the processor
    chosen = (PROVIDER, {"device_id": device.index or 0, "use_tf32": 0})
    try:
        session = onnxruntime.InferenceSession(content, options, providers=[chosen, "CPUExecutionProvider"])
    except REFUSALS as error:
        raise DecantError(f"onnxruntime {onnxruntime.__version__} cannot run the model: {error}") from None
    if (found := session.get_providers()[0]) != PROVIDER:  # it goes on without, where CUDA does not load
        raise DecantError(
            f"benchmark.device: {PROVIDER} does not start here, and {found} took its place: it needs the "
            "CUDA and cuDNN that onnxruntime-gpu was made for; install them, or leave device out"
        )
    return session
