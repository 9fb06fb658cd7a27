"""How a model is loaded, as code to copy; a test copies each of them out of the page and runs it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from decant.checkpoints.checkpoint import Checkpoint
from decant.lowering.integers import EXACT_SUMS
from decant.networks.architectures import FOREIGN

PYTORCH = """import decant
import torch

model = decant.load({folder})
images = torch.zeros({shape}, dtype=torch.uint8)  # yours, N of them
outputs = decant.predict(model.module, images)
print(outputs.shape)
"""

ONNX_RUNTIME = """import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
{exact}session = onnxruntime.InferenceSession({file}, options)
pixels = np.zeros({shape}, dtype=np.float32)  # yours: uint8 over 255
(outputs,) = session.run(None, {{"image": pixels}})
print(outputs.shape)
"""

EXACT = f'options.add_session_config_entry("{EXACT_SUMS}", "1")  # exact sums without VNNI\n'

BROWSER = """<script type="module">
  // npm install onnxruntime-web
  import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

  const session = await ort.InferenceSession.create({file});
  const pixels = new ort.Tensor("float32", new Float32Array({count}), {shape}); // yours, from 0 to 1
  const outputs = await session.run({{ image: pixels }});
  console.log(outputs[session.outputNames[0]].dims);
</script>
"""


@dataclass(frozen=True)
class Snippet:
    """Code that loads a model and runs it.

    Attributes:
        title: Where it runs.
        language: `python` or `html`.
        code: The text.
    """

    title: str
    language: str
    code: str


def snippets(name: str, model: Checkpoint) -> tuple[Snippet, ...]:
    """Return the snippets of a model; none where it takes no pictures, or is a network of other people."""
    if not isinstance(model.shape, tuple) or isinstance(model.architecture, FOREIGN):
        return ()
    shape = (1, *model.shape)
    onnx = f"onnx/{name}.onnx"
    python = PYTORCH.format(folder=json.dumps(f"models/{name}"), shape=", ".join(map(str, shape)))
    exact = EXACT if model.grids else ""
    runtime = ONNX_RUNTIME.format(file=json.dumps(onnx), shape=shape, exact=exact)
    browser = BROWSER.format(file=json.dumps(f"./{onnx}"), count=math.prod(shape), shape=[*shape])
    return (
        Snippet("PyTorch", "python", python),
        Snippet("ONNX Runtime", "python", runtime),
        Snippet("Browser", "html", browser),
    )
