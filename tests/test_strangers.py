"""Six trained networks of other people, adopted as they are: the right outputs, folds, files and exports.

Their weights come from packages and are no part of this repository; tests/strangers/models.py says where they
are looked for. The outputs that their authors' own code gives are looked for in the same folders, in
`expected/NAME.safetensors`. What is not there is skipped, with the reason.
"""

import copy
import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import decant
from benchmarks import strangers_inputs as data
from benchmarks.strangers import CASES, answers, quantized
from decant.checkpoints.checkpoint import Checkpoint
from decant.examples import Examples
from decant.lowering.folding import folded
from decant.networks.execution import predict
from decant.networks.record import record_of
from tests.strangers import crepe, voice
from tests.strangers.models import FOLDERS, STRANGERS, examples, folders
from tests.strangers.reader import text

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
"""Of ImageNet's colours."""

SENTENCES = (
    "101 2035 2529 9552 2024 2141 2489 1998 5020 1999 13372 1998 2916 1012 102",
    "101 3071 2038 1996 2157 2000 2166 1010 7044 1998 3036 1997 2711 1012 102",
    "101 2053 2028 4618 2022 2218 1999 8864 2030 14262 5737 8525 3207 1025 8864 1998 1996 6658 3119 4618 "
    "2022 10890 1999 2035 2037 3596 1012 102",
    "101 1037 4937 2938 2006 1996 13523 1012 102",
)
"""Token ids of three sentences of the Universal Declaration of Human Rights, and of one about a cat."""

FOLDS = {
    "minilm": 0,
    "crepe-tiny": 0,  # each batch norm stands behind a rectifier
    "crepe-full": 0,
    "voice": 0,
    "reader": 2,
    "craft": 20,
    "face": 0,
}
NORMS = {**FOLDS, "crepe-tiny": 6, "crepe-full": 6}
MOVED = 5e-7
"""How far outputs may move when batch norms are folded, of the largest: folded weights are float32."""

INT8 = {
    "voice": ("int8, the first matrix in groups", 1.48e6),
    "reader": ("int8, inputs of convolutions in float32", 3.9e6),
    "crepe-tiny": ("int8", 0.52e6),
    "face": ("int8", 0.42e6),
}
"""Recipes of benchmarks/strangers.py, and how many bytes their ONNX files have at most."""

WITHIN = {"reader": 1e-3}
"""How far outputs may be from what the authors' own code gives; 1e-5 of all others."""


def expected(name: str) -> dict[str, Tensor]:
    """Return inputs, and what the authors' own code makes of them."""
    files = [folder / "expected" / f"{name}.safetensors" for folder in folders()]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        pytest.skip(f"no expected/{name}.safetensors in a folder that {FOLDERS} lists")
    return load_file(found)


