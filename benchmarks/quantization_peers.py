"""Other tools on the same teacher and the same images: ONNX Runtime's quantizer, torchao and Brevitas.

The last two are the extra `peers` of pyproject.toml; where they are not installed they are named and not
measured. What a tool weighs is what it writes by its own documented way of saving.
"""

from __future__ import annotations

import copy
import functools
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnxruntime.quantization as ort
import torch
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.examples import Examples, pixels
from decant.export.deploy import to_onnx
from decant.export.runtime import open_session
from decant.export.trace import INPUT, silent
from decant.training.fit import fit_
from decant.training.losses import SoftTargets, against_teacher
from decant.training.recipe import Training
from decant.training.resume import Scratch
from tasks.pipeline.params import validate

Predict = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] in [0, 1] to logits [N, K]."""


@dataclass(frozen=True)
class Task:
    """What every tool is given.

    Attributes:
        teacher: The trained network in float32.
        calibration: Training images that ranges, Hessians and the like are taken from.
        train: All training images.
        validation: For the curve of a training.
        training: The recipe of trained rows, as params.yaml says it.
        loss: Its soft targets, likewise.
        seed: Of a training.
    """

    teacher: Checkpoint
    calibration: Tensor
    train: Examples
    validation: Examples
    training: Mapping[str, Any]
    loss: Mapping[str, Any]
    seed: int

    @property
    def inputs(self) -> list[Tensor]:
        """Return the calibration images in [0, 1], in batches."""
        return list(pixels(self.calibration).split(100))


@dataclass(frozen=True)
class Made:
    """What a tool made of the teacher.

    Attributes:
        function: The quantized network.
        size: Bytes as the tool saves it.
        file: The ONNX file, where it is one that ONNX Runtime runs.
    """

    function: Predict
    size: int
    file: bytes | None = None


@dataclass(frozen=True)
class Peer:
    """One way of one tool.

    Attributes:
        package: Its name on PyPI; further ones that it needs follow.
        width: The row of the widths' tables that it is comparable with.
        make: Does it.
        words: What has to be known of the number beside it.
    """

    package: tuple[str, ...]
    width: str
    make: Callable[[Task], Made]
    words: str = ""

    def missing(self) -> str:
        """Return the packages that are not installed, in words; empty where all are."""
        return ", ".join(name for name in self.package if not installed(name))


def installed(package: str) -> str:
    """Return a package's version, empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def attempt(peer: Peer, task: Task) -> tuple[Made | None, str]:
    """Return what the tool made, or None and the reason in words.

    It is foreign code and may raise anything: a tool that fails is a result, and no reason for the others to
    be lost. The process's own strictness about determinism is lifted for it.
    """
    if missing := peer.missing():
        return None, f"{missing} not installed"
    strict = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        with silent(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            return peer.make(task), ""
    except Exception as error:
        lines = str(error).strip().splitlines()
        return (
            None,
            f"fails with torch {torch.__version__}: {type(error).__name__}: {lines[0] if lines else ''}",
        )
    finally:
        torch.set_deterministic_debug_mode(strict)


def of_file(content: bytes, exact: bool = True) -> Made:
    """Return what is in an ONNX file, run by ONNX Runtime on one thread, with exact sums or as it comes."""
    session = open_session(content, 1, exact)
    return Made(
        lambda inputs: torch.from_numpy(session.run(None, {INPUT: inputs.numpy()})[0]), len(content), content
    )


class _Images(ort.CalibrationDataReader):  # type: ignore[misc]  # it is not typed
    """Calibration images, batch after batch."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._rest = iter([{INPUT: batch.numpy()} for batch in batches])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch."""
        return next(self._rest, None)


def onnxruntime_static(method: str, task: Task) -> Made:
    """Return ONNX Runtime's own static quantization: QDQ, unsigned inputs, signed weights per channel.

    Its symbolic shape inference is left out, as the documentation advises for networks that are no
    transformers; batch norms are folded by its optimizer before it quantizes.
    """
    with tempfile.TemporaryDirectory() as folder:
        float32, before, after = (Path(folder) / f"{name}.onnx" for name in ("float32", "before", "after"))
        float32.write_bytes(to_onnx(task.teacher).SerializeToString())
        quant_pre_process(str(float32), str(before), skip_symbolic_shape=True)
        ort.quantize_static(
            str(before),
            str(after),
            _Images(task.inputs),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            calibrate_method=ort.CalibrationMethod[method],
        )
        return of_file(after.read_bytes())


def torchao_pt2e(task: Task) -> Made:
    """Return torchao's static quantization of the exported graph, for x86."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    example = task.inputs[0][:2].clone()  # what is exported keeps the whole memory behind its example
    exported = torch.export.export(
        task.teacher.module, (example,), dynamic_shapes=({0: torch.export.Dim("N", min=1, max=4096)},)
    )
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported.module(), quantizer)
    with torch.no_grad():
        for batch in task.inputs:
            prepared(batch)
    converted = convert_pt2e(prepared)
    saved = io.BytesIO()
    torch.export.save(torch.export.export(converted, (example,)), saved)
    return Made(converted, len(saved.getvalue()))


def torchao_weights(bits: int, task: Task) -> Made:
    """Return torchao's integers of weights alone, per output channel, in the layers that it knows: linear."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis

    module = copy.deepcopy(task.teacher.module)
    quantize_(module, IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), PerAxis(0)))
    return Made(module, _saved(module))


def torchao_int4(task: Task) -> Made:
    """Return torchao's packed 4-bit weights in groups of 32."""
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    module = copy.deepcopy(task.teacher.module)
    quantize_(module, Int4WeightOnlyConfig(group_size=32))
    return Made(module, _saved(module))


