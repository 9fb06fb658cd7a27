"""Pictures that are hard to learn from: of one pixel, and classes without a training picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decant.errors import DecantError
from tasks.prepare.__main__ import main as prepare
from tasks.teacher.__main__ import main as teach
from tasks.validate.__main__ import main as validate
from tests.stages import compressed, measured
from tests.test_own_data_in_stages import MODELS, TRAINING, content
from tests.test_own_networks import changed, project

PHOTOS, NETWORK = "data/own/photos", "networks/looks.py"
LOOKS = """
from torch import nn


def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""
SHARES = {"kind": "shares", "validation": 0.2, "test": 0.2, "stratified": True}
RESNET = {"kind": "resnet", "widths": [4], "blocks": [0]}


def draw(place: str = PHOTOS, names: tuple[str, ...] = ("dark", "light"), pixels: int = 3) -> None:
    """Write ten pictures of each class, each class of another brightness."""
    draw = np.random.default_rng(0)
    for number, name in enumerate(names):
        folder = Path(place, name)
        folder.mkdir(parents=True)
        for at in range(10):
            content = draw.integers(0, 60, (pixels, pixels, 3)) + 90 * number
            Image.fromarray(content.astype(np.uint8)).save(folder / f"{at}.png")


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path) -> Iterator[None]:
    data = {"source": "folder", "folder": PHOTOS, "size": [1, 1], "split": SHARES}
    training = TRAINING | {"epochs": 1, "batch_size": 4}
    params = content() | {
        "data": data,
        "teacher": {"architecture": RESNET, "training": training},
        "models": {"int8": MODELS["int8"]},
        "gates": {},
    }
    with project(tmp_path, params, "data/own", NETWORK, LOOKS):
        yield


@pytest.mark.parametrize(("size", "pixels"), [([1, 1], 3), ([8, 8], 1)])
def test_pictures_of_one_pixel_go_through_a_network(size: list[int], pixels: int) -> None:
    draw(pixels=pixels)
    changed(data__size=size)
    validate()
    prepare()
    teach()
    compressed("int8")
    assert 0 <= measured("teacher", "int8")["int8"]["accuracy"] <= 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"teacher__architecture": {"kind": "lenet-5"}}, "lenet-5 needs images of at least 16 x 16, these"),
        ({"teacher__training__batch_size": 1}, "batch_size: 1 image shrinks to one pixel .*; take a larger"),
    ],
)
def test_networks_that_pictures_of_one_pixel_are_too_small_for_are_told_at_once(
    change: dict[str, Any], sentence: str
) -> None:
    draw()
    changed(**change)
    with pytest.raises(DecantError, match=sentence):
        validate()


def test_a_network_of_ones_own_that_needs_larger_pictures_is_told() -> None:
    draw()
    changed(teacher__architecture={"kind": "python", "file": NETWORK, "build": "build"})
    validate()
    prepare()
    with pytest.raises(DecantError, match=r"looks\.py: .* pictures \[4, 3, 1, 1\] .* Kernel size can't be"):
        teach()


def in_folders() -> dict[str, Any]:
    for split in ("train", "validation"):
        draw(f"{PHOTOS}/{split}")
    draw(f"{PHOTOS}/test", ("dark", "light", "odd"))
    return {"split": {"kind": "folders"}}


def broken() -> dict[str, Any]:
    draw()
    for path in Path(PHOTOS, "light").iterdir():
        path.write_bytes(b"no picture")
    return {"bad": "skip"}


def beside(**more: Any) -> dict[str, Any]:
    """Name pictures in a table, of which one of the test split alone is of the class `odd`."""
    draw()
    rows = [
        f"{kind}/{at}.png,{kind},{'train' if at < 8 else 'validation'}"
        for at in range(9)
        for kind in ("dark", "light")
    ]
    Path("data/own/photos.csv").write_text("\n".join(["name,kind,part", *rows, "dark/9.png,odd,test", ""]))
    target = {"kind": "classes", "column": "kind", "names": ["dark", "light"]} | more
    table, split = {"file": "data/own/photos.csv", "path": "name"}, {"kind": "column", "column": "part"}
    return {"table": table, "target": target, "split": split}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (in_folders, f"{PHOTOS}: no training picture is of odd; nothing can be learned of it"),
        (broken, f"{PHOTOS}: no training picture is of light; nothing can be learned of it"),
        (beside, "photos.csv, row 19: kind is 'odd', which no training row has and `names` do not name"),
        (lambda: beside(names=["dark", "light", "odd"]), "photos.csv: no training picture is of odd"),
    ],
)
def test_a_class_without_a_training_picture_is_refused(make: Any, sentence: str) -> None:
    changed(data={"source": "folder", "folder": PHOTOS, "size": [2, 2]} | {"split": SHARES} | make())
    with pytest.raises(DecantError, match=sentence):
        prepare()
    assert not [*Path("data").glob("*.parquet")]