def inputs(name: str, given: dict[str, Tensor]) -> Examples:
    """Return inputs as the network takes them."""
    if name == "minilm":
        return examples(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
    if name.startswith("crepe"):
        return examples(frames=given["frames"])
    if name == "voice":
        return examples(mels=given["mels"])
    if name == "reader":
        return examples(lines=given["images"] / 127.5 - 1)
    if name == "craft":
        return examples(photo=colours(given["photo"]))
    return examples(crops=((given["crops"].float() - 127.5) / 128).movedim(-1, 1).contiguous())


def colours(photo: Tensor) -> Tensor:
    """Return a photo, uint8 [H, W, 3], as [1, 3, H, W] of ImageNet's mean and deviation."""
    return ((photo[None].float() / 255 - MEAN) / DEVIATION).movedim(-1, 1).contiguous()


def drawn(name: str) -> Examples:
    """Return two rows drawn at random, as the network takes them."""
    takes = STRANGERS[name].inputs
    generator = torch.Generator().manual_seed(1)
    rows = {key: each.drawn(2, generator) for key, each in takes.items()}
    if name == "voice":
        rows["mels"] = rows["mels"].exp() * 1e-3  # powers
    if name == "minilm":
        rows["attention_mask"][:, :5] = 1
    return examples(**rows)


@functools.cache
def adopted(name: str) -> Checkpoint:
    """Return the network with its weights, as a user adopts it."""
    if STRANGERS[name].weights is None:
        pytest.skip(f"no package {STRANGERS[name].package}, and none in a folder that {FOLDERS} lists")
    return decant.adopt(STRANGERS[name].source()).model


def outputs(model: Checkpoint, given: Examples) -> list[Tensor]:
    with torch.no_grad():
        found = model.module(*given.images.tensors.values())  # type: ignore[union-attr]
    return [found] if isinstance(found, Tensor) else list(found)


def compressed(name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the float network gives in PyTorch, and a file of eight bits in ONNX Runtime."""
    teacher, case, (recipe, most) = adopted(name), CASES[name], INT8[name]
    try:
        calibration, measured = case.calibration(), case.measured()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    content = decant.deploy(quantized(teacher, case.ours[recipe], calibration)).content
    assert len(content) <= most
    found = answers(decant.open_session(content, 1), measured)
    return outputs(teacher, Examples(measured, None, ())), found


# --- with the weights


@pytest.mark.slow
@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_gives_what_its_authors_code_gives(name: str) -> None:
    model, given = adopted(name), expected(name)
    right = {
        "face": ("boxes", "points", "probabilities"),
        "craft": ("photo_scores",),
    }.get(name, ("output",))
    for found, key in zip(outputs(model, inputs(name, given)), right, strict=False):
        assert (found - given[key]).abs().max() <= WITHIN.get(name, 1e-5)


@pytest.mark.slow
def test_sentences_are_as_near_as_their_encoder_says() -> None:
    ids = [torch.tensor([int(each) for each in words.split()]) for words in SENTENCES]
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    given = examples(input_ids=padded, attention_mask=(padded > 0).long())
    (vectors,) = outputs(adopted("minilm"), given)
    assert vectors[0, :4].tolist() == pytest.approx([-0.016923, 0.067285, -0.061781, -0.002965], abs=1e-5)
    assert (vectors[1:] @ vectors[0]).tolist() == pytest.approx([0.5552, 0.4286, -0.0002], abs=1e-4)


@pytest.mark.slow
def test_the_outputs_are_those_that_are_stated() -> None:
    """A few of the numbers that the authors' code gives, written down, beside those in the files."""
    crepe_output = outputs(adopted("crepe-tiny"), inputs("crepe-tiny", expected("crepe-tiny")))[0]
    assert crepe_output[0, :4].tolist() == pytest.approx([0.015048, 0.017710, 0.018777, 0.019929], abs=1e-5)
    assert crepe_output.argmax(1).tolist() == [108, 359, 358, 349, 166, 178, 185, 155]
    voice_output = outputs(adopted("voice"), inputs("voice", expected("voice")))[0]
    assert (voice_output[1:] @ voice_output[0]).tolist() == pytest.approx(
        [0.8130, 0.7560, 0.7070, 0.7400, 0.7960],
        abs=5e-4,  # stated to three digits
    )
    boxes, _, probabilities = outputs(adopted("face"), inputs("face", expected("face")))
    assert probabilities[:, 1].tolist() == pytest.approx(
        [0.999835, 0.996334, 0.005138, 0.000692, 0.005421], abs=1e-5
    )
    assert boxes[0].tolist() == pytest.approx([0.063456, 0.043164, -0.107666, 0.080082], abs=1e-5)
    assert text(outputs(adopted("reader"), inputs("reader", expected("reader")))[0]) == [
        "Region-based segmentation",
        "Let us first   determine   markers  of the coins ad the",
        "histogram of grey values:",
    ]


@pytest.mark.slow
def test_a_page_is_found_to_have_letters_and_a_photo_none() -> None:
    """The page is larger than the example, and not square."""
    model, given = adopted("craft"), expected("craft")
    scores = outputs(model, examples(photo=colours(given["page"])))[0]
    assert (scores - given["page_scores"]).abs().max() <= 1e-5
    assert scores.amax((0, 1, 2)).tolist() == pytest.approx([1.019709, 0.992999], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRANGERS)
def test_batch_norms_are_folded_where_that_is_right(name: str) -> None:
    model, given = adopted(name), drawn(name)
    norms = [each for each in model.module.modules() if isinstance(each, nn.BatchNorm2d)]
    assert (len(norms), len(record_of(model.module).folds)) == (NORMS[name], FOLDS[name])
    whole = folded(model)
    before, after = (
        predict(copy.deepcopy(each.module).double(), given.images, dtype=torch.float64)
        for each in (model, whole)
    )
    assert (after - before).abs().max() <= (MOVED * before.abs().max() if FOLDS[name] else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_goes_to_disk_and_back_and_into_an_onnx_file(name: str, tmp_path: Path) -> None:
    model, given = adopted(name), drawn(name)
    decant.save(model, tmp_path / "model")
    again = decant.load(tmp_path / "model", build=STRANGERS[name].build)
    assert torch.equal(predict(again.module, given.images), predict(model.module, given.images))
    session = decant.open_session(decant.deploy(model).content, 1)
    decant.check_same(name, model, session, given.images)


@pytest.mark.slow
def test_a_voice_stays_itself_in_a_quarter_of_the_bytes() -> None:
    (right,), (found,) = compressed("voice")
    cosines = (right * found).sum(1) / (right.norm(dim=1) * found.norm(dim=1))
    assert len(cosines) == 6
    assert cosines.min() >= 0.98


@pytest.mark.slow
def test_lines_are_read_alike_in_a_quarter_of_the_bytes() -> None:
    (right,), (found,) = compressed("reader")
    assert len(right) == 3
    assert text(found) == text(right)


@pytest.mark.slow
def test_pitches_are_heard_alike_in_a_quarter_of_the_bytes() -> None:
    (right,), (found,) = compressed("crepe-tiny")
    sure = right.amax(1) > 0.5
    bins = [each.argmax(1)[sure] for each in (right, found)]
    assert len(bins[0]) >= 400
    assert ((bins[0] - bins[1]).abs() <= 1).double().mean() >= 0.998


@pytest.mark.slow
def test_faces_are_told_from_others_in_a_quarter_of_the_bytes() -> None:
    (boxes, *_), (found, _, probabilities) = compressed("face")
    faces = data.faces()[1]
    assert len(faces) == 200
    assert torch.equal(probabilities[:, 1] > 0.5, faces)
    assert (found - boxes)[faces].abs().mean() <= 0.0067


# --- without


def test_the_networks_have_the_batch_norms_that_can_be_folded_and_no_others() -> None:
    for name, options in {
        "crepe-tiny": {},
        "reader": {"width": 4},
        "craft": {"share": 8},
        "face": {},
    }.items():
        stranger = STRANGERS[name]
        module = stranger.build(**{**stranger.options, **options})
        model = Checkpoint(None, stranger.inputs, (), module.eval())
        assert len(record_of(model.module).folds) == FOLDS[name]


def test_files_are_taken_as_they_are_found(tmp_path: Path) -> None:
    """A training's checkpoint with what its loss learned, in the old format; and one of DataParallel."""
    whole, path = voice.build(hidden=8), tmp_path / "checkpoint.pt"
    content = {"step": 7, "model_state": whole.state_dict(), "optimizer_state": {"state": {0: {"step": 7}}}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    architecture = decant.Python.of(voice.build, hidden=8)
    result = decant.adopt(decant.Source(architecture, path, inputs=STRANGERS["voice"].inputs))
    assert torch.equal(result.model.module.state_dict()["linear.weight"], whole.linear.weight)
    network, path = crepe.build("tiny"), tmp_path / "parallel.pth"
    torch.save(nn.DataParallel(network).state_dict(), path)
    architecture = decant.Python.of(crepe.build)
    result = decant.adopt(decant.Source(architecture, path, inputs=STRANGERS["crepe-tiny"].inputs))
    assert result.facts["weights"] == "without the prefix module."
    assert torch.equal(result.model.module.state_dict()["conv2.weight"], network.conv2.weight)