def brevitas_static(task: Task) -> Made:
    """Return Brevitas' static 8-bit network: batch norms merged, layers equalized, biases corrected."""
    from brevitas.graph.calibrate import bias_correction_mode
    from brevitas.graph.quantize import preprocess_for_quantize

    module = preprocess_for_quantize(copy.deepcopy(task.teacher.module), equalize_iters=20, merge_bn=True)
    module = _brevitas(module, "fx", weight=8, inputs=8, task=task)
    with torch.no_grad(), bias_correction_mode(module):
        for batch in task.inputs:
            module(batch)
    return Made(module, _exported(module, task))


def brevitas_weights(bits: int, gptq: bool, task: Task) -> Made:
    """Return Brevitas' integers of weights alone, per output channel, rounded to nearest or by its GPTQ."""
    from brevitas.graph.gptq import gptq_mode

    module = _brevitas(copy.deepcopy(task.teacher.module), "layerwise", weight=bits, inputs=None, task=task)
    if gptq:
        with torch.no_grad(), gptq_mode(module, act_order=True, create_weight_orig=False) as mode:
            for _ in range(mode.num_layers):
                for batch in task.inputs:
                    mode.model(batch)
                mode.update()
    return Made(module, _exported(module, task))


def brevitas_trained(bits: int, task: Task) -> Made:
    """Return Brevitas' integers of weights, trained with learned scales by the same recipe as ours."""
    module = _brevitas(copy.deepcopy(task.teacher.module), "layerwise", weight=bits, inputs=None, task=task)
    training, loss = _recipe(task)
    with tempfile.TemporaryDirectory() as folder:
        fit_(
            module.requires_grad_(True),
            training,
            loss,
            task.train,
            task.validation,
            scratch=Scratch(Path(folder), "state"),
            seed=task.seed,
            constraints={},
            title="Brevitas",
        )
    return Made(module, _exported(module, task))


def _recipe(task: Task) -> tuple[Training, Any]:
    training: Training = validate(dict(task.training), Training)
    return training, against_teacher(validate(dict(task.loss), SoftTargets), task.teacher.module)


def _brevitas(module: nn.Module, backend: str, weight: int, inputs: int | None, task: Task) -> nn.Module:
    """Return the module with Brevitas' layers, calibrated, by the function behind its command line."""
    from brevitas.graph.calibrate import calibration_mode
    from brevitas_examples.imagenet_classification.ptq.ptq_common import quantize_model

    quantized: nn.Module = quantize_model(
        module,
        backend=backend,
        weight_bit_width=weight,
        act_bit_width=inputs,
        bias_bit_width=None if inputs is None else 32,
        layerwise_first_last_bit_width=weight,
        weight_quant_granularity="per_channel",
        act_quant_percentile=99.999,
        act_quant_type="asym",
        scale_factor_type="float_scale",
        quant_format="int",
        weight_narrow_range=True,
    )
    quantized.eval()
    with torch.no_grad():
        with calibration_mode(quantized):
            for batch in task.inputs:
                quantized(batch)
        quantized(task.inputs[0])  # its weight quantizers are initialized by a pass outside of calibration
    return quantized


def _exported(module: nn.Module, task: Task) -> int:
    """Return the bytes of Brevitas' QCDQ file, ONNX with integers of 8 bits whatever their width."""
    from brevitas.export import export_onnx_qcdq

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        example = task.inputs[0][:1].clone()
        export_onnx_qcdq(module, example, export_path=str(path), opset_version=17, dynamo=False)
        return path.stat().st_size


def _saved(module: nn.Module) -> int:
    """Return the bytes of `torch.save(module.state_dict())`, as torchao documents."""
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    return len(saved.getvalue())


ONNXRUNTIME: dict[str, Peer] = {
    f"onnxruntime quantize_static, {words}": Peer(
        ("onnxruntime",), "int8", functools.partial(onnxruntime_static, method)
    )
    for words, method in (("min-max", "MinMax"), ("entropy", "Entropy"), ("percentile", "Percentile"))
}
"""What int8 is held against: the quantizer of the runtime that deploys ours, too."""

_UNPACKED = "state_dict: codes of fewer than 8 bits take 8"
_LINEAR = f"linear layers alone, convolutions stay float32; {_UNPACKED}"
_QCDQ = "QCDQ export: codes of fewer than 8 bits take 8"

PEERS: dict[str, Peer] = {
    "torchao pt2e static": Peer(
        ("torchao",), "int8", torchao_pt2e, "torch.export.save: the float32 weights stay in the file"
    ),
    "Brevitas static": Peer(("brevitas", "onnxoptimizer"), "int8", brevitas_static, _QCDQ),
    **{
        f"torchao weight-only, {bits} bits": Peer(
            ("torchao",), f"{bits} bits", functools.partial(torchao_weights, bits), _LINEAR
        )
        for bits in (8, 4, 3, 2)
    },
    "torchao int4, groups of 32": Peer(
        ("torchao",), "4 bits", torchao_int4, "linear layers alone, packed; convolutions stay float32"
    ),
    **{
        f"Brevitas {words}, {bits} bits": Peer(
            ("brevitas", "onnxoptimizer"),
            f"{bits} bits",
            functools.partial(brevitas_weights, bits, gptq),
            _QCDQ,
        )
        for words, gptq in (("nearest", False), ("GPTQ", True))
        for bits in (4, 3, 2)
    },
    "Brevitas trained, 4 bits": Peer(
        ("brevitas", "onnxoptimizer"), "4 bits, trained", functools.partial(brevitas_trained, 4), _QCDQ
    ),
}
