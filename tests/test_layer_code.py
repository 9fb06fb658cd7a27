"""Decant's own layers in networks of one's own: their code is part of the network's, their words are not."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import decant
from decant.errors import DecantError
from decant.meaning import lasting_sum
from decant.networks import layer_code
from decant.networks.python import sum_of_code
from tasks.pipeline import networks
from tasks.pipeline.models import load_model
from tasks.prepare.__main__ import main as prepare
from tasks.teacher.__main__ import main as teach
from tasks.validate.__main__ import main as validate
from tests.imports import ROOT
from tests.test_own_networks import changed, content, git, project

SOUND = (ROOT / "decant" / "networks" / "sound.py").read_text()
BEHAVIOUR, WORDS = ("2595 * math.log10", "2596 * math.log10"), ("as wide as hearing", "as broad as hearing")
FILE = "networks/hears.py"
HEARS = """
from torch import nn

from decant import LogMel


def build(bands=4):
    return nn.Sequential(LogMel(4000, bands, 40, 30), nn.Flatten(), nn.Linear(2 * bands, 3))
"""


def edit(patch: pytest.MonkeyPatch, change: tuple[str, str]) -> None:
    """Let the layers' code be another one, as after an update."""
    assert change[0] in SOUND
    patch.setattr(layer_code, "_text", lambda file: SOUND.replace(*change))
    networks.trusted.cache_clear()


@pytest.mark.parametrize(
    ("code", "has"),
    [
        ("from decant import LogMel as L", True),
        ("def build():\n    from decant.networks.sound import LogMel", True),
        ("import decant as d\nd.LogMel(8000)", True),
        ("from decant.networks import sound", True),
        ("import decant.networks.sound", True),
        ("from decant import *", True),
        ("import decant\ndecant.adopt(decant.Source(1))", False),
        ("from decant.errors import DecantError", False),
        ("from torchaudio import LogMel", False),
        ("import torch\nself.LogMel = torch.sound", False),
    ],
)
def test_a_network_has_a_layer_where_it_names_it(
    code: str, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.py"
    path.write_text(code)
    before = sum_of_code(path)
    assert (before == hashlib.sha256(code.encode()).hexdigest()) != has
    edit(monkeypatch, WORDS)
    assert sum_of_code(path) == before
    edit(monkeypatch, BEHAVIOUR)
    assert (sum_of_code(path) != before) == has


def test_a_layer_counts_in_whatever_file_of_the_network_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text("from parts import front")
    (tmp_path / "parts.py").write_text("from decant import LogMel\nfront = LogMel(8000)")
    before = sum_of_code(tmp_path / "net.py")
    edit(monkeypatch, BEHAVIOUR)
    assert sum_of_code(tmp_path / "net.py") != before


def test_every_layer_that_the_library_lends_is_summed_up() -> None:
    lent = {name: getattr(decant, name) for name in decant.__all__}
    layers = {name for name, each in lent.items() if isinstance(each, type) and issubclass(each, nn.Module)}
    assert layers == {"LogMel"}
    assert layers <= {name for file in layer_code.LAYERS for name in layer_code._names(file)}


def test_sums_say_nothing_of_layout_and_all_of_behaviour() -> None:
    assert lasting_sum("x = [1, None]  # one") == lasting_sum('"""Docs."""\nx = [\n    1, None,\n]')
    different = ("x = [1, None]", "x = [1, 0]", "x = [1]", "x = (1, None)", "y = [1, None]", "x = [None, 1]")
    assert len({*map(lasting_sum, different)}) == len(different)


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[None]:
    params = content()
    params["data"] |= {"inputs": ["x"], "train": "data/arrays/x.safetensors", "test": 5, "validation": 5}
    params["teacher"] = {
        "architecture": {"kind": "python", "file": FILE, "build": "build"},
        "weights": "networks/hears.safetensors",
    }
    with project(tmp_path, params, "data/arrays", FILE, HEARS):
        x = torch.randn(30, 1, 70, generator=torch.Generator().manual_seed(0))
        safetensors.torch.save_file({"x": x}, "data/arrays/x.safetensors")
        weights = {"2.weight": x[:3, 0, :8].clone(), "2.bias": x[:3, 0, 8].clone()}
        safetensors.torch.save_file(weights, "networks/hears.safetensors")
        yield


def test_other_code_of_a_layer_makes_teacher_and_student_anew(
    workshop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = {"kind": "python", "file": FILE, "build": "build", "with": {"bands": 2}}
    distill = {"op": "distill", "from": "teacher", "loss": {"kind": "outputs", "hard": 0}}
    small = distill | {"student": student | {"code": sum_of_code(Path(FILE))}, "training": {"epochs": 1}}
    changed(models={"small": small})
    validate()
    prepare()
    teach()
    before = Path("data/files/teacher").read_text()
    assert "  decant/networks/sound.py\n" in before and load_model("teacher")
    edit(monkeypatch, WORDS)
    validate()
    assert Path("data/files/teacher").read_text() == before
    edit(monkeypatch, BEHAVIOUR)
    after = sum_of_code(Path(FILE))
    # DVC compares what params.yaml says of a student: its sum there is what makes it anew.
    with pytest.raises(DecantError, match=rf"small\.student.*needs the sum of its file, code: {after}"):
        validate()
    with pytest.raises(DecantError, match=r"saved with other code: .*; take the file, and the Decant whose"):
        load_model("teacher")
    changed(models={"small": small | {"student": student | {"code": after}}})
    validate()
    assert Path("data/files/teacher").read_text() != before


def test_rows_that_a_function_makes_with_a_layer_are_made_anew(
    workshop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("networks/made.py").write_text("from decant import LogMel\ndef rows():\n    yield {}\n")
    git("add", "networks/made.py")
    shares = {"kind": "shares", "validation": 0.2, "test": 0.2}
    changed(data={"source": "python", "file": "networks/made.py", "function": "rows", "split": shares})
    validate()
    before = Path("data/files/prepare").read_text()
    edit(monkeypatch, BEHAVIOUR)
    validate()
    assert Path("data/files/prepare").read_text() != before
